"""The page's plots of trials over time: history, rung curves, time line, importances, cost.

Ours rather than `optuna.visualization`, whose plots leave out PRUNED trials, error bars and the real values of ordered
choices. Colours are mid-tones that read on light and dark; everything else about the look stands in the page's templates.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from swav_ray.report.page import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, figure, safe
from swav_ray.tune.findings import score
from swav_ray.tune.leaderboard import text
from swav_ray.tune.results import Result, accuracy, ranked
from swav_ray.tune.space import Space

COLOURS = {"complete": BLUE, "pruned": ORANGE, "failed": RED, "running": GREEN, "waiting": GREY}
SYMBOLS = {"complete": "circle", "pruned": "x", "failed": "triangle-down", "running": "circle-open", "waiting": "square-open"}
DASHES = {"complete": "solid", "pruned": "dash", "failed": "dashdot", "running": "dot", "waiting": "dot"}
NAMES = {"complete": "complete", "pruned": "stopped early", "failed": "failed", "running": "running", "waiting": "waiting"}
BEST = PURPLE
AXIS_TITLES = {"probe/top1": "held-out accuracy (linear probe)", "knn/top1": "held-out accuracy (kNN)"}


def hover(row: Result) -> str:
    """A trial in a few lines."""
    lines = [f"<b>{safe(row.name)}</b> {NAMES[row.status]}", safe(score(row))]
    if row.epochs_done:
        lines.append(f"epochs done: {row.epochs_done}")
    lines += [f"{safe(key)}: {safe(text(value))}" for key, value in row.settings.items()]
    if row.reason:
        lines.append(safe(row.reason[:90]))
    return "<br>".join(lines)


def points(rows: list[Result], x: list[Any], y: list[Any], status: str, **more: Any) -> go.Scatter:
    """Markers of one status, its shape and colour."""
    marker = {"symbol": SYMBOLS[status], "color": COLOURS[status], "size": 9}
    shown = {"mode": "markers", "name": NAMES[status], "legendgroup": status, "hoverinfo": "text"}
    return go.Scatter(x=x, y=y, hovertext=[hover(row) for row in rows], marker=marker, **(shown | more))


def _line(places: list[tuple[float, float]], name: str, **more: Any) -> go.Scatter:
    x, y = [place[0] for place in places], [place[1] for place in places]
    return go.Scatter(x=x, y=y, mode="lines", line={"color": BEST, "width": 2} | more, name=name, hoverinfo="skip")


def errors(rows: list[Result]) -> dict[str, Any]:
    """One standard error up and down."""
    return {"type": "data", "array": [row.stderr or 0 for row in rows], "thickness": 1.2, "width": 0}


def history(rows: list[Result], space: Space, baselines: list[dict[str, Any]]) -> go.Figure | None:
    """Each trial's accuracy by number, the best so far, and the baselines as lines."""
    if not rows:
        return None
    name = accuracy(space)
    known = [row.value for row in rows if row.value is not None]
    levels = [(base["name"], base[name]) for base in baselines if base.get(name) is not None]
    heights = [*known, *(value for _, value in levels)] or [0.0, 1.0]
    floor = min(heights) - 0.06 * ((max(heights) - min(heights)) or 0.1)  # where trials without any accuracy stand
    traces = []
    for status in COLOURS:
        mine = [row for row in rows if row.status == status]
        if mine:
            y = [floor if row.value is None else row.value for row in mine]
            more = {"error_y": errors(mine)} if status == "complete" else {}
            traces.append(points(mine, [row.number for row in mine], y, status, **more))
    steps: list[tuple[float, float]] = []
    for row in rows:
        if row.status == "complete" and row.value is not None:
            steps.append((row.number, max(row.value, steps[-1][1]) if steps else row.value))
    if steps:
        steps.append((rows[-1].number, steps[-1][1]))
        traces.append(_line(steps, "best so far", shape="hv"))
    ends = [-0.5, rows[-1].number + 0.5]
    for (label, value), dash in zip(levels, ["dash", "dot", "dashdot", "longdash"] * len(levels), strict=False):
        line = {"color": GREY, "width": 1.5, "dash": dash}
        named = {"name": safe(f"{label} {value:.3f}"), "hoverinfo": "name"}
        traces.append(go.Scatter(x=ends, y=[value, value], mode="lines", line=line, **named))
    xaxis = {"title": "trial", "range": ends, "tickformat": "d"} | ({"dtick": 1} if len(rows) <= 12 else {})
    return figure(traces, 420, xaxis=xaxis, yaxis={"title": AXIS_TITLES.get(name, name)})


