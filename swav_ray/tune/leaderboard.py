"""The outcome of a sweep as a table: on screen, as CSV, Parquet and Markdown, with the baselines as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState
from rich.table import Table

from swav_ray.tune.space import Space


def leaderboard(study: optuna.Study, space: Space, baselines: list[dict[str, Any]], seed: int) -> pd.DataFrame:
    """One row a trial and baseline, best first; trials without a value last."""
    rows: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        rows.append(
            {
                "name": f"trial {trial.number}",
                "state": trial.state.name.lower(),
                space.objectives[0]: trial.value if trial.state == TrialState.COMPLETE else None,
                "stderr": attrs.get("top1_stderr"),
                "epochs": attrs.get("epochs_done"),
                "seconds": attrs.get("seconds"),
                "seed": seed,
                **space.values_of(trial.params),  # also a seed, where the sweep varies it
                "run": attrs.get("run", ""),
                "error": attrs.get("error", ""),
            }
        )
    for baseline in baselines:
        rows.append({"state": "baseline", "error": "", "run": "", **baseline})
    table = pd.DataFrame(rows).sort_values(space.objectives[0], ascending=False, na_position="last", kind="stable")
    table.insert(0, "rank", range(1, len(table) + 1))
    return table.reset_index(drop=True)


def save(table: pd.DataFrame, folder: Path) -> None:
    """Write `leaderboard.csv`, `.parquet` and `.md`."""
    flat = table.copy()
    for column in flat.columns:  # lists and mixed kinds among the choices become text, which Parquet needs
        kinds = {type(value) for value in flat[column].dropna()}
        if len(kinds) > 1 or kinds & {list, dict}:
            flat[column] = flat[column].map(str, na_action="ignore")
    flat.to_csv(folder / "leaderboard.csv", index=False)
    flat.to_parquet(folder / "leaderboard.parquet", index=False)
    header = " | ".join(flat.columns)
    lines = [f"| {header} |", "|" + " --- |" * len(flat.columns)]
    lines += [
        "| " + " | ".join(_text(value).replace("|", "\\|") for value in row) + " |" for row in flat.itertuples(index=False)
    ]
    (folder / "leaderboard.md").write_text("\n".join(lines) + "\n")


def screen(table: pd.DataFrame, space: Space) -> Table:
    """The leaderboard for the terminal."""
    view = Table(title=f"{space.name}: linear probe on held-out training images")
    view.add_column("rank", justify="right")
    view.add_column("")
    view.add_column("probe/top1", justify="right", no_wrap=True)
    for key in space.params:
        view.add_column(key, justify="right")
    view.add_column("epochs", justify="right")
    view.add_column("seconds", justify="right")
    for row in table.to_dict("records"):
        value = row[space.objectives[0]]
        error = f" ± {row['stderr']:.4f}" if pd.notna(row["stderr"]) else ""
        score = "-" if pd.isna(value) else f"{value:.4f}{error}"
        cells = [_text(row.get(key)) for key in space.params]
        note = (
            row["name"]
            if row["state"] in ("complete", "baseline")
            else f"{row['name']} ({row['state']}{': ' + row['error'] if row['error'] else ''})"
        )
        style = "dim" if row["state"] == "baseline" else None
        view.add_row(str(row["rank"]), note, score, *cells, _text(row["epochs"]), _text(row["seconds"], 0), style=style)
    return view


def _text(value: Any, digits: int = 4) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float) and not value.is_integer():  # whole numbers are floats where a baseline has none
        return f"{value:.{digits}g}" if digits else f"{value:.0f}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
