"""Work done ahead of its use: in one thread, or by several with the results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


class Ahead:
    """An iterable's items made in a thread, at most ``depth`` ahead of their use; the thread starts now."""

    def __init__(self, items: Iterable[Any], depth: int = 2) -> None:
        self._items = items  # closed, if it is a generator, by the thread that runs it
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="swav-ray-data", daemon=True).start()

    def close(self) -> None:
        """Nothing more is wanted; the thread ends after the item it is making."""
        self._closed.set()

    def __iter__(self) -> Iterator[Any]:
        while True:
            kind, value = self._ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def _put(self, entry: tuple[str, Any]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(entry, timeout=0.2)
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            for item in self._items:
                self._put(("item", item))
                if self._closed.is_set():
                    return
            self._put(("end", None))
        except BaseException as error:  # handed to the consumer, who raises it
            self._put(("error", error))
        finally:
            if isinstance(self._items, Generator):
                self._items.close()


def in_threads(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Generator[_R]:
    """``map`` by so many threads, results in order; at most two a thread are made ahead of their use.

    An error of ``items`` is raised after the results of those before it.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="swav-ray-crops")
    ahead: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
    error: Exception | None = None
    items = iter(items)
    try:
        while True:
            try:
                ahead.append(pool.submit(function, next(items)))
            except StopIteration:
                break
            except Exception as raised:
                error = raised
                break
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        if error is not None:
            raise error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def iter_ahead(items: Iterable[Any]) -> Generator[Any]:
    """``items`` made in a thread that ends with the generator."""
    ahead = Ahead(items)
    try:
        yield from ahead
    finally:
        ahead.close()


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """``size`` items at a time."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
