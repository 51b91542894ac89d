"""Runs on a real Ray: data and storage on S3, a worker killed mid-epoch; a driver killed and another worker count."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from swav_ray.data.storage import Storage
from swav_ray.data.stream import Position, Stream
from swav_ray.train.feed import MEASURED_STEPS, batches
from swav_ray.train.trainer import pretrain, resolve
from swav_ray.train.world import World
from tests.train.small import EPOCHS, ROWS, STEPS, losses_of, small_config, small_shards, train_here


def actors() -> list[dict]:
    from ray._private.state import actors as known

    return [{"state": actor["State"], "class_name": actor["ActorClassName"]} for actor in known().values()]


def _assert_history(rows: list[dict], reference: list[dict]) -> None:
    """Every image once an epoch, and the loss curve of the undisturbed run."""
    assert len(rows) == STEPS
    for epoch in range(EPOCHS):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    assert [row["ids"] for row in rows] == [row["ids"] for row in reference]
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, reference, strict=True))
    assert worst < 1e-4, worst


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.fixture(scope="module")
def trap(tmp_path_factory) -> Path:
    """The file that arms the mortal backbone; set before Ray starts, so that its workers know it."""
    place = tmp_path_factory.mktemp("trap") / "armed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWAV_RAY_TEST_TRAP", str(place))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield place


def test_a_worker_dies_and_everything_lies_on_s3(s3, trap, ray_cluster, shards, tmp_path):
    arch = {"backbone.arch": "tests.train.small:mortal_backbone"}
    reference = train_here(small_config(shards, str(tmp_path), "calm", **arch))
    small_shards(f"{s3}/small")
    on_ray = {"data.crop_in": "ray", "data.bridge_seconds": 0, "elastic.min": 2, "elastic.max": 2}
    config = resolve(small_config(f"{s3}/small", f"{s3}/runs", "s3", **arch, **on_ray))

    trap.touch()
    figures = pretrain(config)

    assert not trap.exists(), "no worker died, so the test shows nothing"
    assert figures["epochs_done"] == EPOCHS
    _assert_history(losses_of(config), reference)
    names = Storage(config.storage).list("s3/checkpoints")
    assert names[-1] == f"step-{STEPS:09d}"


def test_the_first_steps_are_made_here_and_the_stream_changes_over_to_ray_data(ray_cluster, shards, tmp_path):
    """The same batches as without Ray Data, which brings all but the first few; a stream let go of leaves nothing running."""
    config = small_config(shards, str(tmp_path), "fed", **{"data.crop_in": "ray", "data.bridge_seconds": 0})
    stream = Stream(config)
    start = Position(0, stream.steps.start(2))
    brought = []

    class Watched(Stream):
        def batches_of(self, start, legs, rank, world_size):
            for batch in super().batches_of(start, legs, rank, world_size):
                brought.append(batch.ids)
                yield batch

    fed = [batch.ids for batch in batches(Watched(config), start, World())]
    assert fed == [batch.ids for batch in stream.local(start)]
    assert brought == fed[MEASURED_STEPS:]

    again = batches(Watched(config), start, World())
    for _ in range(MEASURED_STEPS + 2):
        next(again)
    again.close()
    deadline = time.monotonic() + 60
    while any(actor["state"] == "ALIVE" and "SplitCoordinator" in actor["class_name"] for actor in actors()):
        assert time.monotonic() < deadline, "Ray Data goes on for nobody"
        time.sleep(0.2)


def test_a_driver_is_killed_and_another_worker_count_goes_on(shards, tmp_path):
    """`swav-ray pretrain` by SIGKILL of all its processes, then the same command with another --workers."""
    reference = train_here(small_config(shards, str(tmp_path), "calm"))
    config = small_config(shards, str(tmp_path), "killed")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"elastic"})))
    command = [sys.executable, "-m", "swav_ray", "pretrain", str(path), "--workers"]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS")}

    first = subprocess.Popen([*command, "2"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not (checkpoints / "step-000000012").exists():  # in the middle of the second epoch
        assert first.poll() is None, first.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint in time"
    family = [first, *psutil.Process(first.pid).children(recursive=True)]
    for process in family:
        process.kill()
    first.wait()
    assert len(losses_of(config)) < STEPS, "it had ended before it was killed, so the test shows nothing"

    subprocess.run([*command, "3"], env=environment, check=True, timeout=300, capture_output=True)
    _assert_history(losses_of(config), reference)
