"""One line of the doctor's list: what was looked at, what was found, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from swav_ray.errors import without_credentials

NAMED = 3  # nodes named in one line


class State(StrEnum):
    """A warning costs time or comfort; a failure costs the run."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """`found` of a skipped check says why; `mend` is empty where there is nothing to mend. Texts name no credentials."""

    name: str
    state: State
    found: str
    mend: str = ""

    def __post_init__(self) -> None:
        for field in ("found", "mend"):
            object.__setattr__(self, field, without_credentials(" ".join(getattr(self, field).split())))


def ok(name: str, found: str) -> Check:
    return Check(name, State.OK, found)


def warning(name: str, found: str, mend: str) -> Check:
    return Check(name, State.WARNING, found, mend)


def failure(name: str, found: str, mend: str) -> Check:
    return Check(name, State.FAILURE, found, mend)


def skipped(name: str, why: str) -> Check:
    return Check(name, State.SKIPPED, why)


def listed(parts: Iterable[str], most: int = NAMED) -> str:
    """The first few of them, and how many more."""
    parts = list(parts)
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def by_node(found: Mapping[str, str]) -> str:
    """What was found on each node, those with the same finding in one part: ``node a, node b: no space``."""
    nodes_of: dict[str, list[str]] = {}
    for node, what in found.items():
        nodes_of.setdefault(what, []).append(node)
    return listed(f"{_few(nodes)}: {what}" for what, nodes in nodes_of.items())


def _few(nodes: list[str]) -> str:
    return ", ".join(nodes[:NAMED]) + (f" and {len(nodes) - NAMED} more nodes" if len(nodes) > NAMED else "")


def size(amount: float) -> str:
    """Bytes as people write them: ``1.5 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(amount) >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount:.0f} B"
