"""What a sweep will cost: measured on real steps, reckoned right, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swav_ray.tune.estimate import Cost, estimate, reckon, span
from swav_ray.tune.space import Space
from tests.train.small import small_config, small_shards

COST = Cost(step_seconds=0.5, scoring_seconds=10, steps_per_epoch=20, device="1 CPU", crowding=1.0)


def make_space(**changes: Any) -> Space:
    values: dict[str, Any] = {"name": "x", "recipe": "demo-digits", "params": {"temperature": {"uniform": [0.1, 0.2]}}}
    values |= {"overrides": {"epochs": 12, "warmup_epochs": 1, "queue_start_epoch": 2, "probe.every_epochs": 0}}
    values |= {"budget": {"trials": 9}, "concurrency": 2, "resources": {"gpus_per_worker": 0}}
    return Space.model_validate(values | changes)


def reckoned(cost: Cost = COST, **changes: Any) -> Any:
    space = make_space(**changes)
    return reckon(space, space.config({}, trial=True), cost)


def test_every_trial_to_its_end_is_the_most() -> None:
    found = reckoned()
    assert (found.trials, found.trial_seconds) == (9, 12 * 20 * 0.5 + 10)
    assert found.hours == pytest.approx(5 * 130 / 3600)  # nine trials, two at a time, are five rounds
    assert found.gpu_hours == 0 and found.expected_trial_seconds == 130


def test_early_stopping_takes_its_share_and_adds_its_scorings() -> None:
    """Of nine, three go on after epoch 3 and one after epoch 9; each rung is a scoring."""
    found = reckoned(scheduler="asha")
    assert found.rungs == (3, 9) and found.trial_seconds == 12 * 10 + 3 * 10
    assert found.expected_trial_seconds == pytest.approx((30 + 10) + (60 + 10) / 3 + (30 + 10) / 9)
    assert found.expected_hours == pytest.approx(9 * found.expected_trial_seconds / 2 / 3600)
    assert found.expected_hours < found.hours and "with early stopping after epochs 3, 9" in found.lines()[-1]


def test_gpus_and_workers_are_counted() -> None:
    found = reckoned(resources={"workers": [2, 4], "gpus_per_worker": 0.5})
    assert found.trial_seconds == 65 and found.gpus == 1
    assert found.gpu_hours == pytest.approx(9 * 65 / 3600)
    assert "if 2 workers are 2 times as fast" in found.lines()[1]


@pytest.mark.parametrize(
    ("budget", "trials", "hours"),
    [
        ({"hours": 1}, 55, 1),
        ({"hours": 0.001}, 1, 0.001),
        ({"trials": 4, "hours": 1}, 4, 2 * 130 / 3600),
        ({"trials": 4, "gpu_hours": 130 / 3600 * 3.01}, 3, 2 * 130 / 3600),
        ({"gpu_hours": 130 / 3600 * 7.01}, 7, 4 * 130 / 3600),
    ],
)
def test_the_budget_that_ends_first_counts(budget: dict[str, float], trials: int, hours: float) -> None:
    found = reckoned(budget=budget, resources={"gpus_per_worker": 1})
    assert (found.trials, found.hours) == (trials, pytest.approx(hours))


def test_a_budget_of_gpu_hours_without_gpus_is_said_to_have_no_end() -> None:
    found = reckoned(budget={"gpu_hours": 3})
    assert found.trials is None and "would not end" in found.lines()[-1]


def test_a_machine_with_too_few_cpus_takes_longer() -> None:
    crowded = Cost(**(COST.__dict__ | {"crowding": 4.0}))
    assert reckoned(crowded).trial_seconds == 4 * 130 and "4 times as long with 2 at a time" in reckoned(crowded).lines()[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (300, "5 min"), (4000, "67 min"), (9000, "2.5 h"), (500_000, "5.8 days")]
)
def test_times_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_real_steps_are_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(small_shards(str(tmp_path / "shards")), str(tmp_path / "runs"), "")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    before, threads = sorted(tmp_path.rglob("*")), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    space = make_space(recipe=str(recipe), overrides={"epochs": 3}, concurrency=64)
    found = estimate(space)
    assert 0 < found.cost.step_seconds < 10 and 0 < found.cost.scoring_seconds < 60 and found.cost.crowding > 1
    assert found.epochs == 3 and found.cost.steps_per_epoch > 0
    assert sorted(tmp_path.rglob("*")) == before and torch.get_num_threads() == threads
    assert all(line.isprintable() for line in found.lines())


def test_the_demo_is_not_prepared_in_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.chdir(tmp_path)
    found = estimate(make_space(overrides={"epochs": 12, "warmup_epochs": 1, "queue_start_epoch": 2, "backbone.base_width": 4}))
    assert found.cost.steps_per_epoch == 63 and list(tmp_path.iterdir()) == []
