"""The outcome of a sweep as a table: on screen, as CSV, Parquet and Markdown, with the baselines as rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from swav_ray.tune.results import Result, accuracy, objectives, other_accuracy, results
from swav_ray.tune.space import Space

# Complete trials and the baselines compare at full length; a stopped trial's figure is an earlier epoch's, so it comes after.
ORDER = {"complete": 0, "baseline": 0, "pruned": 1, "running": 2, "waiting": 3, "failed": 4}
MOST_REASONS = 8  # on the screen
UNITS = (
    "Accuracies are shares of the held-out training images, ± one standard error (stderr). epochs_done: where the accuracy of "
    "a trial that is not complete was taken. parameters: weights of the model. seconds: wall clock, over all its lives."
)


def leaderboard(study: optuna.Study, space: Space, baselines: list[dict[str, Any]], seed: int) -> pd.DataFrame:
    """One row a trial and baseline, best first.

    Complete trials and baselines come by accuracy, then stopped trials by epochs reached and accuracy, then those still
    running, then the failed. Settings that a trial did not have are missing. Columns beside the settings: `rank`, `name`,
    `status` (complete, pruned, failed, running, baseline), `epochs_done`, the objective, `stderr`, the other accuracy,
    `parameters`, `seconds`, `gpu_hours`, `seed`, `run`, `verdict`, `ended`, `error`, and `pareto` (no other complete trial is
    at least as good in all objectives and better in one) where there are several objectives.
    """
    front = {trial.number for trial in study.best_trials} if len(objectives(space)) > 1 else None
    rows = [_row(result, space, seed, front) for result in results(study, space)]
    for baseline in baselines:
        rows.append(dict.fromkeys(("run", "verdict", "ended", "error"), "") | {"status": "baseline", **baseline})
    name, other = accuracy(space), other_accuracy(space)
    head = ["name", "status", "epochs_done", name, "stderr", other, *(["pareto"] if front is not None else [])]
    tail = ["parameters", "seconds", "gpu_hours", "seed", "run", "verdict", "ended", "error"]
    columns = [*head, *(key for key in space.params if key not in {*head, *tail}), *tail]
    rows.sort(key=lambda row: _key(row, name))
    table = pd.DataFrame([{column: row.get(column) for column in columns} for row in rows], columns=columns)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _row(result: Result, space: Space, seed: int, front: set[int] | None) -> dict[str, Any]:
    attrs = result.attrs
    return {
        **result.settings,
        "name": result.name,
        "status": result.status,
        "epochs_done": result.epochs_done,
        accuracy(space): result.value,
        "stderr": result.stderr,
        other_accuracy(space): result.other,
        "pareto": front is not None and result.number in front,
        **{key: attrs.get(key) for key in ("parameters", "seconds", "gpu_hours")},
        "seed": result.settings.get("seed", attrs.get("seed", seed)),
        **{key: attrs.get(key) or "" for key in ("run", "verdict", "ended", "error")},
    }


def _key(row: dict[str, Any], name: str) -> tuple[float, ...]:
    group, value = ORDER[row["status"]], row.get(name)
    epochs = row.get("epochs_done") or 0 if row["status"] in ("pruned", "running") else 0
    return (group, -epochs, math.inf if value is None or not math.isfinite(value) else -value)


def save(table: pd.DataFrame, folder: Path, title: str = "Leaderboard") -> None:
    """Write `leaderboard.csv`, `.parquet` and `.md`."""
    flat = table.copy()
    for column in flat.columns:  # lists and mixed kinds among the choices become text, which Parquet needs
        kinds = {type(value) for value in flat[column].dropna()}
        if len(kinds) > 1 or kinds & {list, dict}:
            flat[column] = flat[column].map(str, na_action="ignore")
    flat.to_csv(folder / "leaderboard.csv", index=False)
    flat.to_parquet(folder / "leaderboard.parquet", index=False)
    (folder / "leaderboard.md").write_text(_markdown(flat, title), encoding="utf-8")


def _markdown(flat: pd.DataFrame, title: str) -> str:
    """The columns that say something, numbers to the right."""
    shown = [column for column in flat.columns if any(text(value) for value in flat[column])]
    cells = [[_escape(text(value)) for value in row] for row in flat[shown].itertuples(index=False)]
    right = ["---:" if pd.api.types.is_numeric_dtype(flat[column]) else "---" for column in shown]
    lines = [shown, right, *cells]
    return f"# {title}\n\n{UNITS}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(cell: str) -> str:
    """A Markdown table's cell ends at a pipe or a line break, and `<` may begin HTML."""
    return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")


