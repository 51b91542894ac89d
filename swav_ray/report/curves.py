"""The plots of a run: its curves over steps, and what its workers did over time."""

from __future__ import annotations

import bisect
import math
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from swav_ray.config import Config
from swav_ray.errors import without_credentials
from swav_ray.report.history import Curve, History
from swav_ray.report.page import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, figure, safe
from swav_ray.train.screen import told

SMALL = 250  # px high
MARKS = {  # of events: name, symbol, colour
    "start": ("start", "triangle-right", GREEN),
    "grow": ("growth", "triangle-up", BLUE),
    "drain": ("preempted with notice", "triangle-down", ORANGE),
    "share": ("smaller or larger share", "diamond", PURPLE),
    "lost": ("workers lost", "x", RED),
    "restart": ("restart", "circle-open", GREEN),
    "stuck": ("stuck rank ended", "x-open", RED),
    "late": ("checkpoint came late", "cross", ORANGE),
    "waiting": ("waiting for nodes", "hourglass-open", GREY),
    "stop": ("asked to stop", "square", GREY),
}
SIZES = ("start", "grow", "drain", "share", "restart")  # events after which the group has `workers`


def loss(history: History, config: Config) -> go.Figure | None:
    """The loss, what it would be if the predictions said nothing, and the spread of what was thinned."""
    curve = history.curves["loss"]
    if not curve.x:
        return None
    floor = math.log(config.num_prototypes)
    traces = [*_band(curve, BLUE), _line(curve.x, curve.means, "loss", BLUE)]
    level = {"color": GREY, "width": 1.5, "dash": "dash"}
    ends = [min(curve.x[0], 1), curve.x[-1]]
    traces.append(go.Scatter(x=ends, y=[floor] * 2, mode="lines", line=level, name=f"ln K = {floor:.3f}", hoverinfo="name"))
    return figure(traces, 360, xaxis=_steps(), yaxis={"title": "loss (nats)"})


def small_curves(history: History, config: Config) -> dict[str, go.Figure]:
    """Learning rate and the signs of a collapse, each that was logged."""
    K = config.num_prototypes
    wanted: list[tuple[str, str, float | None, dict[str, Any]]] = [
        ("lr", "learning rate", None, {"rangemode": "tozero"}),
        ("prototypes_in_use", "prototypes in use", K, {"range": [0, 1.06 * K]}),
        ("assignment_entropy", "assignment entropy / ln K", 1.0, {"range": [0, 1.06]}),
        ("embedding_std", "spread of the embeddings", 1.0, {"rangemode": "tozero"}),
    ]
    found = {}
    for name, title, healthy, axis in wanted:
        curve = history.curves[name]
        if not curve.x:
            continue
        traces = [*_band(curve, BLUE), _line(curve.x, curve.means, title, BLUE)]
        if healthy is not None:
            ends = [curve.x[0], curve.x[-1]]
            level = {"color": GREY, "width": 1.2, "dash": "dash"}
            traces.append(go.Scatter(x=ends, y=[healthy] * 2, mode="lines", line=level, hoverinfo="skip"))
        found[title] = figure(traces, SMALL, xaxis=_steps(), yaxis={"title": safe(title)} | axis, showlegend=False)
    return found


def probes(history: History) -> go.Figure | None:
    """Accuracies of the linear probe and of nearest neighbours with one standard error."""
    if not history.probes:
        return None
    traces = []
    for key, name, colour in (("probe", "linear probe", BLUE), ("knn", "nearest neighbours", GREEN)):
        rows = [row for row in history.probes if f"{key}/top1" in row]
        error = [row.get(f"{key}/top1_stderr", 0.0) for row in rows]
        traces.append(
            go.Scatter(
                x=[row["epochs_done"] for row in rows],
                y=[row[f"{key}/top1"] for row in rows],
                error_y={"type": "data", "array": error, "thickness": 1.2, "width": 0},
                mode="lines+markers",
                name=name,
                line={"color": colour, "width": 2},
                hovertext=[
                    f"epoch {row['epochs_done']}: {row[f'{key}/top1']:.4f} ± {e:.4f}"
                    for row, e in zip(rows, error, strict=True)
                ],
                hoverinfo="text",
            )
        )
    few = {"dtick": 1} if history.probes[-1]["epochs_done"] <= 12 else {}
    xaxis = {"title": "epochs done", "tickformat": "d", **few}
    return figure(traces, 340, xaxis=xaxis, yaxis={"title": "held-out accuracy"})


