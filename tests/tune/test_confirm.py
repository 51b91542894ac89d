"""Confirming: who is run again, what the interval says, and that the test data is read here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna import create_study
from optuna.trial import TrialState, create_trial

from swav_ray.tune.confirm import Candidate, candidates, interval, lines, summary
from tests.tune.sweeping import prepare, trials_of, tune, write_space


def _study(values: list[float | None], baseline: int | None = 0) -> Any:
    study = create_study(direction="maximize")
    for number, value in enumerate(values):
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        attrs = {"settings": {"num_prototypes": number}, "baseline": number == baseline}
        study.add_trial(create_trial(state=state, value=value, user_attrs=attrs))
    return study


def test_the_best_and_the_baseline_are_candidates():
    names = [candidate.name for candidate in candidates(_study([0.8, 0.9, None, 0.7, 0.95]), 2)]
    assert names == ["trial 4", "trial 1", "trial 0 (baseline)"]


def test_a_baseline_that_is_the_best_is_there_once_and_one_that_was_stopped_counts_too():
    assert [c.name for c in candidates(_study([0.99, 0.9]), 1)] == ["trial 1", "trial 0 (baseline)"]
    assert [c.name for c in candidates(_study([None, 0.9]), 2)] == ["trial 1", "trial 0 (baseline)"]


def test_without_a_baseline_the_recipe_is_it():
    found = candidates(_study([0.8, 0.9], baseline=None), 1)
    assert [c.name for c in found] == ["trial 1", "the recipe (baseline)"] and found[-1].settings == {}


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Hits drawn with a known accuracy: of 95 % intervals about 95 % hold it."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(60):
        low, high = interval((draw.random((3, 300)) < 0.9).astype(float))
        held += low <= 0.9 <= high
    assert held >= 54


def test_the_interval_speaks_of_other_seeds_too():
    """Sure on every image, and another answer with each seed."""
    low, high = interval(np.stack([np.ones(200), np.zeros(200), np.zeros(200)]))
    assert low == 0.0 and high >= 2 / 3


def test_the_difference_is_of_the_same_images_and_seeds():
    draw = np.random.default_rng(0)
    base = (draw.random((3, 500)) < 0.8).astype(float)
    better = base.copy()
    for row in better:
        row[np.flatnonzero(row == 0)[:15]] = 1.0  # right where the baseline is, and on 15 more
    found = [Candidate(4, {"temperature": 0.2}), Candidate(0, {"temperature": 0.1}, baseline=True)]
    rows = {4: better, 0: base}
    table = summary(found, [0, 1, 2], lambda candidate, seed: rows[candidate.number][seed])
    assert table.loc[0, "difference"] == pytest.approx(15 / 500)
    assert table.loc[0, "difference_low"] > 0.005, "paired, three points are far from nothing"
    assert table.loc[0, "low"] < table.loc[1, "high"], "unpaired they could not be told apart"
    text = lines(table)
    assert text[0].startswith("  trial 4") and "to the baseline +0.0300 [+0.0" in text[0] and "baseline +" not in text[1]


def test_missing_runs_are_said_and_left_out():
    found = [Candidate(1, {}), Candidate(0, {}, baseline=True)]
    have = {(0, 0): np.ones(10), (1, 0): np.zeros(10), (0, 1): np.ones(10)}
    table = summary(found, [0, 1], lambda candidate, seed: have.get((candidate.number, seed)))
    assert table["seeds"].tolist() == [1, 2] and table.loc[0, "difference"] == -1.0
    nothing = summary(found, [0], lambda candidate, seed: None)
    assert lines(nothing)[0].endswith("no run completed")
    assert isinstance(nothing, pd.DataFrame)


def test_confirmed_on_real_runs_and_going_on_with_more_seeds(tmp_path, digits):
    """Test digits are scored on at the end; a run that is there is not made again."""
    place = prepare(tmp_path, **{"epochs": 2})
    write_space(place, overrides={"epochs": 1, "warmup_epochs": 0, "data.test": digits.test}, budget={"trials": 2})
    values = (place / "recipe.yaml").read_text().replace("test: ''", f"test: {digits.test}")
    assert digits.test in values
    (place / "recipe.yaml").write_text(values)
    write_space(place, overrides={"epochs": 1, "warmup_epochs": 0}, budget={"trials": 2}, confirm={"top_k": 1, "seeds": [5]})
    assert tune(place, "space.yaml").returncode == 0
    swept = trials_of(place)
    done = tune(place, "confirm", "space.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 0 (baseline)" in done.stdout
    runs = trials_of(place, journal="confirm.journal", study="small-confirm")
    assert {run.user_attrs["settings"]["seed"] for run in runs} == {5}
    assert all(run.user_attrs["epochs_done"] == 2 and run.user_attrs["test/rows"] == 1000 for run in runs)
    assert (place / "runs/small/confirm.md").read_text().count("over 1 seeds") >= 1
    assert [trial.value for trial in trials_of(place)] == [trial.value for trial in swept]
