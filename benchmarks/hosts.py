"""Two hosts on this machine: network namespaces with an address each and a wire between them. Needs root and `ip`.

    with Hosts() as hosts:
        hosts.start(0, "ray", "start", "--head", ...)     # in the first
        hosts.cut()                                        # the wire: no packet, and no answer that says so

Files are shared, as on hosts that mount the same disk; processors too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import IO, Any

from benchmarks.local_nodes import end_family


def why_not() -> str:
    """Why this machine cannot have two hosts; empty if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2"
    name = f"try{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return tried.stderr.strip()


class Hosts:
    """Two of them, with the addresses `addresses`; closing it ends what was started and takes both away."""

    def __init__(self) -> None:
        self._names = [f"swav{os.getpid()}-{number}" for number in (0, 1)]
        self._wire = [f"sw{os.getpid() % 100000}-{number}" for number in (0, 1)]  # 15 characters at most
        self.addresses = ["10.99.77.1", "10.99.77.2"]
        self._started: list[subprocess.Popen[Any]] = []
        for name in self._names:
            _ip("netns", "add", name)
        _ip("link", "add", self._wire[0], "type", "veth", "peer", "name", self._wire[1])
        for name, end, address in zip(self._names, self._wire, self.addresses, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "dev", end)  # by which Ray finds its own address

    def start(self, host: int, *command: str, output: IO[str], **environment: str) -> subprocess.Popen[Any]:
        """Run a command on a host."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._names[host], *command],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        self._started.append(process)
        return process

    def cut(self) -> None:
        """Take the second host off the net, as a pulled cable does."""
        _ip("-n", self._names[1], "link", "set", self._wire[1], "down")

    def close(self) -> None:
        for process in reversed(self._started):
            end_family(process.pid)
            process.wait()
        for name in self._names:
            _ip("netns", "del", name)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