def throughput(history: History) -> go.Figure | None:
    """Images a second over the hours, interrupted wherever the workers were."""
    curve = history.curves["images_per_second"]
    if not any(time is not None for time in curve.time):
        return None
    breaks = [event["time"] for event in history.events if event["event"] in (*SIZES, "lost", "stop")]
    x: list[str | None] = []
    y: list[float | None] = []
    before = 0
    for time, value in zip(curve.time, curve.means, strict=True):
        if time is None:
            continue
        at = bisect.bisect(breaks, time)
        if x and at != before:
            x.append(None)
            y.append(None)
        before = at
        x.append(_clock(time))
        y.append(value)
    line = go.Scatter(x=x, y=y, mode="lines+markers", marker={"size": 4}, line={"color": BLUE, "width": 1.5}, name="images/s")
    return figure([line], 280, xaxis=_hours(history), yaxis={"title": "images a second", "rangemode": "tozero"})


def workers(history: History) -> go.Figure | None:
    """How many workers trained over the hours, and every event that changed it."""
    if not any(event["event"] in SIZES for event in history.events):
        return None
    times = [time for time in history.curves["images_per_second"].time if time is not None]
    x: list[float] = []
    y: list[int] = []
    for event in history.events:
        kind, now = event["event"], event["time"]
        if kind == "start" and y and y[-1]:  # the life before it ended without a word: when its last step was made
            x.append(max(x[-1], times[at - 1] if (at := bisect.bisect(times, now)) else x[-1]))
            y.append(0)
        if kind in SIZES or kind == "lost":
            x.append(now)
            y.append(event["workers"] if kind in SIZES else 0)
    if times and times[-1] > x[-1]:
        x.append(times[-1])
        y.append(y[-1])
    line = {"color": GREY, "width": 2, "shape": "hv"}
    traces: list[Any] = [
        go.Scatter(x=[_clock(time) for time in x], y=y, mode="lines", line=line, name="workers", hoverinfo="skip")
    ]
    for kind, (name, symbol, colour) in MARKS.items():
        mine = [event for event in history.events if event["event"] == kind]
        if mine:
            traces.append(
                go.Scatter(
                    x=[_clock(event["time"]) for event in mine],
                    y=[event["workers"] if kind in SIZES else _at(x, y, event["time"]) for event in mine],
                    mode="markers",
                    cliponaxis=False,
                    name=name,
                    marker={"symbol": symbol, "color": colour, "size": 11, "line": {"width": 1.5, "color": colour}},
                    hovertext=[f"{datetime.fromtimestamp(e['time'], UTC):%H:%M:%S} {safe(words(e)[:160])}" for e in mine],
                    hoverinfo="text",
                )
            )
    top = max(y)
    yaxis = {"title": "workers", "range": [0, 1.15 * top], "tickformat": "d", **({"dtick": 1} if top < 9 else {})}
    return figure(traces, 360, xaxis=_hours(history), yaxis=yaxis, meta={"min_width": 640})  # for the legend's sake


def words(event: dict[str, Any]) -> str:
    """An event in plain words."""
    if event["event"] == "start":
        return f"start: on {event['workers']} worker{'s' * (event['workers'] != 1)}"
    if event["event"] == "stop":
        return f"asked to stop: step {event['step']}, after a checkpoint"
    name = MARKS[event["event"]][0] if event["event"] in MARKS else event["event"]
    return f"{name}: {without_credentials(told(event))}"


def _at(x: list[float], y: list[int], time: float) -> int:
    at = bisect.bisect_left(x, time)
    return y[at - 1] if at else 0


def _line(x: list[float], y: list[float], name: str, colour: str) -> go.Scatter:
    mode = "lines+markers" if len(x) < 40 else "lines"
    return go.Scatter(x=x, y=y, mode=mode, name=name, line={"color": colour, "width": 2}, marker={"size": 4})


def _band(curve: Curve, colour: str) -> list[go.Scatter]:
    """From the least to the largest, where a point stands for several values."""
    if curve.thinned == 1:
        return []
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    nothing = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low = go.Scatter(x=curve.x, y=curve.low, **nothing)
    return [low, go.Scatter(x=curve.x, y=curve.high, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},.22)", **nothing)]


def _steps() -> dict[str, Any]:
    return {"title": "step"}


def _hours(history: History) -> dict[str, Any]:
    """The same stretch of time for both plots over it."""
    times = [event["time"] for event in history.events]
    times += [time for time in history.curves["images_per_second"].time if time is not None]
    pad = 0.02 * (max(times) - min(times)) or 1.0
    return {"title": "UTC", "type": "date", "range": [_clock(min(times) - pad), _clock(max(times) + pad)]}


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
