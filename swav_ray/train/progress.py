"""Progress from the workers to the terminal: rank 0 posts its newest figures in Ray's own key-value store."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

NAMESPACE = b"swav_ray"
EVENTS = "#events"  # added to a run's address
POLL_SECONDS = 0.5


def post(run: str, row: dict[str, Any]) -> None:
    """Make ``row`` the newest figures of a run; cheap, and never an error of the training."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(run.encode(), json.dumps(row).encode(), overwrite=True, namespace=NAMESPACE)


def post_events(run: str, events: list[dict[str, Any]]) -> None:
    """Make ``events`` those of a run's present start, oldest first."""
    post(run + EVENTS, {"events": events})


class ProgressReader:
    """Calls ``show`` in a thread with each new row of a run and ``tell`` with each event, while inside ``with``."""

    def __init__(
        self,
        run: str,
        show: Callable[[dict[str, Any]], None] | None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._key, self._show, self._tell = run.encode(), show, tell
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="swav-ray-progress", daemon=True)
        self._seen: bytes | None = None

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_get

        value = _internal_kv_get(self._key, namespace=NAMESPACE)
        if value is not None and value != self._seen and self._show is not None:
            self._seen = value
            self._show(json.loads(value))
        value = _internal_kv_get(self._key + EVENTS.encode(), namespace=NAMESPACE)
        if value is not None and self._tell is not None:
            events = json.loads(value)["events"]
            for event in events[self._told :]:
                self._tell(event)
            self._told = len(events)

    def __enter__(self) -> ProgressReader:
        from ray.experimental.internal_kv import _internal_kv_del

        for key in (self._key, self._key + EVENTS.encode()):
            _internal_kv_del(key, namespace=NAMESPACE)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._look()
