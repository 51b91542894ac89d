"""A whole sweep on a real Ray through the command line: trials, leaderboard, best.yaml, and going on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from swav_ray.config import build_config
from tests.train.small import small_config, small_shards

SPACE = {
    "name": "small",
    "params": {"num_prototypes": {"int": [10, 30]}, "temperature": {"loguniform": [0.05, 0.3]}},
    "baseline": [{"num_prototypes": 20, "temperature": 0.1}],
    "overrides": {"epochs": 2},
    "budget": {"trials": 2},
    "concurrency": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a recipe of our own (small digits, 4 epochs) and a space on it."""
    place = tmp_path_factory.mktemp("sweep")
    config = small_config(small_shards(str(place / "shards")), str(place / "runs"), "")
    values = config.model_dump(mode="json") | {"epochs": 4, "precision": "float32"}
    (place / "recipe.yaml").write_text(yaml.safe_dump(values))
    (place / "space.yaml").write_text(yaml.safe_dump(SPACE | {"recipe": str(place / "recipe.yaml")}))
    return place


def _tune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "swav_ray", "tune", "space.yaml", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def _trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "runs/small/study.journal")))
    return optuna.load_study(study_name="small", storage=storage).get_trials()


def test_a_sweep_ends_with_a_leaderboard_and_goes_on_with_a_larger_budget(folder):
    first = _tune(folder)
    assert first.returncode == 0, first.stderr
    assert "probe/top1" in first.stdout and "best.yaml" in first.stdout
    assert "Traceback" not in first.stderr
    before = _trials(folder)
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 2
    assert before[0].params == {"num_prototypes": 20, "temperature": 0.1}
    assert all(0 < trial.user_attrs["top1_stderr"] < 0.2 for trial in before)

    table = pd.read_parquet(folder / "runs/small/leaderboard.parquet")
    assert set(table["name"]) == {"trial 0", "trial 1", "random init", "raw 16x16 pixels"}
    assert table["probe/top1"].is_monotonic_decreasing

    best = build_config(yaml.safe_load((folder / "best.yaml").read_text()), "best.yaml")
    winner = max(before, key=lambda trial: trial.value)
    assert (best.num_prototypes, best.temperature) == (winner.params["num_prototypes"], winner.params["temperature"])
    assert best.epochs == 4, "best.yaml takes the recipe's own length, not the trials'"

    again = _tune(folder, "--trials", "3")
    assert again.returncode == 0, again.stderr
    after = _trials(folder)
    assert [(trial.params, trial.value) for trial in after[:2]] == [(trial.params, trial.value) for trial in before]
    assert len(after) == 3 and after[2].state.name == "COMPLETE"
    assert "trial 0 started" not in again.stdout and "trial 2 started" in again.stdout


def test_workers_that_no_trial_would_have_are_refused(folder):
    done = _tune(folder, "--set", "elastic.scale_lr_with_batch=true", "--set", "elastic.max=2")
    assert done.returncode == 2
    assert "--set: elastic.max: resources.workers says it for trials; set that" in done.stderr
