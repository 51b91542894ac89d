"""A store that fails when told to: a TCP proxy in front of the tests' S3.

    with s3_proxy.outage(2.0):           # from here on every connection is reset, new ones are refused
        storage.read("x")                # ... and two seconds later it answers again
    with s3_proxy.flaky(0.05, seed=1) as struck:  # one request in twenty meets a fault; `struck` counts them by kind

Nothing in it knows HTTP, but for `answer`, which gives the next requests of one kind a reply of the test's own, and `flaky`.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator


def reply(status: int, code: str = "", body: bytes | None = None, length: int | None = None) -> bytes:
    """An HTTP response, of S3's error document by default."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode() if body is None else body
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {length or len(body)}"
    return head.encode() + b"\r\n\r\n" + body


METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
FAULTS: dict[str, bytes | None] = {  # what a flaky store does instead of answering, or amid its answer
    "500": reply(500, "InternalError"),
    "503": reply(503, "ServiceUnavailable"),
    "throttled": reply(503, "SlowDown"),
    "429": reply(429, "TooManyRequests"),
    "reset": None,
    "stall": None,  # no answer, and the connection stays open
    "body cut short": None,
    "body stalls": None,
}


class Proxy:
    """Passes bytes between a port of its own and ``target``; `cut` and `restore` take the store away and give it back."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.answered = 0  # replies of :meth:`answer` given so far
        self.received = 0  # bytes from the store so far
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._canned: list[tuple[bytes, bytes | None]] = []  # what a request begins with, and the reply
        self._hold: tuple[int, Callable[[], None]] | None = None  # upload bytes to let through, then whom to call
        self._sent = 0
        self._chance: Callable[[], str | None] = lambda: None  # the fault of the next request
        self._struck = collections.Counter[str]()
        self._spoiled: dict[socket.socket, str] = {}  # clients whose answer's body is to end early
        self._listener: socket.socket | None = None
        self.port = 0
        self.restore()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Refuse new connections and reset the open ones."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            listener.close()
        self.reset()

    def reset(self) -> None:
        """Reset the open connections; new ones are welcome."""
        with self._lock:
            gone, self._open = self._open, set()
        for connection in gone:
            _reset(connection)

    def restore(self) -> None:
        """Take connections again, on the same port, with no fault left."""
        with self._lock:
            self._canned, self._hold = [], None
            if self._listener is not None:
                return
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    @contextlib.contextmanager
    def outage(self, seconds: float) -> Iterator[threading.Event]:
        """The store is gone for ``seconds`` from now on; yields an event that is set when it is back."""
        back = threading.Event()

        def end() -> None:
            self.restore()
            back.set()

        self.cut()
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield back
        finally:
            timer.cancel()
            end()

    def answer(self, begins: bytes, *replies: bytes | None) -> None:
        """Give the next requests that begin so (``b"GET "``) these replies and close their connections; None: only reset."""
        with self._lock:
            self._canned += [(begins, reply) for reply in replies]

    @contextlib.contextmanager
    def flaky(self, share: float, seed: int) -> Iterator[collections.Counter[str]]:
        """That share of all requests meets a fault, each of `FAULTS` in turn; yields how often each struck."""
        random_, kinds, struck = random.Random(seed), itertools.cycle(FAULTS), collections.Counter[str]()

        def chance() -> str | None:
            return next(kinds) if random_.random() < share else None

        with self._lock:
            self._chance, self._struck = chance, struck
        try:
            yield struck
        finally:
            with self._lock:
                self._chance = lambda: None
                self._spoiled.clear()

    def hold(self, after_bytes: int, then: Callable[[], None]) -> None:
        """Let so many more bytes of requests through, then none, and call ``then``."""
        with self._lock:
            self._sent, self._hold = 0, (after_bytes, then)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
            gone = self._listener is None
        if gone:
            return _reset(client)
        try:
            server = socket.create_connection(self.target)
        except OSError:
            return _reset(client)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=self._pump, args=(server, client, False), name="proxy", daemon=True).start()
        self._pump(client, server, True)

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        try:
            while data := source.recv(1 << 18):
                if upward and (self._answered(source, data) or self._struck_by_chance(source, data) or self._held(len(data))):
                    return
                if not upward:
                    self.received += len(data)
                    if self._spoils(sink, data):
                        return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(sink)

    def _answered(self, client: socket.socket, data: bytes) -> bool:
        with self._lock:  # a request begins where a piece does: clients wait for the answer before they send the next
            place = next((i for i, (begins, _) in enumerate(self._canned) if data.startswith(begins)), None)
            if place is None:
                return False
            _, reply = self._canned.pop(place)
        self.answered += 1
        if reply is None:
            _reset(client)
        else:
            _say(client, reply)
        return True

    def _struck_by_chance(self, client: socket.socket, data: bytes) -> bool:
        if not data.startswith(METHODS):
            return False
        with self._lock:
            fault = self._chance()
            if fault is None:
                self._spoiled.pop(client, None)  # its last answer had no body
                return False
            if fault.startswith("body"):
                self._spoiled[client] = fault
                return False
            self._struck[fault] += 1
        if FAULTS[fault] is not None:
            _say(client, FAULTS[fault])
        elif fault == "stall":
            _wait_until_left(client)
        else:
            _reset(client)
        return True

    def _spoils(self, client: socket.socket, data: bytes) -> bool:
        """Let half of a body through, if it is this client's turn; then close the connection, or fall silent."""
        begin = data.find(b"\r\n\r\n") + 4 if data.startswith(b"HTTP/") else 0
        with self._lock:
            if client not in self._spoiled or begin == len(data):
                return False
            fault = self._spoiled.pop(client)
            self._struck[fault] += 1
        client.sendall(data[: begin + (len(data) - begin) // 2])
        if fault == "body cut short":
            client.shutdown(socket.SHUT_WR)
        return True  # who is silent leaves the connection open until the client does

    def _held(self, size: int) -> bool:
        with self._lock:
            self._sent += size
            if self._hold is None or self._sent < self._hold[0]:
                return False
            then = self._hold[1]
        then()
        return True


def _say(client: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        _wait_until_left(client)  # closing with something unread would reset, and the reply be lost


def _wait_until_left(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while client.recv(1 << 18):
            pass
    client.close()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # SO_LINGER of 0 seconds: close() sends RST instead of FIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
