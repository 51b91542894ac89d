"""Importances: over complete trials only, with a note wherever they mean little, and never an exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swav_ray.tune.importances import importances, save_importances
from tests.tune.studies import make_space, make_study, open_journal, trial

TWO = {"temperature": {"uniform": [0, 1]}, "epsilon": {"uniform": [0, 1]}}


def _answer(folder: Path, values: Any, kinds: str, params: dict[str, Any] = TWO, **more: Any) -> dict[str, Any]:
    """Of trials with settings drawn at random and an accuracy that ``values`` makes of them."""
    space, rng = make_space(params, **more), np.random.default_rng(0)
    study = open_journal(space, folder)
    for number, kind in enumerate(kinds):
        point = {key: float(rng.random()) for key in params}
        study.add_trial(trial(space, number, kind, value=values(point), params=point))
    return importances(study, space)


def test_the_setting_that_makes_the_accuracy_comes_first(tmp_path: Path) -> None:
    answer = _answer(tmp_path, lambda point: 0.9 - abs(point["epsilon"] - 0.3), "C" * 40)
    assert list(answer["importances"]) == ["epsilon", "temperature"] and answer["importances"]["epsilon"] > 0.7
    assert sum(answer["importances"].values()) == pytest.approx(1)
    assert answer["n"] == 40 and answer["note"] == "" and answer["target"] == "probe/top1"
    assert answer["evaluator"].startswith("PED-ANOVA (Optuna ") and "best 12%" in answer["evaluator"]
    save_importances(answer, tmp_path)
    assert json.loads((tmp_path / "importances.json").read_text()) == answer


def test_only_complete_trials_count(tmp_path: Path) -> None:
    """Stopped, failed and running ones would tell the opposite."""
    kinds = "C" * 30 + "PFR" * 20
    (tmp_path / "all").mkdir(), (tmp_path / "complete").mkdir()
    with_all = _answer(tmp_path / "all", lambda point: 0.9 - abs(point["epsilon"] - 0.3), kinds)
    complete = _answer(tmp_path / "complete", lambda point: 0.9 - abs(point["epsilon"] - 0.3), "C" * 30)
    assert with_all == complete and with_all["n"] == 30


@pytest.mark.parametrize(("n", "figures"), [(0, False), (1, False), (3, False), (4, True), (9, True), (10, True)])
def test_too_few_trials_are_named(n: int, figures: bool, tmp_path: Path) -> None:
    answer = _answer(tmp_path, lambda point: point["epsilon"], "C" * n)
    assert bool(answer["importances"]) == figures and answer["n"] == n
    assert ("too few" in answer["note"]) == (n < 4) and ("only" in answer["note"]) == (4 <= n < 10)


def test_a_setting_that_never_varied_is_named_and_has_no_share(tmp_path: Path) -> None:
    space = make_space({"temperature": {"uniform": [0, 1]}, "epsilon": {"choice": [0.05]}})
    answer = importances(make_study(space, tmp_path, "C" * 12), space)
    assert list(answer["importances"]) == ["temperature"] and answer["note"] == "never varied among complete trials: epsilon"


def test_equal_accuracies_tell_nothing(tmp_path: Path) -> None:
    answer = _answer(tmp_path, lambda point: 0.9, "C" * 12)
    assert answer["importances"] == {} and "same accuracy" in answer["note"]


def test_conditional_settings_count_among_the_trials_that_had_them(tmp_path: Path) -> None:
    params = {"optimizer": {"choice": ["adamw", "lars"]}, "base_lr": {"uniform": [0, 1]}, "epsilon": {"uniform": [0, 1]}}
    space, rng = make_space(params), np.random.default_rng(1)
    spread = {key: param.distribution() for key, param in space.params.items()}
    study = open_journal(space, tmp_path)
    for number in range(40):
        point: dict[str, Any] = {"optimizer": ["adamw", "lars"][number % 2]}
        if number % 2:
            point["base_lr"] = float(rng.random())
        value = 0.5 + point.get("base_lr", 0.0) / 2
        study.add_trial(trial(space, number, "C", value=value, params=point, distributions={key: spread[key] for key in point}))
    answer = importances(study, space)
    assert list(answer["importances"]) == ["base_lr", "optimizer"] and answer["importances"]["base_lr"] > 0.3
    assert answer["note"] == "in no complete trial: epsilon"


def test_of_two_objectives_the_accuracy_is_explained(tmp_path: Path) -> None:
    answer = _answer(tmp_path, lambda p: 0.9 - abs(p["epsilon"] - 0.3), "C" * 40, objective=["probe/top1", "gpu_hours"])
    assert answer["target"] == "probe/top1" and answer["importances"]["epsilon"] > 0.7
