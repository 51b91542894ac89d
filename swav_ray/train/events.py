"""What happened to a run's workers: one JSON line an event in `events.jsonl`, beside its metrics.

Starts, growths, drains, smaller shares, losses, stuck ranks, and how long training stood still each time.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from typing import Any

from swav_ray.data.storage import Storage
from swav_ray.train.gauges import Counters
from swav_ray.train.progress import post_events

FILE = "events.jsonl"
logger = logging.getLogger(__name__)


def read_events(run: Storage) -> list[dict[str, Any]]:
    """All events of a run, oldest first."""
    try:
        return [json.loads(line) for line in run.read(FILE).decode().splitlines()]
    except FileNotFoundError:
        return []


class EventLog:
    """Adds to a run's events without ever holding up or failing who tells them; the store may be slow or away."""

    def __init__(self, run_uri: str, counters: Counters | None = None) -> None:
        self._run, self._counters = Storage(run_uri), counters
        self._recent: list[dict[str, Any]] = []  # of this start of the run
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="swav-ray-events", daemon=True)
        self._thread.start()

    def add(self, event: str, **about: Any) -> None:
        logger.info("%s: %s", event, about)
        entry = {"time": round(time.time(), 3), "event": event, **about}
        self._recent.append(entry)
        if self._counters is not None:
            self._counters.tell(entry)
        post_events(self._run.uri, self._recent)
        self._queue.put(entry)

    def _work(self) -> None:
        lines: list[dict[str, Any]] | None = None
        while (item := self._queue.get()) is not None:
            try:
                lines = read_events(self._run) if lines is None else lines
                lines.append(item)
                self._run.write(FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
            except Exception as error:
                logger.warning("%s/%s: not written: %s", self._run.uri, FILE, error)

    def close(self) -> None:
        """Wait, at most ten seconds, until all is written."""
        self._queue.put(None)
        self._thread.join(10)
