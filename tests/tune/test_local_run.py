"""A trial's training in a thread: rows at the ends of epochs, verdicts waited for, ends at any moment, and going on."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import torch

from swav_ray.data import patience
from swav_ray.data.storage import Storage
from swav_ray.errors import InfraError, StorageAwayError
from swav_ray.train import faults as injected
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.faults import Faults
from swav_ray.train.metrics import read_metrics
from swav_ray.train.signals import SIGNALS, Request
from swav_ray.tune import local_run
from swav_ray.tune.local_run import LocalRun
from swav_ray.tune.trial import LIVES, count_life
from tests.train.small import small_config, small_shards

LONG = 60.0  # seconds: a row that does not come is a failure


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.fixture
def config(shards, tmp_path):
    return small_config(shards, str(tmp_path), "run", **{"epochs": 3, "probe.at_epochs": [1, 2]})


def _rows(run: LocalRun) -> list[dict]:
    rows = []
    while not rows or not rows[-1].get("done"):
        run.go_on()
        rows.append(run.next_row(LONG))
        assert rows[-1] is not None, "no row came"
    return rows


def _newest(config) -> int:
    found = Checkpoints(Storage(config.storage) / config.name / "checkpoints").newest()
    return found[1]["step"] if found else 0


def test_each_epoch_gives_a_row_and_waits_for_the_verdict(config):
    run = LocalRun(config)
    first = run.next_row(LONG)
    assert first["epochs_done"] == 1 and 0 < first["probe/top1"] <= 1 and 0 < first["knn/top1"] <= 1
    assert first["parameters"] > 1000 and first["cpu_seconds"] > 0
    assert run.next_row(1.0) is None, "the second epoch began before the verdict on the first"
    rows = _rows(run)
    assert [row["epochs_done"] for row in rows] == [2, 3]
    assert rows[-1]["done"] and rows[-1]["probe/top1"] > 0 and "error" not in rows[-1]
    run.close()


def test_what_the_row_says_is_what_the_log_says(config):
    run = LocalRun(config)
    rows = {row["epochs_done"]: row for row in _rows(run)}
    logged = {row["epochs_done"]: row for row in read_metrics(Storage(config.storage) / "run") if "epochs_done" in row}
    assert set(logged) == {1, 2, 3}
    assert all(rows[epoch]["probe/top1"] == logged[epoch]["probe/top1"] for epoch in logged)
    run.close()


def test_stopped_at_a_verdict_it_ends_without_another_step(config):
    run = LocalRun(config)
    run.next_row(LONG)
    run.close()
    assert not run._thread.is_alive()
    assert SIGNALS.request is Request.NONE, "the next training in this process would stop after its first step"
    losses = [row for row in read_metrics(Storage(config.storage) / "run") if "loss" in row]
    assert losses[-1]["step"] == 9, "it went on into the second epoch"


def test_stopped_on_the_way_it_saves_and_goes_on_from_there(config):
    whole = LocalRun(config.model_copy(update={"name": "whole"}))
    wanted = _rows(whole)
    whole.close()

    run = LocalRun(config)
    run.next_row(LONG)
    run.go_on()
    while run.latest["steps"] < 10:  # the first figures of the second epoch
        assert run._thread.is_alive()
    run.close()
    assert _newest(config) >= 10
    again = LocalRun(config)
    rows = _rows(again)
    again.close()
    assert [row["epochs_done"] for row in rows] == [1, 2, 3], "what was measured before comes again, then the rest"
    for row, other in zip(rows, wanted, strict=True):
        assert row["probe/top1"] == other["probe/top1"]
    assert rows[-1]["loss"] == pytest.approx(wanted[-1]["loss"], abs=1e-9)


def test_stopped_in_the_last_step_of_an_epoch_it_saves_that_epoch(config):
    faults = Faults().fail_at(0, 8, "slow", seconds=3).of_run(Storage(config.storage) / config.name)
    run = LocalRun(
        config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 0})}), faults=faults
    )
    while not list((Path(config.storage) / config.name).glob("faults/*")):
        assert run._thread.is_alive()
    run.close()
    assert _newest(config) == 9


def test_a_run_that_had_ended_gives_its_figures_again(config):
    run = LocalRun(config)
    first = _rows(run)[-1]
    run.close()
    again = LocalRun(config)
    last = _rows(again)[-1]
    again.close()
    assert last["done"] and last["probe/top1"] == first["probe/top1"] and last["epochs_done"] == 3


def test_a_diverged_loss_is_an_error_with_its_verdict(config):
    run = LocalRun(config.model_copy(update={"base_lr": 1e30, "start_warmup": 1e30}))
    last = _rows(run)[-1]
    run.close()
    assert last["done"] and last["verdict"] == "diverged" and "the loss is nan" in last["error"]


def test_an_error_of_the_configuration_is_told_and_not_raised(config):
    run = LocalRun(config.model_copy(update={"backbone": config.backbone.model_copy(update={"arch": "resnet11"})}))
    last = run.next_row(LONG)
    run.close()
    assert last["done"] and "resnet11" in last["error"]


class _Broken(torch.nn.Module):
    num_features = 4
    error: type[Exception] = RuntimeError

    def forward(self, images):
        raise type(self).error("it broke\nand more")


def broken_backbone() -> torch.nn.Module:
    """For ``backbone.arch: tests.tune.test_local_run:broken_backbone``."""
    return _Broken()


@pytest.mark.parametrize(("error", "counts"), [(ValueError, True), (torch.OutOfMemoryError, True), (RuntimeError, False)])
def test_what_may_be_the_machines_fault_is_raised_and_what_is_the_codes_is_told(config, monkeypatch, error, counts):
    monkeypatch.setattr(_Broken, "error", error)
    arch = "tests.tune.test_local_run:broken_backbone"
    run = LocalRun(config.model_copy(update={"backbone": config.backbone.model_copy(update={"arch": arch})}))
    if counts:
        row = run.next_row(LONG)
        assert row["done"] and row["error"] == f"{error.__name__}: it broke"
    else:
        with pytest.raises(InfraError, match="RuntimeError: it broke"):
            run.next_row(LONG)
    run.close()
    assert "in forward" in (Path(config.storage) / "run" / "error.txt").read_text()


def test_a_trial_whose_processes_always_die_at_the_same_place_is_given_up(config):
    run = Storage(config.storage) / config.name
    assert [count_life(run, "driver 1") for _ in range(LIVES)] == [""] * LIVES
    assert "it failed 4 times in a row after step 0; the last time: killed without a word" in count_life(run, "driver 1")
    assert count_life(run, "driver 2") == "", "a driver that was killed is not the trial's fault"
    for _ in range(LIVES):
        count_life(run, "driver 2")
    run.write("error.txt", b"Traceback\nRuntimeError: shapes differ\n")
    assert count_life(run, "driver 2").endswith("the last time: RuntimeError: shapes differ")
    trained = LocalRun(config)
    _rows(trained)
    trained.close()
    assert count_life(run, "driver 2") == "", "it got further"


def test_a_store_that_is_away_is_raised_since_another_process_may_reach_it(config, monkeypatch):
    monkeypatch.setenv("SWAV_RAY_STORAGE_PATIENCE", "1")
    monkeypatch.setattr(patience, "_fault", patience._fault)  # the outage is this process's, and ends with the test
    monkeypatch.setattr(injected, "_storage_faults", [])
    faults = Faults().fail_at(0, 2, "storage_outage", seconds=600).of_run(Storage(config.storage) / config.name)
    run = LocalRun(config, faults=faults)
    with pytest.raises((InfraError, StorageAwayError)):
        while True:
            run.go_on()
            assert run.next_row(LONG) is not None
    run.close()


def test_one_process_at_a_time_trains_a_run(config, monkeypatch):
    monkeypatch.setattr(local_run, "LOCK_SECONDS", 0.5)
    folder = Path(config.storage) / config.name
    folder.mkdir()
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = LocalRun(config)
        with pytest.raises(InfraError, match="another process trains this run"):
            run.next_row(LONG)
        run.close()
    assert not (folder / "config.yaml").exists()
