"""How many workers each of several runs may have, told to them while they go on.

Whoever starts the runs divides the places (:func:`shares`) and tells each its number (:func:`set_share`); the run's policy
reads it about once a second, grows up to it, and gives workers back when it falls.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from swav_ray.train.progress import forget, post, read

PREFIX = "#share/"
READ_EVERY = 1.0  # seconds


def shares(total: int, running: Iterable[int], least: int, most: int) -> dict[int, int]:
    """Divide ``total`` places fairly over runs of ``least`` to ``most`` workers each.

    Who gets any gets at least ``least``, and nobody more than one above another; what does not divide goes to the first
    by number, and where there are too few places for all, the last get none and wait.

    Args:
        running: numbers of the runs.

    Returns:
        Workers by number, for all of them.
    """
    numbers = sorted(set(running))
    served = numbers[: max(0, total) // least]
    each, rest = divmod(max(0, total), len(served)) if served else (0, 0)
    given = {number: min(most, each + (place < rest)) for place, number in enumerate(served)}
    return {number: given.get(number, 0) for number in numbers}


def set_share(key: str, workers: int) -> None:
    """Let the run that was started with ``share_key=key`` have at most so many workers from now on.

    One that is at work keeps `elastic.min` whatever its share; one without workers waits for a share of `elastic.min`.
    """
    post(PREFIX + key, {"workers": workers})


def drop_share(key: str) -> None:
    """Forget a share, when its run is over; one that still goes on has no limit then."""
    forget(PREFIX + key)


class Share:
    """A share as its run sees it: call it for the number of workers; None is no limit."""

    def __init__(self, key: str | None) -> None:
        self._key, self._read_at, self._workers = key, float("-inf"), None

    def __call__(self) -> int | None:
        now = time.monotonic()
        if self._key is not None and now - self._read_at >= READ_EVERY:
            told = read(PREFIX + self._key)
            self._read_at, self._workers = now, None if told is None else told["workers"]
        return self._workers
