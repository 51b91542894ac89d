"""A run on Ray: from a configuration to a trained model, on any number of workers.

The driver checks everything that can be checked, starts the workers through `TorchTrainer` and shows their progress; the
workers run `loop.py`. Their last word (done, or the user's mistake in one line) stands in the run's `status.json`.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
import traceback
from typing import Any

from swav_ray.config import Config
from swav_ray.data.multicrop import ready
from swav_ray.data.shards import Shards
from swav_ray.data.sources import prepare_digits
from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.errors import InfraError, Stopped, UserError
from swav_ray.train import faults
from swav_ray.train.control import Control
from swav_ray.train.feed import batches
from swav_ray.train.progress import ProgressReader, Told, post, post_epoch
from swav_ray.train.signals import SIGNALS, Request
from swav_ray.train.trackers import check_installed

CONFIG, STATUS = "config.yaml", "status.json"
RESTARTS = 8  # worker groups lost without notice before stock Ray gives up
# Ray Data asks for room every 10 s; what a killed run's asked for counts against the others' for so long (180 s by default).
DATA_REQUEST_SECONDS = 30
SETTLE_SECONDS = 3.0  # for a checkpoint under way when the group fails; a process that still writes one then is ended
logger = logging.getLogger(__name__)


def resolve(config: Config) -> Config:
    """The configuration with absolute addresses and its data in place (the demo's digits are prepared).

    Raises:
        UserError: no data named, no shards there, a combination that cannot work on them, no numba, or no library of a tracker.
    """
    data = config.data
    storage = absolute_uri(config.storage)
    if not data.train:
        raise UserError("data.train is not set; give shards with --set data.train=FOLDER (made by `swav-ray shard`)")
    if data.train == "demo:digits":
        train, test = prepare_digits(Storage(storage) / "demo-digits-shards")
    else:
        train, test = absolute_uri(data.train), absolute_uri(data.test) if data.test else ""
    resolved = config.model_copy(update={"storage": storage, "data": data.model_copy(update={"train": train, "test": test})})
    ready(config)
    check_installed(config)
    rows = Shards(train).num_rows
    if rows < config.global_batch_size:
        raise UserError(f"global_batch_size {config.global_batch_size} is more than the {rows} images in {train}; lower it")
    if config.queue_length > rows:
        raise UserError(
            f"queue_length {config.queue_length} is more than the {rows} images in {train}, so each would be in it several "
            "times; lower it"
        )
    return resolved


def open_run(config: Config) -> Storage:
    """The run's folder, new or one of the same configuration.

    Raises:
        UserError: a run of that name exists with another configuration.
    """
    run = Storage(config.storage) / config.name
    try:
        existing = Config.model_validate(_yaml(run.read(CONFIG).decode()))
    except FileNotFoundError:
        run.write(CONFIG, config.to_yaml().encode())
        return run
    except ValueError:
        raise UserError(f"{run.uri}/{CONFIG}: not a configuration of this version; choose another --name") from None
    if existing.hash() != config.hash():
        raise UserError(
            f"run {config.name!r} exists in {config.storage} with another configuration: {_difference(existing, config)}; "
            "choose another --name"
        )
    run.write(CONFIG, config.to_yaml().encode())
    return run


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _difference(there: Config, here: Config) -> str:
    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    a, b = flat(there.model_dump(mode="json")), flat(here.model_dump(mode="json"))
    counts = flat(there.computed()) | flat(here.computed())
    parts = [f"{key} {a[key]} there, {b[key]} here" for key in a if key in counts and a[key] != b[key]]
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def elastic_trainer() -> Any:
    """Our trainer, or Ray's own where this Ray lacks what ours replaces (then the pin was not kept)."""
    try:
        from swav_ray.train.elastic import ElasticTrainer
    except (ImportError, AttributeError) as error:
        import ray

        logger.warning("Ray %s lacks a hook (%s): resizes are Ray's own, slower and without notice", ray.__version__, error)
        return None
    return ElasticTrainer


def pretrain(
    config: Config,
    show: Told | None = None,
    tell: Told | None = None,
    *,
    epoch: Told | None = None,
    control: Control | None = None,
    share_key: str | None = None,
) -> dict[str, Any]:
    """Run ``config`` (of :func:`resolve`) to its end on the connected Ray cluster; a run begun before goes on.

    Args:
        show: called on this process with the figures the workers post, the newest ones.
        tell: called on this process with each event of the workers: growths, drains, losses.
        epoch: called on this process with the row of each end of an epoch; after a loss one may come twice.
        control: to stop or abort the run from another thread.
        share_key: names the run's share of the workers (`shares.py`).

    Returns:
        The run's last figures.

    Raises:
        InfraError: workers or nodes were lost too often, or the store was.
        UserError: the user's mistake that stopped it.
        Stopped: it was asked to stop, or aborted.
    """
    control = control or Control()
    run = open_run(config)
    run.delete(STATUS)
    with ProgressReader(run.uri, show, tell, epoch):
        problem = _work_to_the_end(config, run, control, share_key)
    if problem is not None:
        raise problem
    if control.aborted:
        raise Stopped(f"run {config.name!r} was aborted; the same command goes on from its last checkpoint")
    status = read_status(run)
    if status is None and control.stopping:
        raise Stopped(f"run {config.name!r} stopped; the same command goes on from its last checkpoint")
    if status is None:
        raise InfraError(f"run {config.name!r} ended without a word; the same command goes on from its last checkpoint")
    if status["state"] == "stopped":
        raise Stopped(f"run {config.name!r} stopped at step {status['step']}; the same command goes on from there")
    if status["state"] != "done":
        raise (InfraError if status.get("infra") else UserError)(status["error"])
    return dict(status["figures"])


def _work_to_the_end(config: Config, run: Storage, control: Control, share_key: str | None) -> UserError | None:
    """Start the workers, and again after failures of Ray's for as long as steps are made; why there is no status, if so."""
    from swav_ray.train.blame import code_to_blame

    before = _newest_step(run)
    while not control.stopping:
        scratch = tempfile.mkdtemp(prefix="swav-ray-")
        try:
            _trainer(config, run, control, share_key, scratch).fit()
            return None
        except Exception as error:  # Ray's own failure, or more losses in a row than it bears
            if control.stopping or read_status(run) is not None:
                return None
            newest = _newest_step(run)
            if newest <= before:
                kind = UserError if code_to_blame(error) else InfraError
                problem = kind(
                    f"run {config.name!r} stopped: {_cause(error)}; the same command goes on from its last checkpoint"
                )
                problem.__cause__ = error
                return problem
            before = newest
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return None


def worker_resources(config: Config) -> dict[str, float]:
    """What one worker takes of the connected cluster, as Ray names it."""
    import ray

    elastic = config.elastic
    gpus = elastic.gpus_per_worker
    if gpus is None:
        here = ray.cluster_resources().get("GPU", 0) >= elastic.min
        gpus = 1.0 if here or elastic.accelerator_type else 0.0  # an autoscaler may bring the first one only when asked
    kind = {f"accelerator_type:{elastic.accelerator_type}": 0.001} if elastic.accelerator_type else {}
    return {"CPU": elastic.cpus_per_worker, **({"GPU": gpus} if gpus else {}), **kind, **elastic.resources}


def _trainer(config: Config, run: Storage, control: Control, share_key: str | None, scratch: str) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    elastic = config.elastic
    resources = worker_resources(config)
    ours = elastic_trainer()
    scaling: dict[str, Any] = {}
    if not ours:
        scaling["elastic_resize_monitor_interval_s"] = max(3.0, elastic.patience_seconds)
    environment = {"RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": str(DATA_REQUEST_SECONDS)}
    own: dict[str, Any] = {"config": config, "run_uri": run.uri, "control": control, "share_key": share_key} if ours else {}
    return (ours or TorchTrainer)(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "faults": faults.from_environment().to_json()},
        scaling_config=ray.train.ScalingConfig(
            num_workers=elastic.max if elastic.min == elastic.max else (elastic.min, elastic.max),  # type: ignore[arg-type]
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            **scaling,
        ),
        # Checkpoints are ours and Ray keeps none, so its own notes lie in a local folder: no outage of the run's store
        # can end Ray's controller.
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=scratch,
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # Ray annotates an older RunConfig
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
        **own,
    )


