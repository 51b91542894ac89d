"""The outcome of a sweep: who is first, what was stopped or failed and why, and the same table in every format."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.distributions import IntDistribution
from rich.console import Console

from swav_ray.tune.leaderboard import leaderboard, save, screen
from swav_ray.tune.space import Space
from tests.tune.studies import BASELINES, PARAMS, make_space, open_journal, trial

# kind, accuracy, attributes of their own
TRIALS: list[tuple[str, float, dict[str, Any]]] = [
    ("C", 0.93, {}),
    ("F", 0.5, {"error": "diverged | loss nan\nat step 3", "verdict": "diverged"}),
    ("C", 0.97, {"seconds": 61.7, "parameters": 12345}),
    ("R", 0.99, {}),
    ("C", 0.85, {}),
    ("P", 0.99, {}),  # at epoch 6
    ("P", 0.995, {}),  # at epoch 3
    ("P", 0.98, {}),  # at epoch 6
]


def board(
    folder: Path, trials: list[tuple[str, float, dict[str, Any]]], space: Space | None = None, baselines: Any = BASELINES
) -> tuple[pd.DataFrame, Space]:
    space = space or make_space()
    study = open_journal(space, folder)
    for number, (kind, value, attrs) in enumerate(trials):
        study.add_trial(trial(space, number, kind, value=value, **attrs))
    return leaderboard(open_journal(space, folder), space, baselines, seed=31), space


def shown(table: pd.DataFrame, space: Space, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(screen(table, space, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_complete_trials_and_baselines_first_then_stopped_by_epochs_then_running_then_failed(tmp_path: Path) -> None:
    table, _ = board(tmp_path, TRIALS)
    order = ["trial 2", "trial 0", "raw 16x16 pixels", "trial 4", "random init", *(f"trial {n}" for n in (5, 7, 6, 3, 1))]
    assert list(table["name"]) == order
    assert list(table["rank"]) == list(range(1, 11))
    ends = ["complete"] * 2 + ["baseline", "complete", "baseline"] + ["pruned"] * 3 + ["running", "failed"]
    assert list(table["status"]) == ends
    assert list(table["probe/top1"][:5]) == [0.97, 0.93, 0.91, 0.85, 0.82]
    assert list(table["stderr"][:5]) == [0.008, 0.008, 0.01, 0.008, 0.013]
    rung = [round(value - 0.25 * math.exp(-epoch / 3), 4) for value, epoch in ((0.99, 6), (0.98, 6), (0.995, 3), (0.99, 3))]
    assert list(table["probe/top1"][5:9]) == rung, "a stopped trial stands at its last rung"
    assert list(table["epochs_done"][5:9]) == [6, 6, 3, 3] and list(table["stderr"][5:9]) == [0.011] * 4
    assert math.isnan(table["probe/top1"][9])
    assert table["error"][9] == "diverged | loss nan\nat step 3" and table["verdict"][9] == "diverged"
    assert table["ended"][5].startswith("rung 6: ") and not any(table["ended"][:5]) and not any(table["error"][:9])


def test_equal_trials_stand_in_the_order_they_were_tried(tmp_path: Path) -> None:
    table, _ = board(tmp_path, [("C", 0.9 - number % 2 / 10, {}) for number in range(40)], baselines=[])
    assert list(table["name"]) == [f"trial {number}" for number in (*range(0, 40, 2), *range(1, 40, 2))]


def test_a_row_holds_the_trials_settings_and_cost(tmp_path: Path) -> None:
    table, _ = board(tmp_path, TRIALS)
    row = table[table["name"] == "trial 2"].iloc[0]
    assert row["crop_counts"] in ([2, 2], [2, 4]) and row["optimizer"] in ("adamw", "lars")
    assert 30 <= row["num_prototypes"] <= 400 and 0.05 <= row["temperature"] <= 0.3
    assert (row["epochs_done"], row["seconds"], row["run"], row["seed"]) == (12, 61.7, "runs/board/trials/0002", 31)
    assert (row["parameters"], row["gpu_hours"]) == (12345, 0.03)
    assert row["knn/top1"] == pytest.approx(0.97 - 0.02 - 0.25 * math.exp(-2), abs=1e-4)


def test_a_sweep_over_the_seed_shows_each_trials_own(tmp_path: Path) -> None:
    space = make_space({"seed": {"int": [1000, 2000]}})
    table, _ = board(tmp_path, [("C", 0.9, {})] * 6, space, [])
    assert table["seed"].between(1000, 2000).all() and table["seed"].nunique() > 1


def test_an_ordered_choice_shows_its_value_and_a_missing_setting_nothing(tmp_path: Path) -> None:
    space = make_space({"queue_length": {"choice": [0, 64, 256]}, "epsilon": {"uniform": [0.01, 0.1]}})
    index = {"queue_length": IntDistribution(0, 2)}
    ordered = {"distributions": index, "params": {"queue_length": 2}, "settings": {"queue_length": 256}}
    table, _ = board(tmp_path, [("C", 0.9, ordered)], space, [])
    assert table["queue_length"][0] == 256 and table["epsilon"].isna().all()


def test_the_other_accuracy_can_be_the_objective(tmp_path: Path) -> None:
    space = make_space(objective="knn/top1")
    table, _ = board(tmp_path, [("C", 0.8, {}), ("C", 0.9, {}), ("P", 0.99, {})], space)
    assert list(table["name"][:2]) == ["trial 1", "trial 0"] and table["knn/top1"][0] == 0.9
    assert table["knn/top1"][4] == pytest.approx(0.97 - 0.25 * math.exp(-1), abs=1e-4), "the stopped one's last rung"
    assert table["probe/top1"][0] > 0.8


def test_with_two_objectives_the_front_is_marked(tmp_path: Path) -> None:
    space = make_space(objective=["probe/top1", "gpu_hours"])
    hours = [0.5, 0.2, 0.3, 0.1]
    values = [0.97, 0.95, 0.94, 0.90]
    trials = [("C", value, {"gpu_hours": hour}) for value, hour in zip(values, hours, strict=True)]
    table, _ = board(tmp_path, trials, space, [])
    assert list(table["name"]) == [f"trial {n}" for n in range(4)] and list(table["pareto"]) == [True, True, False, True]
    assert shown(table, space).count("yes") == 3


def test_csv_parquet_and_markdown_hold_the_same_table(tmp_path: Path) -> None:
    table, _ = board(tmp_path, TRIALS)
    before = table.copy(deep=True)
    save(table, tmp_path, "A sweep")
    pd.testing.assert_frame_equal(table, before)  # lists stay lists in the caller's table
    csv, parquet = pd.read_csv(tmp_path / "leaderboard.csv"), pd.read_parquet(tmp_path / "leaderboard.parquet")
    for read in (csv, parquet):
        assert list(read.columns) == list(table.columns)
        for column in ("rank", "probe/top1", "stderr", "epochs_done", "seconds", "num_prototypes", "temperature", "gpu_hours"):
            pd.testing.assert_series_equal(read[column], table[column], check_dtype=False)
        for column in ("name", "status", "run", "verdict", "ended", "error", "optimizer"):
            assert list(read[column].fillna("")) == list(table[column].fillna(""))
        lists = [value if isinstance(value, str) else None for value in read["crop_counts"]]
        assert lists == [str(value) if isinstance(value, list) else None for value in table["crop_counts"]]
    title, _, units, _, *lines = (tmp_path / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    assert title == "# A sweep" and "one standard error" in units
    assert len(lines) == 2 + len(table)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1  # each row its cells, no more
    assert "trial 2" in lines[2] and "0.97" in lines[2] and "diverged \\| loss nan at step 3" in lines[-1]
    assert "pareto" not in lines[0]


@pytest.mark.parametrize(
    "params",
    [
        {"elastic.gpus_per_worker": {"choice": [None, 0, 1]}},
        {"data.log_ids": {"choice": [True, False]}},
        {"base_lr": {"choice": ["1e-3", 0.1]}},  # YAML 1.1 reads 1e-3 as text, the schema as a number
        {"freeze_prototypes_epochs": {"choice": [0, 0.5, True]}},
        {"epochs": {"int": [2, 9]}, "name": {"choice": ["a", "b"]}},  # a key that the table has too
        {"crop_counts": {"choice": [[2, 2], [2, 4]]}, "crops_for_assign": {"choice": [[0], [0, 1]]}},
    ],
)
@pytest.mark.parametrize("baselines", [BASELINES, []])
def test_any_kind_of_choice_can_be_saved_and_shown(params: dict[str, Any], baselines: list[Any], tmp_path: Path) -> None:
    trials: list[Any] = [*[("C", 0.9, {})] * 4, ("R", 0.5, {}), ("F", 0.5, {})]
    table, space = board(tmp_path, trials, make_space(params), baselines)
    save(table, tmp_path)
    assert table["name"].is_unique and len(table) == 6 + len(baselines)
    parquet, csv = pd.read_parquet(tmp_path / "leaderboard.parquet"), pd.read_csv(tmp_path / "leaderboard.csv")
    assert len(parquet) == len(csv) == len(table)
    assert "0.9000" in shown(table, space, 120)


@pytest.mark.parametrize("width", [45, 80, 100, 200])
def test_the_screen_fits_its_width_and_names_what_it_left_out(width: int, tmp_path: Path) -> None:
    table, space = board(tmp_path, TRIALS, make_space(PARAMS | {"queue_length": {"int": [0, 400]}}))
    text = shown(table, space, width)
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    assert "0.9700 ± 0.0080" in text
    notes = {
        45: "queue_length, optimizer, crop_counts, temperature",
        80: "gpu_hours, knn/top1, seconds, epochs_done, queue_length, optimizer;",
        100: "left out for width: gpu_hours, knn/top1, seconds, epochs_done;",
    }
    if width == 200:
        assert "left out" not in text
    else:
        assert notes[width] in " ".join(text.split())


def test_the_screen_says_what_counts(tmp_path: Path) -> None:
    table, space = board(tmp_path, TRIALS)
    text = shown(table, space, 200)
    assert "0.9700 ± 0.0080" in text and "0.9100 ± 0.0100" in text
    assert "trial 3 (running)" in text and "trial 5 (pruned)" in text and "trial 5 pruned: rung 6" in text
    assert text.index("trial 1 failed: diverged | loss nan") < text.index("trial 5 pruned: ")
    places = [text.index(name) for name in ("trial 2", "trial 0", "raw 16x16", "trial 4", "random init", "trial 5", "trial 1 ")]
    assert places == sorted(places)


def test_reasons_that_would_fill_the_screen_are_left_to_the_file(tmp_path: Path) -> None:
    table, space = board(tmp_path, [("F", 0.5, {"error": f"reason {n}"}) for n in range(20)])
    text = shown(table, space)
    assert "reason 7" in text and "reason 8" not in text and "and 12 more, see leaderboard.md" in text


def test_whole_numbers_are_shown_whole(tmp_path: Path) -> None:
    """A column with a baseline's gap holds floats; 12345 prototypes are not 1.234e+04, nor 54321.5 seconds."""
    table, space = board(tmp_path, [("C", 0.9, {"seconds": 54321.5})], make_space({"num_prototypes": {"choice": [12345]}}))
    assert "12345" in shown(table, space, 120) and "54322" in shown(table, space, 120)


def test_a_value_without_an_error_bar_is_shown(tmp_path: Path) -> None:
    table, space = board(tmp_path, [("C", 0.9, {"top1_stderr": None, "rungs": {}})], baselines=[])
    assert "0.9000" in shown(table, space) and "±" not in shown(table, space)


@pytest.mark.parametrize("kinds", ["", "R", "F", "RF", "P"])
@pytest.mark.parametrize("baselines", [BASELINES, []])
def test_a_sweep_in_which_nothing_completed_still_has_a_table(kinds: str, baselines: list[Any], tmp_path: Path) -> None:
    table, space = board(tmp_path, [(kind, 0.9, {}) for kind in kinds], baselines=baselines)
    save(table, tmp_path)
    assert len(table) == len(kinds) + len(baselines)
    assert shown(table, space)
