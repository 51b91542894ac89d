"""The outcome of a sweep: who is first, what failed and why, and the same table in every format."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from swav_ray.tune.leaderboard import leaderboard, save, screen
from swav_ray.tune.space import Space
from swav_ray.tune.study import next_trial, open_study, tell

BASELINES = [
    {"name": "random init", "probe/top1": 0.82, "stderr": 0.013},
    {"name": "raw 16x16 pixels", "probe/top1": 0.91, "stderr": 0.01},
]
PARAMS: dict[str, Any] = {
    "num_prototypes": {"logint": [30, 400]},
    "temperature": {"loguniform": [0.05, 0.3]},
    "crop_counts": {"choice": [[2, 2], [2, 4]]},
    "optimizer": {"choice": ["adamw", "lars"]},
}


def good(top1: float) -> dict[str, Any]:
    return {"probe/top1": top1, "probe/top1_stderr": 0.008, "epochs_done": 6, "seconds": 61.7, "run": "/runs/0000"}


RESULTS = [good(0.93), {"error": "diverged | loss nan"}, good(0.97), None, good(0.85), good(math.nan)]


def finished(
    results: list[dict[str, Any] | None], params: dict[str, Any] | None = None, baselines: list[dict[str, Any]] | None = None
) -> tuple[pd.DataFrame, Space]:
    """The leaderboard of a sweep whose trials ended with ``results``; None still runs."""
    values = {"name": "board", "recipe": "demo-digits", "params": params or PARAMS, "budget": {"trials": len(results)}}
    space = Space.model_validate(values)
    study = open_study(space, None)
    for result in results:
        trial = next_trial(study, space)
        if result is not None:
            tell(study, trial.number, result, space.objectives[0])
    return leaderboard(study, space, BASELINES if baselines is None else baselines, seed=31), space


def shown(table: pd.DataFrame, space: Space, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(screen(table, space))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_best_is_first_baselines_are_rows_and_what_failed_comes_last() -> None:
    table, _ = finished(RESULTS)
    names = ["trial 2", "trial 0", "raw 16x16 pixels", "trial 4", "random init", "trial 1", "trial 3", "trial 5"]
    assert list(table["name"]) == names
    assert list(table["rank"]) == list(range(1, 9))
    assert list(table["state"]) == [*["complete"] * 2, "baseline", "complete", "baseline", "fail", "running", "fail"]
    assert list(table["probe/top1"][:5]) == [0.97, 0.93, 0.91, 0.85, 0.82] and table["probe/top1"][5:].isna().all()
    assert list(table["stderr"][:5]) == [0.008, 0.008, 0.01, 0.008, 0.013]
    assert list(table["error"][5:]) == ["diverged | loss nan", "", "no probe/top1: nan"]
    assert not any(table["error"][:5])


def test_equal_trials_stand_in_the_order_they_were_tried() -> None:
    table, _ = finished([good(0.9 - number % 2 / 10) for number in range(40)], baselines=[])
    assert list(table["name"]) == [f"trial {number}" for number in (*range(0, 40, 2), *range(1, 40, 2))]


def test_a_row_holds_the_trials_settings_and_cost() -> None:
    table, _ = finished([good(0.9)])
    row = table[table["name"] == "trial 0"].iloc[0]
    assert row["crop_counts"] in ([2, 2], [2, 4]) and row["optimizer"] in ("adamw", "lars")
    assert 30 <= row["num_prototypes"] <= 400 and 0.05 <= row["temperature"] <= 0.3
    assert (row["epochs"], row["seconds"], row["run"], row["seed"]) == (6, 61.7, "/runs/0000", 31)


def test_a_sweep_over_the_seed_shows_each_trials_own() -> None:
    table, _ = finished([good(0.9)] * 6, params={"seed": {"int": [1000, 2000]}}, baselines=[])
    assert table["seed"].between(1000, 2000).all() and table["seed"].nunique() > 1


def test_csv_parquet_and_markdown_hold_the_same_table(tmp_path: Path) -> None:
    table, _ = finished(RESULTS)
    before = table.copy(deep=True)
    save(table, tmp_path)
    pd.testing.assert_frame_equal(table, before)  # lists stay lists in the caller's table
    csv, parquet = pd.read_csv(tmp_path / "leaderboard.csv"), pd.read_parquet(tmp_path / "leaderboard.parquet")
    for read in (csv, parquet):
        assert list(read.columns) == list(table.columns)
        for column in ("rank", "probe/top1", "stderr", "epochs", "seconds", "num_prototypes", "temperature"):
            pd.testing.assert_series_equal(read[column], table[column], check_dtype=False)
        for column in ("name", "state", "run", "error", "optimizer"):
            assert list(read[column].fillna("")) == list(table[column].fillna(""))
        lists = [value if isinstance(value, str) else None for value in read["crop_counts"]]
        assert lists == [str(value) if isinstance(value, list) else None for value in table["crop_counts"]]
    lines = (tmp_path / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(table)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.columns) + 1}  # each row its cells, no more
    assert "trial 2" in lines[2] and "0.97" in lines[2] and "diverged \\| loss nan" in "".join(lines)


@pytest.mark.parametrize(
    "params",
    [
        {"elastic.gpus_per_worker": {"choice": [None, 0, 1]}},
        {"data.log_ids": {"choice": [True, False]}},
        {"base_lr": {"choice": ["1e-3", 0.1]}},  # YAML 1.1 reads 1e-3 as text, the schema as a number
        {"freeze_prototypes_epochs": {"choice": [0, 0.5, True]}},
        {"epochs": {"int": [2, 9]}, "name": {"choice": ["a", "b"]}},  # keys that the table has too
        {"crop_counts": {"choice": [[2, 2], [2, 4]]}, "crops_for_assign": {"choice": [[0], [0, 1]]}},
    ],
)
@pytest.mark.parametrize("baselines", [BASELINES, []])
def test_any_kind_of_choice_can_be_saved_and_shown(
    params: dict[str, Any], baselines: list[dict[str, Any]], tmp_path: Path
) -> None:
    table, space = finished([good(0.9), good(0.8), good(0.7), good(0.6), None, {"error": "x"}], params, baselines)
    save(table, tmp_path)
    assert (
        len(pd.read_parquet(tmp_path / "leaderboard.parquet")) == len(pd.read_csv(tmp_path / "leaderboard.csv")) == len(table)
    )
    assert "0.9000" in shown(table, space, 120)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_fits_its_width(width: int) -> None:
    table, space = finished(RESULTS)
    text = shown(table, space, width)
    assert all(len(line) <= width for line in text.splitlines())


def test_the_screen_says_what_counts() -> None:
    table, space = finished(RESULTS)
    text = shown(table, space, 200)
    assert "0.9700 ± 0.0080" in text and "0.9100 ± 0.0100" in text
    assert "trial 1 (fail: diverged | loss nan)" in text and "trial 3 (running)" in text
    assert "raw 16x16 pixels" in text and "62" in text
    assert (
        text.index("trial 2")
        < text.index("trial 0")
        < text.index("raw 16x16")
        < text.index("random init")
        < text.index("trial 1")
    )


def test_a_score_and_its_error_stay_on_one_line_in_a_narrow_log() -> None:
    table, space = finished(RESULTS)
    assert "0.9700 ± 0.0080" in shown(table, space, 80)


def test_whole_numbers_are_shown_whole() -> None:
    """A column with a baseline's gap holds floats; a width of 12345 is not 1.234e+04."""
    table, space = finished([good(0.9)], params={"hidden_dim": {"choice": [12345]}})
    assert "12345" in shown(table, space, 120)


def test_a_value_without_an_error_bar_is_shown() -> None:
    table, space = finished([{"probe/top1": 0.9}], baselines=[])
    assert "0.9000" in shown(table, space) and "±" not in shown(table, space)


@pytest.mark.parametrize("results", [[None], [{"error": "no space left"}], [None, {"error": "no space left"}]])
def test_a_sweep_in_which_nothing_completed_still_has_a_table(results: list[Any], tmp_path: Path) -> None:
    for baselines in (BASELINES, []):
        table, space = finished(results, baselines=baselines)
        save(table, tmp_path)
        assert len(table) == len(results) + len(baselines)
        assert shown(table, space)