def _newest_step(run: Storage) -> int:
    from swav_ray.train.checkpoint import Checkpoints

    found = Checkpoints(run / "checkpoints").newest()
    return int(found[1]["step"]) if found is not None else -1


def read_status(run: Storage) -> dict[str, Any] | None:
    try:
        return dict(json.loads(run.read(STATUS)))
    except FileNotFoundError:
        return None


def _cause(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip().splitlines()
    return text[-1][:300] if text else type(error).__name__


def _worker(args: dict[str, Any]) -> None:
    """What runs on every worker, from the top at each start of the worker group, maybe in the same process again."""
    import ray.train.torch

    from swav_ray.train.blame import CodeError, code_failed
    from swav_ray.train.logs import identify
    from swav_ray.train.world import World

    SIGNALS.enter("start")
    config = Config.model_validate(args["config"])
    run = Storage(config.storage) / config.name
    world = World.join(ray.train.torch.get_device())
    identify(run.uri, world.rank)
    problem, failure = "", RuntimeError
    try:
        status, asked = _train(config, run, world, faults.Faults.from_json(args["faults"]).of_run(run))
    except UserError as error:  # raised by every worker alike: an end, not a failure to restart after
        infra = isinstance(error, InfraError)
        status, asked = {"state": "failed", "error": str(error), "infra": infra}, Request.NONE
    except Exception as error:
        problem, failure = traceback.format_exc(), CodeError if code_failed(error) else RuntimeError
    if problem:
        # As text only, and outside of `except`: a traceback would keep the model and the group's sockets alive in a
        # process that stays. Peers that wait for this worker fail as soon as the sockets are closed.
        world.leave()
        raise failure(problem)
    if asked is Request.YIELD:
        SIGNALS.park()
        if SIGNALS.request is not Request.STOP:
            return
    if world.rank == 0:
        run.write(STATUS, json.dumps(status).encode())


def _train(config: Config, run: Storage, world: Any, injected: faults.Faults) -> tuple[dict[str, Any], Any]:
    from swav_ray.train.loop import Training

    started = time.time()

    def report(row: dict[str, Any]) -> None:
        row = {**row, "workers": world.size, "started": started}
        if "epochs_done" in row:
            post_epoch(run.uri, row)
        post(run.uri, row)

    training = Training(config, run, world, report, injected)
    stream = batches(training.stream, training.position, world)
    try:
        figures, asked = training.run_to_end(stream)
    except BaseException:
        if not training.abandon(SETTLE_SECONDS):
            SIGNALS.spoilt = True
        raise
    finally:
        stream.close()  # its threads end here and not whenever they are collected
    if asked:
        return {"state": "stopped", "step": training.step}, asked
    return {"state": "done", "figures": figures}, asked
