"""The outcome of a sweep as one self-contained HTML page; a view over the journal, also while the sweep runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from swav_ray.tune import figures, landscape
from swav_ray.tune.findings import findings
from swav_ray.tune.importances import importances
from swav_ray.tune.leaderboard import UNITS, text
from swav_ray.tune.page import PAGE, SCRIPT, STYLE, TEMPLATES
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
    parts = _plots(study, space, baselines)
    drawn: dict[str, Any] = {}
    body = [f"<p>{html.escape(paragraph)}</p>" for paragraph in findings(rows, space, baselines)]
    body = ['<section aria-labelledby="h-found"><h2 id="h-found">What was found</h2>', *body, "</section>"]
    for name, (title, caption, found) in parts.items():
        body.append(_section(name, title, caption, found, drawn))
    body.append(_table_html(table, space))
    body.append(_space_html(space))
    counts = ", ".join(f"{sum(row.status == s for row in rows)} {label}" for s, label in figures.NAMES.items())
    data = json.dumps({"figures": drawn, "templates": TEMPLATES}).replace("<", "\\u003c")  # `</script>` in a name ends nothing
    scripts = [get_plotlyjs(), SCRIPT]
    allowed = " ".join(_hash(script) for script in scripts)
    page = PAGE.format(
        title=html.escape(space.name),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}",
        style=STYLE,
        summary=f"{html.escape(counts)} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        body="\n".join(body),
        data=data,
        plotly=scripts[0],
        script=scripts[1],
    )
    Path(path).write_text(page, encoding="utf-8")


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


def _section(name: str, title: str, caption: str, found: Any, drawn: dict[str, Any]) -> str:
    if isinstance(found, str):
        content = f'<p class="none">{html.escape(found)}</p>'
    elif isinstance(found, dict):
        boxes = [_box(f"{name}-{number}", f"{title}: {key}", one, drawn) for number, (key, one) in enumerate(found.items())]
        content = f'<div class="grid">{"".join(boxes)}</div>'
    else:
        content = _box(name, title, found, drawn)
    return (
        f'<section aria-labelledby="h-{name}"><h2 id="h-{name}">{html.escape(title)}</h2>'
        f"<p>{html.escape(caption)}</p>{content}</section>"
    )


def _box(name: str, label: str, found: go.Figure, drawn: dict[str, Any]) -> str:
    plot = json.loads(found.to_json())
    plot["layout"].pop("template", None)  # the page's own, light or dark
    drawn[name] = plot
    least = plot["layout"].get("meta", {}).get("min_width", 0)  # what is wider than a phone scrolls
    size = f"height:{plot['layout']['height']}px;min-width:{least}px"
    inner = f'<div id="{name}" role="img" aria-label="{html.escape(label)}" style="{size}"></div>'
    return f'<div class="plot" tabindex="0">{inner}</div>'


def _table_html(table: pd.DataFrame, space: Space) -> str:
    name = accuracy(space)
    first = ["rank", "name", name]  # what a phone shows without scrolling
    columns = [*first, *(c for c in table.columns if c not in {*first, "stderr"} and any(text(v) for v in table[c]))]
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    lines = []
    for row in table.to_dict("records"):
        cells = {column: text(row[column]) for column in columns}
        if cells[name] and text(row.get("stderr")):
            cells[name] = f"{row[name]:.4f} ± {row['stderr']:.4f}"
        kinds = {c: ' class="num"' if isinstance(row[c], int | float) or c == name else "" for c in columns}
        line = "".join(f"<td{kinds[column]}>{html.escape(cell)}</td>" for column, cell in cells.items())
        lines.append(f'<tr class="{row["status"]}">{line}</tr>')
    return (
        '<section aria-labelledby="h-table"><h2 id="h-table">Leaderboard</h2>'
        f'<p id="units">{html.escape(UNITS)}</p><div class="scroll" tabindex="0"><table aria-describedby="units">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _space_html(space: Space) -> str:
    # `study` may be a database's URL with a password in it.
    values = space.model_dump(mode="json", exclude_unset=True, exclude={"study"})
    shown = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return (
        '<section aria-labelledby="h-space"><h2 id="h-space">The space</h2>'
        f'<pre class="scroll" tabindex="0">{html.escape(shown)}</pre></section>'
    )


def _hash(script: str) -> str:
    """Of an inline script, for the page's policy: these two may run, and nothing that a name could smuggle in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
