"""Clocks of the nodes against this one's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from swav_ray.doctor import on_node
from swav_ray.doctor.check import Check, by_node, failure, ok, warning
from swav_ray.doctor.nodes import Nodes, UnansweredError

ASKED = 5  # times; the quickest answer bounds the error best
# A drain notice is a time of the day: a clock that is off by as much as a notice is long makes it come too late or at once.
OFF, FAR_OFF = 1.0, 10.0  # seconds
MEND = "keep the clocks by NTP there: `timedatectl set-ntp true`, or chrony"


def offsets(nodes: Nodes, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Seconds by which each node's clock is ahead of this one's, and by how much that may be wrong (half a round trip)."""
    best: dict[str, tuple[float, float]] = {}
    for node in names:
        for _ in range(ASKED):
            sent, started = time.time(), time.monotonic()
            answer = nodes.ask_each({node: (on_node.now,)})[node]
            took = time.monotonic() - started
            if isinstance(answer, UnansweredError):
                break
            if node not in best or took / 2 < best[node][1]:
                best[node] = answer - (sent + took / 2), took / 2
    return best


def check_clocks(found: Mapping[str, tuple[float, float]]) -> Check:
    """What is certain of the offsets: beyond what the round trip leaves open."""
    certain = {node: max(0.0, abs(ahead) - open_) for node, (ahead, open_) in found.items()}
    off = {node: _said(*found[node]) for node, least in certain.items() if least > OFF}
    if any(least > FAR_OFF for least in certain.values()):
        return failure("clocks", by_node(off), f"{MEND}; S3 refuses clocks that are 15 minutes off")
    if off:
        return warning("clocks", by_node(off), MEND)
    widest = max((abs(ahead) + open_ for ahead, open_ in found.values()), default=0.0)
    return ok("clocks", f"{len(found)} nodes agree within {widest:.2g} s")


def _said(ahead: float, open_: float) -> str:
    return f"{abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'} (+- {open_:.2g} s)"
