"""The outcome of a sweep as one self-contained HTML page; a view over the journal, also while the sweep runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
import yaml

from swav_ray.report.page import Page, pre, table_html
from swav_ray.tune import figures, landscape
from swav_ray.tune.findings import findings
from swav_ray.tune.importances import importances
from swav_ray.tune.leaderboard import UNITS, text
from swav_ray.tune.results import accuracy, objectives, results
from swav_ray.tune.space import Space


def write_report(
    study: optuna.Study, space: Space, baselines: list[dict[str, Any]], table: pd.DataFrame, path: str | Path
) -> None:
    """Write the page: what was found in words, the plots, the leaderboard, the space.

    Args:
        baselines: rows of :func:`~swav_ray.tune.baselines.measure_baselines`; lines in the history.
        table: of :func:`~swav_ray.tune.leaderboard.leaderboard`.
        path: the HTML file, about 5 MB: Plotly travels inside, nothing is loaded from anywhere.
    """
    rows = results(study, space)
    page = Page(space.name, "sweep")
    page.words("found", "What was found", findings(rows, space, baselines))
    for name, (title, caption, found) in _plots(study, space, baselines).items():
        page.plots(name, title, caption, found)
    page.add("table", "Leaderboard", UNITS, _leaderboard(table, space))
    page.add("space", "The space", "", pre(_space(space)))
    counts = ", ".join(f"{sum(row.status == s for row in rows)} {label}" for s, label in figures.NAMES.items())
    Path(path).write_text(page.html(counts), encoding="utf-8")


Plot = tuple[str, str, go.Figure | dict[str, go.Figure] | str]


def _plots(study: optuna.Study, space: Space, baselines: list[dict[str, Any]]) -> dict[str, Plot]:
    """Sections by id: title, what to see in it, and the figure(s), or plain words on why there is none."""
    rows, answer = results(study, space), importances(study, space)
    known = landscape.axes(rows, space)
    shown: dict[str, Plot] = {
        "history": (
            "Optimisation history",
            "Accuracy of each trial, bars of one standard error. A trial stopped early stands at its last rung, one without "
            "any accuracy at the foot.",
            figures.history(rows, space, baselines) or "No trial has been started.",
        )
    }
    if len(objectives(space)) > 1:
        front = {trial.number for trial in study.best_trials}
        caption = "Complete trials; the line joins those that no other beats in both."
        shown["cost"] = ("Accuracy against cost", caption, figures.cost(rows, space, front) or "No complete trial yet.")
    keys = landscape.pair(space, answer["importances"], known)
    surface = landscape.contour(rows, space, known[keys[0]], known[keys[1]]) if keys else None
    shown["contour"] = (
        f"{keys[0]} and {keys[1]}" if keys else "Contour",
        "Points are trials; between complete ones their distance-weighted mean, blank where none is near.",
        surface or ("No trial had both settings." if keys else "A contour needs two settings with trials."),
    )
    shown["slices"] = (
        "Slices",
        "Accuracy against each setting alone: crosses were stopped early and stand at their last rung.",
        landscape.slices(rows, space, known) or "No trial has an accuracy yet.",
    )
    shown["parallel"] = (
        "Parallel coordinates",
        "Each line is a trial, bright ones the most accurate, the best one thick, those stopped early dotted grey.",
        landscape.parallel(rows, space, known) or "No trial has an accuracy yet.",
    )
    shown["curves"] = (
        "Rung curves",
        "Accuracy at each epoch a trial was judged at; dashed where it was stopped.",
        figures.curves(rows, space) or "No trial was judged before its end.",
    )
    note = f" Mind: {answer['note']}." if answer["note"] else ""
    shown["importances"] = (
        "Importances",
        f"{answer['evaluator']}, of {answer['target']}, n = {answer['n']}.{note}",
        figures.importance_bars(answer) or "No importances to show.",
    )
    shown["timeline"] = (
        "Time line",
        "When each trial ran, by number; trials side by side in lanes.",
        figures.time_line(rows) or "No trial has recorded its times.",
    )
    return shown


def _leaderboard(board: pd.DataFrame, space: Space) -> str:
    name = accuracy(space)
    first = ["rank", "name", name]  # what a phone shows without scrolling
    columns = [*first, *(c for c in board.columns if c not in {*first, "stderr"} and any(text(v) for v in board[c]))]
    rows = board.to_dict("records")
    cells = [[text(row[column]) for column in columns] for row in rows]
    for row, line in zip(rows, cells, strict=True):
        if line[2] and text(row.get("stderr")):
            line[2] = f"{row[name]:.4f} ± {row['stderr']:.4f}"
    numbers = [[isinstance(row[c], int | float) or c == name for c in columns] for row in rows]
    return table_html(columns, cells, [row["status"] for row in rows], numbers, caption_of="table")


def _space(space: Space) -> str:
    # `study` may be a database's URL with a password in it.
    values = space.model_dump(mode="json", exclude_unset=True, exclude={"study"})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
