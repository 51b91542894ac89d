"""Runs of several workers inside other processes: their rows, their ends, and how they share a cluster."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import actors

from benchmarks.cluster import LocalCluster
from benchmarks.traced import TRACE
from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import InfraError, Stopped, UserError
from swav_ray.train import nested
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.cluster import cluster_slots
from swav_ray.train.events import read_events
from swav_ray.train.metrics import read_metrics
from swav_ray.train.nested import ElasticRun, clear_away
from swav_ray.train.progress import NAMESPACE
from swav_ray.train.shares import drop_share, set_share, shares
from swav_ray.train.trainer import worker_resources
from tests.train.small import losses_of, small_config, small_shards

ROOT = Path(__file__).parents[2]
SECONDS = 90.0  # patience for anything that is waited for
EARLIER: set[threading.Thread] = set()
SETTINGS = {
    "backbone.arch": "benchmarks.traced:backbone",  # a step takes its time, asleep
    "epochs": 1000,
    "probe.every_epochs": 2,
    "data.crop_in": "worker",
    "elastic.min": 2,
    "elastic.max": 2,
    "elastic.cooldown_seconds": 0.2,
    "elastic.patience_seconds": 0.2,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    """Two nodes with places for two workers each, and a head for the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACE, str(tmp_path_factory.mktemp("trace") / "steps"))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        with LocalCluster(2, cpus=2, head_cpus=0) as nodes:
            ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
            yield nodes


@pytest.fixture
def quiet(cluster) -> Iterator[None]:
    """Nothing is left when the test is over."""
    yield
    eventually("all to be gone", lambda: not left() and ray.available_resources().get("CPU") == 4)