def curves(rows: list[Result], space: Space) -> go.Figure | None:
    """Accuracy at each rung; stopped trials dashed, the best one thick."""
    if not any(len(row.curve) > 1 or row.status != "complete" for row in rows if row.curve):
        return None
    best = ranked(rows)[:1]
    traces, told = [], set()
    for row in sorted(rows, key=lambda row: row in best):  # the best on top
        if not row.curve:
            continue
        kind = "best" if row in best else row.status
        colour, name = (BEST, f"best ({row.name})") if row in best else (COLOURS[row.status], NAMES[row.status])
        traces.append(
            go.Scatter(
                x=list(row.curve),
                y=list(row.curve.values()),
                mode="lines+markers",
                name=name,
                legendgroup=kind,
                showlegend=kind not in told,
                line={"color": colour, "width": 3 if row in best else 1.4, "dash": DASHES[row.status]},
                marker={"size": 7 if row in best else 5},
                hovertext=[f"<b>{safe(row.name)}</b> epoch {epoch}: {value:.4f}" for epoch, value in row.curve.items()],
                hoverinfo="text",
            )
        )
        told.add(kind)
    name, epochs = accuracy(space), sorted({epoch for row in rows for epoch in row.curve})
    xaxis = {"title": "epoch", "tickformat": "d"} | ({"tickvals": epochs} if len(epochs) <= 10 else {})
    return figure(traces, xaxis=xaxis, yaxis={"title": AXIS_TITLES.get(name, name)})


def time_line(rows: list[Result]) -> go.Figure | None:
    """When each trial ran, packed into as many lanes as ran side by side; one bar a life."""
    spans = [
        (start, row, end)
        for row in rows
        for start, end in row.attrs.get("spans") or []
        if start is not None and (end is None or end >= start)
    ]
    if not spans:
        return None
    begin, now = min(start for start, _, _ in spans), max(start if end is None else end for start, _, end in spans)
    unit, size = ("minutes", 60) if now - begin < 3 * 3600 else ("hours", 3600)
    lanes: list[float] = []
    bars: dict[str, list[tuple[int, Result, float, float]]] = {}
    for start, row, end in sorted(spans, key=lambda span: (span[0], span[1].number)):
        end = now if end is None else end
        lane = next((number for number, free in enumerate(lanes) if free <= start), len(lanes))
        lanes[lane:] = [end, *lanes[lane + 1 :]]
        bars.setdefault(row.status, []).append((lane + 1, row, (start - begin) / size, (end - start) / size))
    traces = [
        go.Bar(
            orientation="h",
            width=0.75,
            y=[lane for lane, *_ in bars[status]],
            base=[start for *_, start, _ in bars[status]],
            x=[length for *_, length in bars[status]],
            name=NAMES[status],
            text=[str(row.number) for _, row, *_ in bars[status]],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": "#fff"},
            hovertext=[f"{length:.1f} {unit}<br>{hover(row)}" for _, row, _, length in bars[status]],
            hoverinfo="text",
            marker={"color": COLOURS[status], "line": {"width": 1, "color": "rgba(128,128,128,.6)"}},
        )
        for status in COLOURS
        if status in bars
    ]
    yaxis = {"title": "side by side", "dtick": 1, "range": [len(lanes) + 0.5, 0.5], "tickformat": "d"}
    xaxis = {"title": f"{unit} since the first start"}
    return figure(traces, 150 + 42 * min(len(lanes), 12), barmode="overlay", xaxis=xaxis, yaxis=yaxis)


def importance_bars(answer: dict[str, Any]) -> go.Figure | None:
    """Shares of :func:`importances`, largest on top."""
    shares = answer["importances"]
    if not any(shares.values()):
        return None
    keys = list(reversed(shares))
    bars = go.Bar(
        orientation="h",
        y=[safe(key) for key in keys],
        x=[shares[key] for key in keys],
        text=[f"{shares[key]:.0%}" for key in keys],
        textposition="auto",
        marker={"color": COLOURS["complete"]},
        hoverinfo="skip",
    )
    xaxis = {"title": "share", "tickformat": ".0%", "range": [0, max(shares.values()) * 1.12]}
    return figure([bars], 110 + 34 * len(keys), xaxis=xaxis, yaxis={"type": "category"})


def cost(rows: list[Result], space: Space, front: set[int]) -> go.Figure | None:
    """Accuracy against GPU-hours of complete trials, the front that none beats in both as a line."""
    paid = [row for row in ranked(rows) if row.attrs.get("gpu_hours") is not None]
    if not paid:
        return None
    hours = [row.attrs["gpu_hours"] for row in paid]
    traces = [points(paid, hours, [row.value for row in paid], "complete", error_y=errors(paid))]
    edge = sorted((row.attrs["gpu_hours"], row.value or 0.0) for row in paid if row.number in front)
    if edge:
        ring = {"mode": "lines+markers", "marker": {"symbol": "circle-open", "size": 16, "color": BEST}}
        traces.append(_line(edge, "pareto").update(ring))
    name = accuracy(space)
    return figure(traces, xaxis={"title": "GPU-hours"}, yaxis={"title": AXIS_TITLES.get(name, name)})
