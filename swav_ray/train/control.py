"""A hand on a run: from another thread, or from the signals that a cluster and a user send."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Control:
    """Two requests to a run, made from any thread at any moment; the thread that runs it looks for them all the time."""

    def __init__(self) -> None:
        self._stop, self._abort = threading.Event(), threading.Event()

    def stop(self) -> None:
        """End after the next step, all saved."""
        self._stop.set()

    def abort(self) -> None:
        """End at once, nothing saved: the run is not worth going on with."""
        self._abort.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def aborted(self) -> bool:
        return self._abort.is_set()


@contextmanager
def stopped_by_signals(control: Control) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C stops the run; a second one acts as usual. Only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def first(number: int, frame: Any) -> None:
        control.stop()
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