def screen(table: pd.DataFrame, space: Space, width: int = 100) -> Group:
    """The leaderboard for a terminal of ``width`` columns.

    What does not fit is left out whole: GPU-hours first, then the other accuracy, seconds, epochs, and the settings from the
    last; a line below names what was left out, and the reasons of trials that failed or were stopped follow.
    """
    name = accuracy(space)
    rows = table.to_dict("records")
    columns: dict[str, list[str]] = {"rank": [str(row["rank"]) for row in rows], "name": [_name(row) for row in rows]}
    columns[name] = [_score(row.get(name), row.get("stderr")) for row in rows]
    columns |= {key: [text(row.get(key)) for row in rows] for key in space.params}
    columns["epochs_done"] = [text(row.get("epochs_done")) for row in rows]
    columns["seconds"] = [text(row.get("seconds"), 0) for row in rows]
    columns[other_accuracy(space)] = [text(row.get(other_accuracy(space))) for row in rows]
    columns["gpu_hours"] = [text(row.get("gpu_hours"), 3) for row in rows]
    if "pareto" in table:
        columns["pareto"] = ["yes" if row["pareto"] is True else "" for row in rows]
    columns = {key: cells for key, cells in columns.items() if any(cells) or key == name}
    heads = {key: _head(key, {*columns, *table.columns}) for key in columns}
    wide = {key: max(len(line) for line in [*heads[key].split("\n"), *columns[key]]) + 2 for key in columns}
    left_out = []
    for key in ["gpu_hours", other_accuracy(space), "seconds", "epochs_done", *reversed(list(space.params))]:
        if sum(wide.values()) > width and key in wide:
            del wide[key]
            left_out.append(key)
    view = Table(title=f"{space.name}: {_what(name)} on held-out training images", box=None, padding=(0, 1), title_style="bold")
    for key in wide:
        view.add_column(heads[key], justify="left" if key == "name" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        style = {"baseline": "dim", "failed": "red", "pruned": "yellow"}.get(row["status"])
        view.add_row(*(Text(columns[key][number]) for key in wide), style=style)
    told = sorted((row for row in rows if row.get("error") or row.get("ended")), key=lambda row: not row.get("error"))
    notes = [f"{row['name']} {row['status']}: {row.get('error') or row.get('ended')}" for row in told[:MOST_REASONS]]
    if len(told) > MOST_REASONS:
        notes.append(f"and {len(told) - MOST_REASONS} more, see leaderboard.md")
    if left_out:
        notes.insert(0, f"left out for width: {', '.join(left_out)}; leaderboard.md has all")
    return Group(view, *(Text(note, style="dim") for note in notes))


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) + (f" ({row['status']})" if row["status"] not in ("complete", "baseline") else "")


def _what(name: str) -> str:
    return {"probe/top1": "linear probe", "knn/top1": "kNN"}.get(name, name)


def _score(value: Any, stderr: Any) -> str:
    if value is None or pd.isna(value):
        return "-"
    return f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None and pd.notna(stderr) else "")


def _head(key: str, known: set[str]) -> str:
    """A column's title in lines of about ten characters: the last part of a dotted key where no other has the same."""
    short = key.rsplit(".", 1)[-1]
    if sum(other.rsplit(".", 1)[-1] == short for other in known) > 1:
        short = key
    lines = [""]
    for part in short.replace("_", "_\0").replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > 10:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def text(value: Any, digits: int = 4) -> str:
    """A value as a reader wants it: whole numbers whole, others to ``digits`` figures, nothing for what is missing."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float) and not value.is_integer():  # whole numbers are floats where a baseline has none
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
