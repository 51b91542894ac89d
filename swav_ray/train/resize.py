"""When to change the number of workers: decisions only, on plain numbers, so that every rule can be tested."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from swav_ray.config import Elastic


def fitting_size(slots: int, elastic: Elastic) -> int:
    """The largest allowed number of workers that ``slots`` places can hold; 0 if there is none."""
    sizes = elastic.sizes or range(elastic.min, elastic.max + 1)
    return max((size for size in sizes if elastic.min <= size <= min(slots, elastic.max)), default=0)


def growth_pays(workers: int, target: int, remaining_seconds: float | None, restart_seconds: float) -> bool:
    """Whether the time saved by ``target`` workers is more than a restart costs, at speed in proportion to workers.

    Args:
        remaining_seconds: of the run with ``workers``; None if not known yet, which says no.
        restart_seconds: without training steps, as last measured.
    """
    if target <= workers or remaining_seconds is None:
        return False
    return remaining_seconds * (1 - workers / target) > restart_seconds


@dataclass
class Debounce:
    """Remembers since when each of a set of things has been there without a break."""

    patience: float
    _since: dict[str, float] = field(default_factory=dict)

    def settled(self, present: Collection[str], now: float) -> set[str]:
        """Those of ``present`` that have been there at every call for ``patience`` seconds."""
        self._since = {name: self._since.get(name, now) for name in present}
        return {name for name, since in self._since.items() if now - since >= self.patience}


@dataclass
class Clock:
    """Measures a run from heartbeats: seconds a step, and seconds a restart costs.

    A restart is from the last step seen before to the first step seen after it.
    """

    restart_seconds: float = 5.0  # a guess until the first restart was seen
    _step: int = -1
    _at: float = 0.0
    _first: tuple[int, float] | None = None  # step and time from which the present speed is measured
    _left_at: float | None = None

    def restarting(self) -> None:
        """The group is being taken down; speed is measured anew afterwards."""
        self._left_at = self._left_at if self._left_at is not None else (self._at or None)
        self._first, self._step = None, -1

    def see(self, step: int, now: float) -> float | None:
        """Take in a heartbeat; the seconds of a restart when this is the first step after one."""
        if step == self._step:
            return None
        began = self._step >= 0
        self._step, self._at = step, now
        if not began:
            return None  # the step it resumes at, none done yet
        if self._first is None:
            self._first = (step, now)
            if self._left_at is not None:
                paused, self._left_at = now - self._left_at, None
                self.restart_seconds = (self.restart_seconds + paused) / 2
                return paused
        return None

    def remaining(self, steps: int) -> float | None:
        """Seconds to ``steps`` at the present speed; None before it is known."""
        if self._first is None or self._step <= self._first[0]:
            return None
        return (steps - self._step) * (self._at - self._first[1]) / (self._step - self._first[0])
