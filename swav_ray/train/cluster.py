"""The cluster as Ray's control store sees it now: its nodes, what is free of them, and what is held for good."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

GONE_SECONDS = 2.0  # for processes whose owner has ended
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node: what it has, what is free of it, what others hold for good, and whether it is about to leave.

    `taken` is what actors that this process does not own, and placement groups, hold; tasks come and go and are not in it.
    `deadline_ms` is the epoch time at which a draining node leaves; 0: unknown.
    """

    node_id: str
    total: dict[str, float]
    free: dict[str, float]
    draining: bool = False
    deadline_ms: int = 0
    taken: dict[str, float] = field(default_factory=dict)

    def holds(self, resources: dict[str, float]) -> float:
        """How many times ``resources`` fit in what nobody else holds for good."""
        room = [(self.total.get(key, 0.0) - self.taken.get(key, 0.0)) / need for key, need in resources.items() if need > 0]
        return min(room, default=float("inf"))


def cluster_nodes() -> dict[str, Node]:
    """The nodes that are alive, with their drain notices; `taken` by all but the actors of this process."""
    me = bytes.fromhex(ray.get_runtime_context().get_worker_id())
    return _nodes(lambda actor: actor.owner_address.worker_id != me, lambda group: True)


def cluster_slots(resources: dict[str, float]) -> int:
    """How many workers of ``resources`` this job could have in the cluster as it is, if none of its own were running.

    Draining nodes do not count, nor what other jobs hold for good. With `data.crop_in: ray` the tasks of Ray Data need
    processors beside the workers'; leave some by a custom resource of the workers, or hand out fewer places.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    nodes = _nodes(lambda actor: actor.job_id != job, lambda group: group.creator_job_id != job)
    return sum(int(max(0.0, node.holds(resources)) + 1e-9) for node in nodes.values() if not node.draining)


def _nodes(counts: Callable[[Any], bool], group_counts: Callable[[Any], bool]) -> dict[str, Node]:
    from ray._private.state import state

    taken: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for actor in _actors("ALIVE"):
        if not actor.placement_group_id and counts(actor):
            taken[actor.node_id.hex()].update(actor.required_resources)
    for group in _placement_groups():
        if group_counts(group):
            for bundle in group.bundles:
                taken[bundle.node_id.hex()].update(bundle.unit_resources)
    free = state.available_resources_per_node()
    draining = state.get_draining_nodes()
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return {
        name: Node(
            name, dict(total), dict(free.get(name, {})), name in draining, draining.get(name, 0), dict(taken.get(name, {}))
        )
        for name, total in alive.items()
    }


def _actors(state_name: str | None = None, job: Any = None) -> list[Any]:
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]

    return [ActorTableData.FromString(row) for row in state._connect_and_get_accessor().get_actor_table(job, state_name)]


def _placement_groups() -> list[Any]:
    """Those that hold resources."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]

    rows = state._connect_and_get_accessor().get_placement_group_table()
    groups = (PlacementGroupTableData.FromString(row) for row in rows)
    return [group for group in groups if group.state == PlacementGroupTableData.CREATED]


def living_family(actor: Any) -> list[Any]:
    """Of an actor, those it made and those these made: the rows of all that are not dead."""
    from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]

    rows = _actors(job=ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id())))
    mine = actor._actor_id.binary()
    family = {row.actor_id: row for row in rows if row.actor_id == mine}
    while True:
        processes = {row.address.worker_id for row in family.values()} - {b""}  # not yet started
        more = {row.actor_id: row for row in rows if row.owner_address.worker_id in processes and not row.is_detached}
        if more.keys() <= family.keys():
            return [row for row in family.values() if row.state != ActorTableData.DEAD]
        family |= more


def end_family(actor: Any) -> None:
    """Kill an actor of this process, and wait until those it made are gone: Ray ends them with it, as their owner."""
    with _warning_only(f"of {actor}"):
        ray.kill(actor)
        deadline = time.monotonic() + GONE_SECONDS
        while living_family(actor):
            if time.monotonic() > deadline:
                logger.warning("still there %s s after their owner: %s", GONE_SECONDS, living_family(actor))
                return
            time.sleep(0.05)


def actor_name(run_uri: str, role: str) -> str:
    """What Ray's dashboard calls an actor of a run; of a trial also the sweep. Unlike any other's, for Ray insists on it."""
    *_, sweep, folder, name = ["", "", *run_uri.rstrip("/").split("/")]
    run = f"{sweep} trial {name}" if folder == "trials" else name
    return f"{run} {role} ({uuid.uuid4().hex[:6]})"


def run_id_of(run_uri: str) -> str:
    """A run's name with the autoscaler, the same in all its lives: a new one takes over what a killed one asked for."""
    return hashlib.sha256(run_uri.encode()).hexdigest()[:32]


def cancel_reservation(run_uri: str) -> None:
    """Take back what a run asked of the autoscaler; it would be kept for three minutes otherwise."""
    requester = f"train-{run_id_of(run_uri)}"
    with contextlib.suppress(ValueError), _warning_only(requester):  # ValueError: nobody has ever asked
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(requester), timeout=GONE_SECONDS)


@contextlib.contextmanager
def _warning_only(about: str) -> Iterator[None]:
    """What Ray cannot clean up does not hide why a run ended."""
    try:
        yield
    except RayError as error:
        logger.warning("not cleaned up: %s: %s", about, error)
