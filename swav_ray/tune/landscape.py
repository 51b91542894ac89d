"""The page's plots over the settings: contour of two, a slice of each, parallel coordinates of all.

Each setting becomes an :class:`Axis` of plain positions first, so that logarithms, ordered choices, lists among the choices
and settings that only some trials had are drawn the same way everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from plotly.colors import sample_colorscale

from swav_ray.report.page import GREY, figure, safe
from swav_ray.tune.figures import COLOURS, errors, hover, points
from swav_ray.tune.leaderboard import text, wrapped
from swav_ray.tune.results import Result, ranked
from swav_ray.tune.space import Space

GRID = 48
REACH = 0.11  # of an axis: how far a trial speaks for its neighbourhood in the contour
SCALE = "Viridis"
UNUSED = -0.14  # height of "not used" below the axes of the parallel coordinates


@dataclass(frozen=True)
class Axis:
    """One setting as positions on a line: log10 of a logarithmic one, the index of a choice."""

    key: str
    positions: dict[int, float]  # trial number -> position; a trial without this setting is missing
    low: float
    high: float
    ticks: list[tuple[float, str]]  # none: an even scale of numbers
    ordered: bool  # neighbours mean something
    choice: bool  # few values, many trials on each

    def share(self, number: int) -> float:
        """Position between 0 and 1."""
        return (self.positions[number] - self.low) / ((self.high - self.low) or 1.0)

    def layout(self, title: bool = True) -> dict[str, Any]:
        pad = 0.3 if self.choice else 0.04 * ((self.high - self.low) or 1.0)  # room for the labels of the outer choices
        shown: dict[str, Any] = {"range": [self.low - pad, self.high + pad], "title": safe(self.key) if title else None}
        if self.ticks:
            shown |= {"tickvals": [at for at, _ in self.ticks], "ticktext": [label for _, label in self.ticks]}
        return shown


def axes(rows: list[Result], space: Space) -> dict[str, Axis]:
    """An axis for each setting that any trial had."""
    found = {key: _axis(key, [row for row in rows if key in row.trial.params]) for key in space.params}
    return {key: axis for key, axis in found.items() if axis is not None}


def _axis(key: str, rows: list[Result]) -> Axis | None:
    if not rows:
        return None
    spread = rows[-1].trial.distributions[key]
    sampled = {row.number: row.trial.params[key] for row in rows}
    values = {row.number: row.settings.get(key, sampled[row.number]) for row in rows}
    if isinstance(spread, CategoricalDistribution):
        labels = {index: text(choice) for index, choice in enumerate(spread.choices)}
        sampled = {number: spread.choices.index(value) for number, value in sampled.items()}
        ordered = False
    else:  # an ordered choice is sampled as its index, and the setting is what stands there
        labels, ordered = {}, True
    if labels or any(values[number] != sampled[number] for number in sampled):
        labels |= {int(sampled[number]): text(value) for number, value in values.items()}
        high = max(*labels, int(getattr(spread, "high", 0)))
        positions = {number: float(index) for number, index in sampled.items()}
        ticks = [(float(index), safe(label)) for index, label in sorted(labels.items())]
        return Axis(key, positions, 0.0, float(high), ticks, ordered, True)
    if getattr(spread, "log", False):
        positions = {number: math.log10(value) for number, value in sampled.items()}
        low, high_f = math.log10(spread.low), math.log10(spread.high)  # type: ignore[attr-defined]
        return Axis(key, positions, low, high_f, _log_ticks(low, high_f), True, False)
    positions = {number: float(value) for number, value in sampled.items()}
    return Axis(key, positions, float(spread.low), float(spread.high), [], True, False)  # type: ignore[attr-defined]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2, 5, 10, ... within; only powers of ten where that would be crowded, the ends where nothing round lies within."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    inside = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    inside = inside if len(inside) > 1 else [10**low, 10**high]
    return [(math.log10(value), text(value)) for value in inside]


def pair(space: Space, shares: dict[str, float], known: dict[str, Axis]) -> tuple[str, str] | None:
    """The two settings of the contour: K and temperature, else the two that mattered most; None if there is but one."""
    if {"num_prototypes", "temperature"} <= set(known):
        return "num_prototypes", "temperature"
    keys = sorted(known, key=lambda key: (-shares.get(key, 0.0), not known[key].ordered, list(space.params).index(key)))
    return (keys[0], keys[1]) if len(keys) > 1 else None


def contour(rows: list[Result], space: Space, x: Axis, y: Axis) -> go.Figure | None:
    """Accuracy over two settings: complete trials as coloured points, between them their weighted mean.

    The surface is blank where no trial is near, and absent for a choice without an order, where "between" means nothing.
    """
    both = [row for row in rows if row.number in x.positions and row.number in y.positions]
    complete = ranked(both)
    if not both:
        return None
    values = [row.value or 0.0 for row in complete]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    traces: list[Any] = []
    if len(complete) >= 3 and x.ordered and y.ordered and low < high:
        places = np.array([[x.share(row.number), y.share(row.number)] for row in complete])
        line = np.linspace(0, 1, GRID)
        gx, gy = x.low + line * (x.high - x.low), y.low + line * (y.high - y.low)
        # The colours' range is given twice: Plotly cannot share a `coloraxis` between a filled contour and markers, and draws
        # for ever when told to.
        look = {"zmin": low, "zmax": high, "colorscale": SCALE, "showscale": False, "hoverinfo": "skip"}
        contours = {"start": low, "end": high, "size": (high - low) / 12, "showlines": False}
        surface = _surface(places, np.array(values))
        traces.append(go.Contour(x=gx, y=gy, z=surface, contours=contours, connectgaps=False, opacity=0.75, **look))
    others = [(s, [row for row in both if row.status == s]) for s in ("pruned", "running", "failed")]
    traces += [points(mine, _at(x, mine), _at(y, mine), status) for status, mine in others if mine]
    if complete:
        bar = {"orientation": "h", "y": -0.2, "yanchor": "top", "thickness": 12, "title": {"text": "accuracy", "side": "top"}}
        colours = {"color": values, "cmin": low, "cmax": high, "colorscale": SCALE, "colorbar": bar, "showscale": low < high}
        symbols = ["star", *["circle"] * (len(complete) - 1)]
        sizes = [16, *[11] * (len(complete) - 1)]
        marker = colours | {"symbol": symbols, "size": sizes, "line": {"width": 1.5, "color": "#fff"}}
        shown = {"mode": "markers", "name": "complete (star: best here)", "hoverinfo": "text"}
        hovers = [hover(row) for row in complete]
        traces.append(go.Scatter(x=_at(x, complete), y=_at(y, complete), marker=marker, hovertext=hovers, **shown))
    return figure(traces, 500, xaxis=x.layout(), yaxis=y.layout())


def _at(axis: Axis, rows: list[Result]) -> list[float]:
    return [axis.positions[row.number] for row in rows]


def _surface(places_N2: NDArray[np.float64], values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian-weighted mean of the N trials on a (GRID, GRID) raster of the unit square, NaN beyond two and a half reaches."""
    line = np.linspace(0, 1, GRID)
    x_GG, y_GG = np.meshgrid(line, line)
    squares_NGG = (x_GG - places_N2[:, :1, None]) ** 2 + (y_GG - places_N2[:, 1:, None]) ** 2
    weights_NGG = np.exp(-squares_NGG / (2 * REACH**2))
    mean_GG = (weights_NGG * values_N[:, None, None]).sum(axis=0) / np.maximum(weights_NGG.sum(axis=0), 1e-300)
    mean_GG[squares_NGG.min(axis=0) > (2.5 * REACH) ** 2] = np.nan
    return mean_GG


