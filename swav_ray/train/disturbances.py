"""What befalls a cluster during a run, drawn from a seed: workers and nodes die, nodes join, nodes leave after notice."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from swav_ray.errors import UserError

Kind = Literal["kill_worker", "kill_node", "add_node", "remove_node"]
T = TypeVar("T")


@dataclass(frozen=True)
class Disturbance:
    """Something that happens ``at_seconds`` into a run.

    Attributes:
        nodes: usable ones after it (a node that got notice is none).
        pick: a draw from [0, 1) for whom it befalls, see :meth:`choose`.
        notice_seconds: `remove_node` only: notice comes now, the node goes so much later.
    """

    at_seconds: float
    kind: Kind
    nodes: int
    pick: float
    notice_seconds: float = 0.0

    def choose(self, candidates: Sequence[T]) -> T | None:
        """The one it befalls; None where there is nobody."""
        return candidates[int(self.pick * len(candidates))] if candidates else None


def disturbances(
    seed: int,
    seconds: float,
    *,
    kill_every: float,
    resize_every: float,
    max_nodes: int,
    min_nodes: int,
    start_nodes: int | None = None,
    node_share: float = 0.5,
    notice_seconds: float = 15.0,
    jitter: float = 1.0,
) -> list[Disturbance]:
    """The disturbances of a run of ``seconds``, in order of time; the same for the same arguments.

    Args:
        kill_every, resize_every: mean seconds between two kills and between two resizes; infinity for never. Kills come at the
            same times whatever the resizes, and the other way round.
        max_nodes, min_nodes: bounds of the number of usable nodes. A resize that has no room, and a node's death at the
            lower bound, give way: the other direction, a worker's death; with equal bounds there are no resizes.
        start_nodes: usable at time 0; ``max_nodes`` unless given.
        node_share: share of kills that take the whole node.
        jitter: 1 draws exponential gaps, 0 makes all gaps equal, between them a mixture of the same mean.

    Raises:
        UserError: bounds or times that cannot be.
    """
    start = max_nodes if start_nodes is None else start_nodes
    if not 0 <= min_nodes <= start <= max_nodes:
        raise UserError(f"disturbances: min_nodes {min_nodes} <= start_nodes {start} <= max_nodes {max_nodes} does not hold")
    if not (kill_every > 0 and resize_every > 0 and 0 <= jitter <= 1):
        raise UserError(
            f"disturbances: kill_every {kill_every} and resize_every {resize_every} must be above 0, jitter {jitter} in [0, 1]"
        )
    kill_draws, resize_draws = random.Random(f"{seed} kills"), random.Random(f"{seed} resizes")
    times = [(at, "kill", kill_draws.random(), kill_draws.random()) for at in _times(kill_draws, kill_every, seconds, jitter)]
    times += [
        (at, "resize", resize_draws.random(), resize_draws.random())
        for at in _times(resize_draws, resize_every, seconds, jitter)
    ]
    nodes, found = start, []
    for at, what, draw, pick in sorted(times):
        kind: Kind
        if what == "kill":
            kind = "kill_node" if draw < node_share and nodes > min_nodes else "kill_worker"
        elif min_nodes == max_nodes:
            continue
        else:
            grows = nodes == min_nodes or (draw < 0.5 and nodes < max_nodes)
            kind = "add_node" if grows else "remove_node"
        nodes += {"add_node": 1, "kill_worker": 0}.get(kind, -1)
        found.append(Disturbance(at, kind, nodes, pick, notice_seconds if kind == "remove_node" else 0.0))
    return found


def _times(draws: random.Random, every: float, seconds: float, jitter: float) -> Iterator[float]:
    if math.isinf(every):
        return
    at = 0.0
    while (at := at + every * (1 - jitter + jitter * draws.expovariate(1.0))) < seconds:
        yield at
