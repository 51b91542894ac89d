"""What a run has written down, read once, line by line, into as much as a page shows: a million steps take no more room."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swav_ray.data.storage import Storage
from swav_ray.train.events import FILE as EVENTS
from swav_ray.train.metrics import BAD_IMAGES, FILE

POINTS = 1000  # of a curve, at most twice that many
MOST_EVENTS, MOST_PROBES = 2000, 2000  # the newest are kept
MOST_BAD = 50  # unreadable images named; more are counted
LOGGED = ("loss", "lr", "prototypes_in_use", "assignment_entropy", "embedding_std", "images_per_second")
WELL = ("healthy", "warming_up")


@dataclass
class Curve:
    """Means of equally many neighbours each, with the least and the largest, of a line of any length."""

    x: list[float] = field(default_factory=list)  # of the last neighbour
    time: list[float | None] = field(default_factory=list)  # of the last neighbour, unix seconds
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    lost: int = 0  # values that are no finite number
    _sums: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _each: int = 1

    def add(self, x: float, value: float, time: float | None = None) -> None:
        if not math.isfinite(value):
            self.lost += 1
            return
        if self._counts and self._counts[-1] < self._each:
            self._sums[-1] += value
            self._counts[-1] += 1
            self.x[-1], self.time[-1] = x, time
            self.low[-1], self.high[-1] = min(self.low[-1], value), max(self.high[-1], value)
            return
        if len(self.x) == 2 * POINTS:
            self._halve()
        self.x.append(x)
        self.time.append(time)
        self.low.append(value)
        self.high.append(value)
        self._sums.append(value)
        self._counts.append(1)

    def _halve(self) -> None:
        self._each *= 2
        self.x, self.time = self.x[1::2], self.time[1::2]
        self.low = [min(pair) for pair in zip(self.low[::2], self.low[1::2], strict=True)]
        self.high = [max(pair) for pair in zip(self.high[::2], self.high[1::2], strict=True)]
        self._sums = [sum(pair) for pair in zip(self._sums[::2], self._sums[1::2], strict=True)]
        self._counts = [sum(pair) for pair in zip(self._counts[::2], self._counts[1::2], strict=True)]

    @property
    def means(self) -> list[float]:
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]

    @property
    def thinned(self) -> int:
        """How many values a point stands for."""
        return self._each


@dataclass
class History:
    """A run's own files, thinned.

    Attributes:
        curves: by the metric's name; x is the step.
        steps: done.
        probes: rows of probes, oldest first.
        first_time: of the first row that has one, unix seconds.
        last: the last row that says how the run is; empty before the first.
        unwell: (first step, last step, verdict) of each stretch that was not well.
        fewest, most: workers.
        events: of `events.jsonl`, oldest first; `events_before` older ones are not among them.
        bad: the first unreadable images, of `bad_count`.
    """

    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in LOGGED})
    steps: int = 0
    probes: list[dict[str, Any]] = field(default_factory=list)
    first_time: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    unwell: list[tuple[int, int, str]] = field(default_factory=list)
    fewest: int = 0
    most: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    events_before: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)
    bad_count: int = 0

    def take(self, row: dict[str, Any]) -> None:
        """Add a row of `metrics.jsonl`."""
        step = row["step"]
        self.steps = max(self.steps, step)
        for name, curve in self.curves.items():
            if name in row:
                curve.add(step, row[name], row.get("time"))
        if "probe/top1" in row:
            self.probes.append(row)
            if len(self.probes) > 2 * MOST_PROBES:
                self.probes = self.probes[1::2]
        if "workers" in row:
            self.fewest = min(self.fewest or row["workers"], row["workers"])
            self.most = max(self.most, row["workers"])
        if "verdict" in row:
            before, verdict = self.last.get("verdict"), row["verdict"]
            if verdict not in WELL and verdict == before:
                self.unwell[-1] = (self.unwell[-1][0], step, verdict)
            elif verdict not in WELL:
                self.unwell = [*self.unwell[-POINTS:], (step, step, verdict)]
            self.last = {key: value for key, value in row.items() if key != "ids"}
            self.first_time = row.get("time") if self.first_time is None else self.first_time


def read_history(run: Storage) -> History:
    """Everything of a run that a page shows but its configuration, its weights and its data; what is missing is left out."""
    found = History()
    for row in _lines(run, FILE):
        found.take(row)
    for event in _lines(run, EVENTS):
        found.events.append(event)
        if len(found.events) > 2 * MOST_EVENTS:
            found.events_before += MOST_EVENTS
            del found.events[:MOST_EVENTS]
    for image in _lines(run, BAD_IMAGES):
        found.bad_count += 1
        if len(found.bad) < MOST_BAD:
            found.bad.append(image)
    return found


def _lines(run: Storage, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file up to the first that is not whole; none if it is not there."""
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as scratch:
        try:
            file = run.fetch(name, Path(scratch)).open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:  # of a run killed while writing it
                    return
                yield row