def slices(rows: list[Result], space: Space, known: dict[str, Axis]) -> dict[str, go.Figure]:
    """For each setting: accuracy against its value; stopped trials at their last rung."""
    found = {}
    for key, axis in known.items():
        mine = [row for row in rows if row.number in axis.positions and row.value is not None]
        traces = []
        for status in COLOURS:
            here = [row for row in mine if row.status == status]
            if here:
                more = {"error_y": errors(here)} if status == "complete" else {}
                traces.append(points(here, _at(axis, here), [row.value for row in here], status, **more))
        if traces:
            found[key] = figure(traces, 260, xaxis=axis.layout(), yaxis={"title": "accuracy"}, showlegend=False)
    return found


def parallel(rows: list[Result], space: Space, known: dict[str, Axis]) -> go.Figure | None:
    """Each trial a line through all its settings to its accuracy.

    Drawn with plain lines: Plotly's own parallel coordinates need WebGL (and `eval`, which the page forbids), and know neither
    a missing value nor a stopped trial.
    """
    judged = [row for row in rows if row.value is not None]
    if not judged or not known:
        return None
    complete = ranked(judged)
    values = [row.value or 0.0 for row in complete or judged]
    low, high = min(values), max(values)
    traces: list[Any] = []
    stopped = [row for row in judged if row.status != "complete"]
    for row in [*stopped, *reversed(complete)]:  # the best on top
        ys = [_height(axis, row.number) for axis in known.values()]
        # Neither end of the scale: one cannot be seen on dark, the other on light.
        height = min(1.0, max(0.0, ((row.value or 0.0) - low) / ((high - low) or 1.0)))
        full = row.status == "complete"
        colour = sample_colorscale(SCALE, [0.24 + 0.62 * height])[0] if full else GREY
        line = {"color": colour, "width": 3.5 if complete and row is complete[0] else 1.8 if full else 1}
        line["dash"] = "solid" if full else "dot"
        look = {"mode": "lines", "hoverinfo": "text", "showlegend": False, "opacity": 0.9 if full else 0.5}
        traces.append(go.Scatter(x=list(range(len(ys) + 1)), y=[*ys, height], line=line, text=hover(row), **look))
    notes, ends = [], [*known.values(), None]
    for index, axis in enumerate(ends):
        title = "accuracy" if axis is None else axis.key
        notes.append(_note(index, 1.09, f"<b>{'<br>'.join(map(safe, wrapped(title)))}</b>", yanchor="bottom"))
        marks = [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if axis is None else _marks(axis)
        notes += [_note(index, at, label, xanchor="left", xshift=4) for at, label in marks]
    if any(row.number not in axis.positions for row in judged for axis in known.values()):
        notes.append(_note(-0.35, UNUSED, "not used", xanchor="left"))
    lines = [{"type": "line", "x0": i, "x1": i, "y0": -0.02, "y1": 1.02, "line": {"color": GREY}} for i in range(len(ends))]
    hidden = {"visible": False, "fixedrange": True}
    spans = {"xaxis": hidden | {"range": [-0.35, len(ends) - 0.4]}, "yaxis": hidden | {"range": [-0.2, 1.42]}}
    return figure(traces, 440, annotations=notes, shapes=lines, meta={"min_width": 95 * len(ends)}, **spans)


def _height(axis: Axis, number: int) -> float:
    """Where a trial crosses an axis: a choice a little beside its label, so that lines of the same choice stay apart."""
    if number not in axis.positions:
        return UNUSED
    return axis.share(number) + (0.011 * (number % 5 - 2) if axis.choice else 0.0)


def _note(x: float, y: float, label: str, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "text": label, "showarrow": False} | more


def _marks(axis: Axis) -> list[tuple[float, str]]:
    """At most eight labels, as (share of the axis, text)."""
    ticks = axis.ticks or [(end, text(end)) for end in (axis.low, axis.high)]
    ticks = ticks if len(ticks) <= 8 else [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
    return [((at - axis.low) / ((axis.high - axis.low) or 1.0), label) for at, label in ticks]
