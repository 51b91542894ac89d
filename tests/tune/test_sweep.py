"""A whole sweep on a real Ray through the command line: trials, leaderboard, best.yaml, and going on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from swav_ray.config import build_config
from swav_ray.data.storage import Storage
from tests.tune.sweeping import prepare, trials_of, tune, write_space


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = prepare(tmp_path_factory.mktemp("sweep"))
    write_space(place)
    return place


def test_a_sweep_ends_with_a_leaderboard_and_goes_on_with_a_larger_budget(folder):
    first = tune(folder, "space.yaml")
    assert first.returncode == 0, first.stderr
    assert "probe/top1" in first.stdout and "best.yaml" in first.stdout
    assert "Traceback" not in first.stderr
    before = trials_of(folder)
    assert all(trial.user_attrs["startup_seconds"] > 0 for trial in before)
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

    again = tune(folder, "space.yaml", "--trials", "3")
    assert again.returncode == 0, again.stderr
    after = trials_of(folder)
    assert [(trial.params, trial.value) for trial in after[:2]] == [(trial.params, trial.value) for trial in before]
    assert len(after) == 3 and after[2].state.name == "COMPLETE"
    assert "trial 0 started" not in again.stdout and "trial 2 started" in again.stdout


def test_a_batch_that_would_follow_the_share_of_the_cluster_is_refused(folder):
    write_space(
        folder, name="scaled", overrides={"epochs": 2, "elastic.scale_lr_with_batch": True}, resources={"workers": [1, 2]}
    )
    done = tune(folder, "space.yaml")
    assert done.returncode == 2 and "trials could not be compared" in done.stderr, done.stderr
    assert not (folder / "runs/scaled").exists()


def test_a_sweep_whose_folder_is_on_s3(folder, s3):
    write_space(folder, name="remote", budget={"trials": 1}, concurrency=1)
    away = ["--set", f"storage={s3}/runs"]
    done = tune(folder, "space.yaml", *away)
    assert done.returncode == 0, done.stdout + done.stderr
    place = Storage(f"{s3}/runs/remote")
    for name in ("study.journal", "report.html", "leaderboard.csv", "importances.json", "best.yaml", "trials/0000/config.yaml"):
        assert place.exists(name), name
    assert not (folder / "runs/remote").exists()
    again = tune(folder, "space.yaml", *away)
    assert again.returncode == 0 and "trial 0 started" not in again.stdout
    assert build_config(yaml.safe_load((folder / "best.yaml").read_text()), "best.yaml").storage == f"{s3}/runs"
