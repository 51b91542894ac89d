"""After a sweep with early stops, a NaN, crashes and a collapse: the journal says what the trials' own logs say."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.tune.sweeping import log_of, prepare, trials_of, tune, write_space

# The first is condemned by the collapse watch (nothing is told apart at a temperature of 50), the second diverges, the
# third completes, the fourth hardly learns and is stopped at the rung; every trial's process is killed once on its way.
POINTS = [
    {"temperature": 50.0, "base_lr": 0.01},
    {"temperature": 0.1, "base_lr": 1e30},
    {"temperature": 0.1, "base_lr": 0.3},
    {"temperature": 0.1, "base_lr": 1e-9},
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    place = prepare(tmp_path_factory.mktemp("truth"), crop_sizes=[28, 20])  # on smaller ones no trial is better than another
    write_space(
        place,
        params={"temperature": {"choice": [0.1, 50.0]}, "base_lr": {"choice": [0.01, 0.3, 1e30, 1e-9]}},
        baseline=POINTS,
        overrides={"epochs": 5, "start_warmup": 0.0, "final_lr": 0.0, "warmup_epochs": 1, "backbone.base_width": 8},
        scheduler={"kind": "asha", "first_rung": 2, "factor": 2},
        budget={"trials": 4},
        concurrency=1,
    )
    done = tune(place, "space.yaml", SWAV_RAY_FAULTS='[{"rank": 0, "step": 7, "kind": "kill"}]')
    assert done.returncode == 0, done.stdout + done.stderr
    return place, trials_of(place), done


def test_states(swept):
    _, trials, done = swept
    assert [trial.state.name for trial in trials] == ["PRUNED", "FAIL", "COMPLETE", "PRUNED"], done.stdout
    assert trials[0].user_attrs["ended"].startswith("stuck since epoch")
    assert "the loss is nan" in trials[1].user_attrs["error"]
    assert trials[3].user_attrs["ended"].startswith("epoch 2:")


def test_values_are_those_of_the_logs(swept):
    for trial in swept[1]:
        logged = {row["epochs_done"]: row["probe/top1"] for row in log_of(trial) if "probe/top1" in row}
        assert trial.intermediate_values == {epoch: value for epoch, value in logged.items() if epoch in (2, 4)}
        if trial.state.name == "COMPLETE":
            assert trial.value == logged[5] and set(logged) == {2, 4, 5}
        if trial.state.name == "PRUNED":
            assert trial.value == list(logged.values())[-1]
        for epoch, rung in trial.user_attrs.get("rungs", {}).items():
            assert rung["probe/top1"] == logged[int(epoch)] and rung["probe/top1_stderr"] > 0 and rung["knn/top1"] > 0


def test_epochs_and_steps_are_those_of_the_logs(swept):
    for trial in swept[1]:
        steps = [row["step"] for row in log_of(trial) if "loss" in row]
        assert steps == list(range(1, len(steps) + 1)), "a step was logged twice, or is missing"
        if trial.state.name != "FAIL":
            assert trial.user_attrs["epochs_done"] == len(steps) // 9 and trial.user_attrs["steps"] == len(steps)


def test_each_process_did_die_and_went_on(swept):
    place, trials, done = swept
    for trial in trials:
        if trial.number == 1:
            continue  # it diverged before
        assert list((place / "runs/small/trials" / f"{trial.number:04d}").glob("faults/*")), "no fault struck"
    assert "died" in done.stdout and "Traceback" not in done.stderr


def test_the_files_say_the_same(swept):
    place, trials, _ = swept
    folder = place / "runs/small"
    text = (folder / "leaderboard.md").read_text()
    assert all(f"trial {trial.number}" in text for trial in trials)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert (best["temperature"], best["base_lr"]) == (0.1, 0.3)
    assert json.loads((folder / "importances.json").read_text())["n"] == 1
    assert "<html" in (folder / "report.html").read_text()
    for trial in trials:
        config = yaml.safe_load((folder / "trials" / f"{trial.number:04d}" / "config.yaml").read_text())
        assert config["temperature"] == trial.user_attrs["settings"]["temperature"] and config["data"]["test"] == ""
