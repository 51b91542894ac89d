"""Trials of several workers: stopped early their workers are free within seconds, and a whole sweep leaves nothing behind."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from swav_ray.tune.ledger import Ledger
from swav_ray.tune.space import Space
from swav_ray.tune.sweep import Sweep
from tests.train.small import small_shards
from tests.train.test_nested import EARLIER, left
from tests.tune.sweeping import ROOT, log_of, prepare

CPUS = 4
FREE_SECONDS = 3.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    EARLIER.update(threading.enumerate())  # such as a tracker's that hangs on purpose
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("recipe")
    return prepare(place, small_shards(str(place / "shards")), **{"epochs": 3})


def _space(recipe: Path, **changes: Any) -> Space:
    values = {
        "name": "nested",
        "recipe": str(recipe / "recipe.yaml"),
        "overrides": {"start_warmup": 0.0, "final_lr": 0.0, "backbone.base_width": 8, "elastic.patience_seconds": 0.2},
        "params": {"base_lr": {"choice": [0.01, 1e-9]}, "seed": {"int": [0, 1000]}},
        "baseline": [{"base_lr": 0.01, "seed": 31}, {"base_lr": 1e-9, "seed": 31}],
        "scheduler": {"kind": "asha", "first_rung": 2, "factor": 2},
        "sampler": "random",
        "budget": {"trials": 2},
        "resources": {"workers": 2},
    }
    return Space.model_validate(values | changes)


class _Clock(Ledger):
    """Notes when a trial is stopped, and when the workers' processors are free again."""

    freed: list[float]

    def end(self, number: int, row: dict[str, Any]) -> Any:
        stopped, started = bool(self.lives[number].stop), time.monotonic()
        state = super().end(number, row)
        if stopped:
            threading.Thread(target=self._watch, args=(started,), daemon=True).start()
        return state

    def _watch(self, since: float) -> None:
        while ray.available_resources().get("CPU", 0) < CPUS:
            time.sleep(0.02)
            if time.monotonic() - since > 60:
                return
        self.freed.append(time.monotonic() - since)


def test_a_stopped_trials_workers_are_free_within_seconds_and_nothing_is_left(cluster, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe)
    sweep = Sweep(_space(recipe))
    sweep.ledger_class, _Clock.freed = _Clock, []
    sweep.run()
    sweep.close()
    trials = sweep.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED"], [trial.user_attrs for trial in trials]
    assert _Clock.freed and _Clock.freed[0] < FREE_SECONDS
    assert not left() and ray.available_resources()["CPU"] == CPUS
    for trial in trials:
        assert {row["workers"] for row in log_of(trial) if "loss" in row} == {2}
        assert trial.user_attrs["rungs"]["2"]["knn/top1"] > 0


def test_two_trials_share_the_cluster_and_the_last_one_takes_what_is_free(cluster, recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    space = _space(
        recipe,
        name="shared",
        scheduler="none",
        baseline=[{"base_lr": 0.01, "seed": 1}, {"base_lr": 0.01, "seed": 2}],
        resources={"workers": [1, 4]},
        concurrency=2,
    )
    given: list[dict[int, int]] = []
    from swav_ray.tune import sweep as sweeps

    def noted(*arguments: Any) -> dict[int, int]:
        given.append(shares(*arguments))
        return given[-1]

    shares = sweeps.shares
    monkeypatch.setattr(sweeps, "shares", noted)
    sweep = Sweep(space)
    sweep.run()
    sweep.close()
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"] * 2
    assert {0: 2, 1: 2} in given and any(list(each.values()) == [4] for each in given)
    for trial in sweep.study.trials:
        assert max(row["workers"] for row in log_of(trial) if "loss" in row) <= 4
    assert not left()


@pytest.mark.slow  # twenty starts of two workers take minutes
def test_twenty_trials_leave_no_actor_placement_group_or_reservation(cluster, recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    sweep = Sweep(_space(recipe, name="twenty", budget={"trials": 20}, concurrency=2, overrides={"epochs": 3}))
    sweep.run()
    sweep.close()
    assert len(sweep.study.trials) == 20 and all(trial.state.is_finished() for trial in sweep.study.trials)
    assert not left() and ray.available_resources()["CPU"] == CPUS
