"""Between a worker process and the controller: requests in, a heartbeat out.

The controller sets a request in the process; the training thread reads it at the end of a step, after all ranks have
agreed on the strongest one (`World.agree`), so no step waits for a remote call. The heartbeat is read by the controller
with its usual poll.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

LOOK_AFTER_SECONDS = 5.0
# Functions in which a thread waits for its peers: collectives, and the backward pass, at whose end gradients are reduced.
_WAITS = {"all_reduce", "broadcast", "gather", "gather_object", "broadcast_object_list", "result", "_engine_run_backward"}


class Request(IntEnum):
    """What the training is asked to do after its current step; of several, the largest counts."""

    NONE = 0
    YIELD = 1  # save a checkpoint, then wait to be released: the group is about to change
    STOP = 2  # save a checkpoint, then end the run as stopped


@dataclass(frozen=True)
class Beat:
    """Where a worker is: `step` of `steps` done, in `phase` for `seconds`; `parked` once it waits after a YIELD.

    After `LOOK_AFTER_SECONDS` in one phase it also says `where` in the code its training thread is, and whether that is
    in a collective, `waiting` for others.
    """

    step: int = 0
    steps: int = 0
    phase: str = "idle"
    seconds: float = 0.0
    parked: bool = False
    where: str = ""
    waiting: bool = False


class Signals:
    """One a process: written by the actor's main thread and by the training thread, never blocking either."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """As new, for the next training in this process."""
        self.request = Request.NONE
        self.spoilt = False  # this process must not serve again
        self._thread: int | None = None
        self._release = threading.Event()
        self._beat, self._since = Beat(), time.monotonic()

    def ask(self, request: Request) -> None:
        self.request = max(self.request, request)
        if request is Request.STOP:
            self.release()

    def enter(self, phase: str, step: int | None = None, steps: int | None = None) -> None:
        """The training thread begins ``phase``; a phase that does not end in time is what a stuck rank is known by."""
        self._thread = threading.get_ident()
        old = self._beat
        self._beat = Beat(old.step if step is None else step, old.steps if steps is None else steps, phase)
        self._since = time.monotonic()

    @property
    def step(self) -> int:
        return self._beat.step

    def beat(self) -> Beat:
        beat = replace(self._beat, seconds=time.monotonic() - self._since)
        frame = sys._current_frames().get(self._thread or 0) if beat.seconds > LOOK_AFTER_SECONDS else None
        if frame is None:
            return beat
        stack = traceback.extract_stack(frame)[-6:]  # a collective has wrappers around it and waits below it
        where = " < ".join(f"{Path(entry.filename).name}:{entry.lineno} {entry.name}" for entry in reversed(stack[-3:]))
        return replace(beat, where=where, waiting=any(entry.name in _WAITS for entry in stack))

    def park(self) -> None:
        """Wait, all saved, until :meth:`release` or until asked to STOP."""
        self._beat, self._since = replace(self._beat, phase="parked", parked=True), time.monotonic()
        self._release.wait()

    def release(self) -> None:
        self._release.set()


SIGNALS = Signals()
