"""Progress from the workers to who started them, through Ray's own key-value store.

Rank 0 posts its newest figures, one value for all, and the row of each end of an epoch under a number of its own: of the
former the reader sees what it is in time for, of the latter every one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

NAMESPACE = b"swav_ray"
EVENTS, EPOCH = "#events", "#epoch/"  # added to a run's address
POLL_SECONDS = 0.5
Told = Callable[[dict[str, Any]], None]


def post(key: str, row: dict[str, Any]) -> None:
    """Make ``row`` the value of ``key``, as a run's address for its newest figures; cheap."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key.encode(), json.dumps(row).encode(), overwrite=True, namespace=NAMESPACE)


def read(key: str) -> dict[str, Any] | None:
    """What was last posted under ``key``."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(key.encode(), namespace=NAMESPACE)
    return None if value is None else dict(json.loads(value))


def forget(key: str, *, all_below: bool = False) -> None:
    """Remove ``key``, or every key that begins with it."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key.encode(), del_by_prefix=all_below, namespace=NAMESPACE)


def forget_run(run: str) -> None:
    """Remove whatever was posted of a run."""
    forget(run)
    forget(run + EVENTS)
    forget(run + EPOCH, all_below=True)


def post_events(run: str, events: list[dict[str, Any]]) -> None:
    """Make ``events`` those of a run's present start, oldest first."""
    post(run + EVENTS, {"events": events})


def post_epoch(run: str, row: dict[str, Any]) -> None:
    """Leave the row of an end of an epoch until it is read; after a loss the same epoch may come again."""
    post(f"{run}{EPOCH}{row['epochs_done']:09d}", row)


def take_epochs(run: str) -> list[dict[str, Any]]:
    """The rows left by :func:`post_epoch`, in order; each once."""
    from ray.experimental.internal_kv import _internal_kv_list

    rows = []
    for key in sorted(_internal_kv_list(f"{run}{EPOCH}".encode(), namespace=NAMESPACE)):
        row = read(key.decode())
        if row is not None:
            rows.append(row)
        forget(key.decode())
    return rows


class ProgressReader:
    """Reads what is posted of a run, in a thread, while inside ``with``; before and after it nothing is.

    Args:
        run: its address.
        show: called with the newest row whenever there is a new one.
        tell: called with each event.
        epoch: called with the row of each end of an epoch.
    """

    def __init__(self, run: str, show: Told | None, tell: Told | None = None, epoch: Told | None = None) -> None:
        self._run, self._show, self._tell, self._epoch = run, show, tell, epoch
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="swav-ray-progress", daemon=True)
        self._seen: dict[str, Any] | None = None

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        if self._epoch is not None:
            for row in take_epochs(self._run):
                self._epoch(row)
        newest = read(self._run) if self._show is not None else None
        if newest is not None and newest != self._seen and self._show is not None:
            self._seen = newest
            self._show(newest)
        told = read(self._run + EVENTS) if self._tell is not None else None
        if told is not None and self._tell is not None:
            for event in told["events"][self._told :]:
                self._tell(event)
            self._told = len(told["events"])

    def __enter__(self) -> ProgressReader:
        forget_run(self._run)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._look()
            forget_run(self._run)