def eventually(what: str, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {left()}, {ray.available_resources()}"
        time.sleep(0.02)
    return answer


@pytest.fixture(scope="module", autouse=True)
def _threads_of_earlier_tests() -> None:
    """Such as that of a tracker which hangs on purpose."""
    EARLIER.update(threading.enumerate())


def left() -> list[str]:
    """What runs of this process have not taken away: actors, placement groups, reservations, words, threads."""
    from ray.experimental.internal_kv import _internal_kv_list

    found = [row["ActorClassName"] for row in actors().values() if row["State"] != "DEAD" and not row["Name"]]
    found += [name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]
    found += reservations()
    found += [key.decode() for key in _internal_kv_list(b"", namespace=NAMESPACE)]
    return found + [t.name for t in threading.enumerate() if t not in EARLIER and t.name.startswith("swav-ray")]


def reservations() -> list[str]:
    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return []
    return ray.get(coordinator.__ray_call__.remote(lambda itself: list(itself._ongoing_reqs)))


def row_with(run: ElasticRun, workers: int) -> dict[str, Any]:
    """The next row of an epoch that so many workers ended."""
    deadline = time.monotonic() + SECONDS
    while (row := run.next_result(1.0)) is None or row["workers"] != workers:
        assert time.monotonic() < deadline and not run.ended, f"no epoch with {workers} workers: {events(run)}"
    return row


def events(run: ElasticRun) -> list[str]:
    return [event["event"] for event in read_events(Storage(run.config.storage) / run.config.name)]


def test_rows_come_in_order_an_abort_is_done_in_a_moment_and_a_new_life_goes_on(quiet, shards, tmp_path):
    config = small_config(shards, str(tmp_path), "lives", **SETTINGS | {"epochs": 4})
    first = ElasticRun(config)
    rows = [first.next_result(SECONDS) for _ in range(3)]
    told = time.monotonic()
    assert first.abort()
    eventually("the workers' places", lambda: ray.available_resources().get("CPU") == 4, 3.0)
    assert not left() and time.monotonic() - told < 3.0
    assert first.abort(), "and again, after its end"
    rows += first.results()
    assert [row["epochs_done"] for row in rows] == list(range(1, len(rows) + 1)) and {row["workers"] for row in rows} == {2}
    assert first.ended and first.next_result() is None
    with pytest.raises(Stopped, match="run 'lives' was aborted"):
        first.result()

    second = ElasticRun(config)
    epochs = {row["epochs_done"]: row for row in second.results()}
    figures = second.result()
    assert next(iter(epochs)) == 2 and list(epochs) == sorted(epochs), "first what an earlier life had found and saved"
    assert list(epochs)[-1] == 4 and "workers" in epochs[4]
    assert figures["epochs_done"] == 4 and figures["probe/top1"] == epochs[4]["probe/top1"]
    probed = [row for row in read_metrics(Storage(config.storage) / config.name) if "probe/top1" in row]
    assert [(row["epochs_done"], row["probe/top1"]) for row in probed] == [(n, epochs[n]["probe/top1"]) for n in (2, 4)]
    assert [row["step"] for row in losses_of(config)] == list(range(1, 37))


def test_an_abort_while_it_starts_leaves_nothing_either(quiet, shards, tmp_path):
    def started(name: str) -> bool:
        return any(row["ActorClassName"] == name and row["State"] != "DEAD" for row in actors().values())

    config = small_config(shards, str(tmp_path), "short", **SETTINGS)
    for moment in (None, "ElasticController", "WarmTrainWorker"):
        run = ElasticRun(config)
        if moment:
            eventually(moment, lambda moment=moment: started(moment))
        told = time.monotonic()
        assert run.abort()
        eventually("its places", lambda: ray.available_resources().get("CPU") == 4, 3.0)
        assert not left() and time.monotonic() - told < 3.0, moment


def test_an_epoch_that_a_loss_sends_the_run_back_to_is_told_once(monkeypatch, shards, tmp_path):
    def lossy(config: Config, epoch: Callable[[dict[str, Any]], None], **_: Any) -> dict[str, Any]:
        for number in (1, 2, 1, 2, 3):
            epoch({"epochs_done": number})
        return {"epochs_done": 3}

    monkeypatch.setattr(nested, "pretrain", lossy)
    run = ElasticRun(small_config(shards, str(tmp_path), "lossy"))
    assert [row["epochs_done"] for row in run.results()] == [1, 2, 3] and run.result() == {"epochs_done": 3}


def test_runs_share_a_cluster_and_the_shares_change(quiet, shards, tmp_path):
    """2:2, then 4 for who is left, then 2:2 with a newcomer; nothing is lost on the way."""
    running: dict[int, ElasticRun] = {}

    def divide() -> None:
        places = shares(cluster_slots({"CPU": 1}), running, 1, 4)
        for number in running:
            set_share(f"trial-{number}", places[number])

    def start(number: int) -> None:
        config = small_config(shards, str(tmp_path), f"trial-{number}", **SETTINGS | {"elastic.min": 1, "elastic.max": 4})
        running[number] = None  # type: ignore[assignment]  # its share is told before it starts
        divide()
        running[number] = ElasticRun(config, share_key=config.name)

    start(0)
    start(1)
    assert worker_resources(running[0].config) == {"CPU": 1.0} and cluster_slots({"CPU": 1.0}) == 4
    row_with(running[0], 2)
    row_with(running[1], 2)
    first = running.pop(0)
    first.stop()
    with pytest.raises(Stopped, match=r"run 'trial-0' stopped at step \d+; the same command goes on from there"):
        first.result(SECONDS)
    saved = Checkpoints(Storage(first.config.storage) / "trial-0" / "checkpoints").newest()
    assert saved is not None and saved[1]["step"] == len(losses_of(first.config)), "all was saved"
    divide()
    row_with(running[1], 4)
    start(2)
    row_with(running[2], 2)
    row_with(running[1], 2)
    for run in running.values():
        assert run.abort()
    for number in range(3):
        drop_share(f"trial-{number}")
    grown = [name for name in events(running[1]) if name != "resumed"]
    assert grown[0] == "start" and grown[-1] == "share" and set(grown[1:-1]) == {"grow"}, grown
    assert [name for name in events(running[2]) if name != "resumed"] == ["start"]
    steps = [row["step"] for row in losses_of(running[1].config)]
    assert steps == list(range(1, len(steps) + 1))


@ray.remote(num_cpus=0)
class Trial:
    """As a sweep has them."""

    def __init__(self, config: Config) -> None:
        self.run = ElasticRun(config)

    def first_row(self) -> dict[str, Any] | None:
        return self.run.next_result()

    def pid(self) -> int:
        return os.getpid()


def test_a_killed_process_takes_its_run_with_it(quiet, shards, tmp_path):
    config = small_config(shards, str(tmp_path), "killed", **SETTINGS)
    trial = Trial.remote(config)
    assert ray.get(trial.first_row.remote())["workers"] == 2
    os.kill(ray.get(trial.pid.remote()), signal.SIGKILL)
    eventually("controller and workers to go", lambda: ray.available_resources().get("CPU") == 4, 5.0)
    assert not [row for row in actors().values() if row["State"] != "DEAD" and not row["Name"]]
    assert len(reservations()) == 1, "Ray does not take that back before it expires"
    clear_away(config)


def test_a_lost_controller_is_not_the_configurations_fault(quiet, shards, tmp_path):
    run = ElasticRun(small_config(shards, str(tmp_path), "lost", **SETTINGS))

    def pid() -> int:
        living = (row for row in actors().values() if row["ActorClassName"] == "ElasticController" and row["State"] == "ALIVE")
        return next((row["Pid"] for row in living), 0)

    os.kill(eventually("the controller", pid), signal.SIGKILL)
    with pytest.raises(InfraError, match=r"run 'lost' stopped: .*; the same command goes on from its last checkpoint"):
        run.result(SECONDS)


def test_a_full_disk_is_not_either(quiet, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SWAV_RAY_FAULTS", '[{"rank": 0, "step": 3, "kind": "full_disk"}]')
    run = ElasticRun(small_config(shards, str(tmp_path), "full", **SETTINGS | {"elastic.min": 1, "elastic.max": 1}))
    with pytest.raises(InfraError, match=r"checkpoint cannot be written: No space left on device"):
        run.result(SECONDS)


@pytest.mark.slow  # three failed starts, and a wait after each
def test_code_that_cannot_run_is(quiet, shards, tmp_path):
    run = ElasticRun(small_config(shards, str(tmp_path), "broken", **SETTINGS | {"backbone.arch": "no_such_package:x"}))
    with pytest.raises(UserError, match=r"run 'broken' stopped: no worker starts: .*no_such_package") as caught:
        run.result(SECONDS)
    assert not isinstance(caught.value, InfraError)


@pytest.mark.slow  # twenty starts of two processes
def test_twenty_aborted_runs_leave_nothing(quiet, shards, tmp_path):
    """Aborted while they start, while they train and after their end."""
    draw = random.Random(5)
    ends = ["start"] * 8 + ["training"] * 8 + ["over"] * 4
    draw.shuffle(ends)
    slowest = 0.0
    for number, end in enumerate(ends):
        config = small_config(shards, str(tmp_path), f"n{number}", **SETTINGS | {"epochs": 2 if end == "over" else 1000})
        run = ElasticRun(config)
        if end == "start":
            assert run.next_result(draw.uniform(0.0, 5.0)) is None
        elif end == "training":
            assert run.next_result(SECONDS) is not None
        else:
            run.result(SECONDS)
        told = time.monotonic()
        assert run.abort() and run.abort()
        eventually("its places", lambda: ray.available_resources().get("CPU") == 4, 3.0)
        slowest = max(slowest, time.monotonic() - told)
        assert not left(), (number, end)
    print(f"the slowest was gone after {slowest:.2f} s")
    assert slowest < 3.0


@pytest.mark.chaos
def test_a_killed_driver_takes_its_trials_with_it(quiet, cluster, shards, tmp_path):
    config = small_config(shards, str(tmp_path), "driven", **SETTINGS)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = (
        "import pathlib, ray; from tests.train.test_nested import Config, Trial\n"
        f"ray.init(address={cluster.address!r}, log_to_driver=False)\n"
        f"config = Config.model_validate_json(pathlib.Path({str(tmp_path / 'config.json')!r}).read_text())\n"
        "trial = Trial.remote(config)\n"
        "print(ray.get(trial.first_row.remote()), flush=True)\n"
        "ray.get(trial.first_row.remote())\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert driver.stdout is not None and "'workers': 2" in driver.stdout.readline()
    driver.kill()
    driver.wait()
    eventually("its trials to go", lambda: ray.available_resources().get("CPU") == 4, 10.0)
    eventually("its actors to go", lambda: not [r for r in actors().values() if r["State"] != "DEAD" and not r["Name"]], 10.0)
    clear_away(config)
