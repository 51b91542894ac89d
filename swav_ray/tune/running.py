"""Running a ledger's trials through Ray Tune: processes that serve one trial after another, and an end on request."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swav_ray.config import Config
from swav_ray.errors import UserError
from swav_ray.train import faults
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.live import LiveView
from swav_ray.tune.results import results
from swav_ray.tune.scheduling import LedgerScheduler, LedgerSearcher
from swav_ray.tune.space import Space
from swav_ray.tune.trial import SweepTrial

UNBOUNDED = 1_000_000  # trials, where only time is the budget
REUSE = True  # the next trial starts in a process that has everything imported


def view_of(ledger: Ledger, epochs: int) -> LiveView:
    """The live view of a ledger's sweep, as it stands."""
    budget = ledger.space.budget
    return LiveView(
        epochs=epochs,
        trials=ledger.space.trials,
        hours=budget.hours,
        gpu_hours=budget.gpu_hours,
        objective=ledger.space.objectives[0],
        earlier=results(ledger.study, ledger.space),
        hours_used=ledger.hours,
    )


def run_trials(ledger: Ledger, view: LiveView, need: dict[str, float], *, test: bool = False) -> bool:
    """Run the ledger's trials through Ray Tune until it has no more; True if asked to stop before.

    Args:
        need: resources of a trial, as Ray names them.
        test: the runs are scored on the test data at their ends.
    """
    from ray import tune

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # the objective comes at rungs only
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # the view says it in a line
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours hears SIGTERM too
    keep_keys_off_the_logs()
    session, injected = uuid.uuid4().hex, faults.from_environment().to_json()

    def task_of(number: int, settings: dict[str, Any], config: Config) -> dict[str, Any]:
        return {
            "number": number,
            "settings": settings,
            "config": config.model_dump(mode="json"),
            "session": session,
            "faults": injected,
            "nested": ledger.space.resources.worker_range[1] > 1,
            "test": test,
        }

    tuner = tune.Tuner(
        tune.with_resources(SweepTrial, need),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger, view, task_of),
            scheduler=LedgerScheduler(ledger, view),
            num_samples=ledger.space.trials or UNBOUNDED,
            max_concurrent_trials=ledger.space.concurrency,
            reuse_actors=REUSE,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=tempfile.mkdtemp(prefix="swav-ray-"),  # Ray Tune's own notes, never read again
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),  # runs keep their own
            failure_config=tune.FailureConfig(max_failures=-1),  # of processes; `count_life` ends what always dies
            verbose=0,
            callbacks=[view],
        ),
    )
    with _gracefully() as asked:
        try:
            tuner.fit()
        finally:
            view.close()
    return asked.is_set()


def keep_keys_off_the_logs() -> None:
    """Have Ray Tune send no AWS keys to the trials' processes: Ray writes what it sends into its logs, as plain text.

    On one machine they have the environment anyway; a cluster's nodes have keys of their own, as for `pretrain`.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in class_cache.ENV_VARS_TO_PROPAGATE if not n.startswith("AWS_")}


@contextmanager
def _gracefully() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM lets Ray Tune end its trials, each with a checkpoint; a second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def first(number: int, frame: Any) -> None:
        asked.set()
        for each, handler in old.items():
            signal.signal(each, handler)
        os.kill(os.getpid(), signal.SIGUSR1)  # by which Ray Tune is told

    for number in old:
        signal.signal(number, first)
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def trial_resources(space: Space) -> tuple[dict[str, float], float]:
    """What a trial's process needs, as Ray names it, and the GPUs of each worker.

    Raises:
        UserError: this machine has less than one trial needs at least; a cluster may grow, and is waited for.
    """
    import ray

    have = ray.cluster_resources()
    gpus = space.resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) else 0.0
    low, high = space.resources.worker_range
    for key, amount in (("CPU", space.resources.cpus_per_worker), ("GPU", gpus)):
        if low * amount > have.get(key, 0):
            each = f" ({low} workers of {amount:g})" if low > 1 else ""
            lacks = f"resources: a trial needs {low * amount:g} {key}{each} and the cluster has {have.get(key, 0):g}"
            if not os.environ.get("RAY_ADDRESS"):
                raise UserError(f"{lacks}; lower it")
            print(f"{lacks}: waiting for nodes")  # which an autoscaler brings once they are asked for
    if high > 1:  # its workers hold the resources; a share of a processor for the trial itself could keep them from starting
        return {"node:__internal_head__": 0.001}, gpus
    return {key: amount for key, amount in (("CPU", space.resources.cpus_per_worker), ("GPU", gpus)) if amount}, gpus
