"""One job at a time in a thread of its own; of those that come meanwhile only the newest waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Job = TypeVar("_Job")
logger = logging.getLogger(__name__)


class Background(Generic[_Job]):
    """Does ``work(job)`` behind its owner's back. The thread lives while there is something to do, and is a daemon.

    Args:
        work: called with each job that is not replaced by a newer one before its turn.
        name: of the thread.
    """

    def __init__(self, work: Callable[[_Job], None], name: str) -> None:
        self._work, self._name = work, name
        self._changed = threading.Condition()
        self._next: list[_Job] = []  # at most one
        self._busy = False
        self._error: Exception | None = None

    def submit(self, job: _Job) -> None:
        """Do ``job`` as soon as the one under way is done, instead of any that waits."""
        with self._changed:
            self._next = [job]
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def idle(self, timeout: float | None = None) -> bool:
        """Whether everything is done, after waiting for it at most ``timeout`` seconds (None: as long as it takes)."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)

    @property
    def error(self) -> Exception | None:
        """What the last job that was done failed with; None when it succeeded."""
        return self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._next:
                    self._busy = False
                    self._changed.notify_all()
                    return
                job = self._next.pop()
            try:
                self._work(job)
                self._error = None
            except Exception as error:
                logger.warning("%s", error)
                self._error = error
            del job  # its memory is free before the next one is at work
