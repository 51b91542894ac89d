"""Runs whose store goes away for a while: they end with every row trained."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from swav_ray.data import patience
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train import loop
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.loop import Training
from swav_ray.train.trainer import open_run, pretrain, resolve
from swav_ray.train.world import World
from tests.outage import Proxy
from tests.train.small import EPOCHS, ROWS, STEPS, losses_of, small_config, small_shards, train_here

SECONDS = pytest.mark.parametrize("seconds", [0.7, pytest.param(60.0, marks=pytest.mark.chaos)])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(small_shards(str(tmp_path_factory.mktemp("shards"))))


@pytest.fixture(scope="module")
def remote_shards(shards: Storage, s3: str) -> str:
    for name in shards.list():
        (Storage(s3) / "outage-shards").write(name, shards.read(name))
    return f"{s3}/outage-shards"


def state_of(step: int) -> dict[str, Any]:
    return {"weight": torch.full((1_000_000,), float(step))}


@SECONDS
def test_a_checkpoint_is_written_and_read_through_an_outage(s3: str, s3_proxy: Proxy, seconds: float) -> None:
    checkpoints = Checkpoints(Storage(s3) / f"outage-{seconds}", keep_last=1)
    checkpoints.save(1, state_of(1), {})
    with s3_proxy.outage(seconds) as back:
        checkpoints.save_async(2, state_of(2), {})
        assert not back.is_set(), "the training waited for the store"
        assert not checkpoints.settled(0)
        checkpoints.wait()
        assert back.is_set()
    assert checkpoints.folder.list() == ["step-000000002"]
    Checkpoints._in_memory.clear()
    with s3_proxy.outage(seconds):
        state, manifest = checkpoints.latest()
    assert manifest["step"] == 2 and (state["weight"] == 2).all()


def test_a_store_that_stays_away_fails_the_checkpoint_and_not_the_ones_before(
    s3: str, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(Storage(s3) / "outage-long")
    checkpoints.save(1, state_of(1), {})
    monkeypatch.setenv(patience.PATIENCE, "0.3")
    with s3_proxy.outage(60):
        checkpoints.save_async(2, state_of(2), {})
        with pytest.raises(UserError, match=r"step-000000002: checkpoint cannot be written: .*no answer in \d+ s and \d+ att"):
            checkpoints.wait()
    assert checkpoints.latest()[1]["step"] == 1


def _whole(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [row["ids"] for row in rows] == [row["ids"] for row in reference]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in reference], abs=1e-4)
    for epoch in range(EPOCHS):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS


@SECONDS
def test_a_run_outlives_an_outage(
    s3: str, s3_proxy: Proxy, shards: Storage, remote_shards: str, tmp_path: Path, seconds: float
) -> None:
    """The store goes when the first epoch ends: its checkpoint is to be written, the second epoch's shards to be read."""
    reference = train_here(small_config(shards.uri, str(tmp_path), "calm"))
    config = small_config(remote_shards, f"{s3}/outage-runs", f"run-{seconds}")
    gone = []

    def report(row: dict[str, Any]) -> None:
        if not gone:
            s3_proxy.cut()
            gone.append(threading.Timer(seconds, s3_proxy.restore))
            gone[0].start()

    training = Training(config, open_run(config), World(), report)
    training.run_to_end(training.stream.local(training.position))
    assert not gone[0].is_alive(), "the run was over before the store was back"
    _whole(losses_of(config), reference)
    assert training.checkpoints.newest()[1]["step"] == STEPS


def test_a_run_ends_when_its_last_checkpoint_is_complete(
    shards: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WORD_EVERY", 0.05)
    config = small_config(shards.uri, str(tmp_path), "run")
    gate, trained = threading.Event(), threading.Event()

    class Gated(Storage):
        def write(self, name: str, content: bytes) -> None:
            assert gate.wait(60)
            super().write(name, content)

    def report(row: dict[str, Any]) -> None:
        if row.get("epochs_done") == EPOCHS:
            trained.set()

    training = Training(config, open_run(config), World(), report)
    training.checkpoints.folder = Gated(training.checkpoints.folder.uri)
    run = threading.Thread(target=training.run_to_end, args=(training.stream.local(training.position),))
    run.start()
    assert trained.wait(60), "training waits for its checkpoints"
    run.join(0.5)
    assert run.is_alive() and training.checkpoints.newest() is None
    gate.set()
    run.join(60)
    assert training.checkpoints.newest()[1]["step"] == STEPS
    training.save(wait=True)  # nothing new, nothing to wait for


def test_a_run_whose_last_checkpoint_fails_says_so(shards: Storage, tmp_path: Path) -> None:
    config = small_config(shards.uri, str(tmp_path), "run", **{"checkpoint.every_steps": 1000})
    place = tmp_path / "run" / "checkpoints"

    def report(row: dict[str, Any]) -> None:
        if row.get("epochs_done") == EPOCHS:
            place.rename(tmp_path / "aside")
            place.write_bytes(b"a file where the folder was")

    training = Training(config, open_run(config), World(), report)
    with pytest.raises(UserError, match=f"step-{STEPS:09d}: checkpoint cannot be written: .*; earlier checkpoints are kept"):
        training.run_to_end(training.stream.local(training.position))
    training.log.close()
    assert Checkpoints(Storage(str(tmp_path / "aside"))).newest()[1]["step"] == STEPS // EPOCHS


@pytest.mark.chaos
def test_a_run_on_ray_outlives_a_minute(
    s3: str, s3_proxy: Proxy, shards: Storage, remote_shards: str, ray_cluster: None, tmp_path: Path
) -> None:
    reference = train_here(small_config(shards.uri, str(tmp_path), "calm"))
    on_ray = {"data.crop_in": "ray", "elastic.min": 2, "elastic.max": 2}
    config = resolve(small_config(remote_shards, f"{s3}/outage-runs", "on-ray", **on_ray))
    gone = []

    def show(row: dict[str, Any]) -> None:
        if not gone:
            s3_proxy.cut()
            gone.append(threading.Timer(60.0, s3_proxy.restore))
            gone[0].start()

    figures = pretrain(config, show)
    assert figures["epochs_done"] == EPOCHS
    assert gone and not gone[0].is_alive()
    _whole(losses_of(config), reference)
