"""Warm workers: processes that outlive the worker groups they serve in.

A restart of training is slow because processes start and import, not because state is large. So the processes stay: when
the group changes, survivors only form a new process group, and a new node's process is started and warmed while the old
group still trains.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swav_ray.config import Config
from swav_ray.train.blame import CodeError, code_failed
from swav_ray.train.cluster import Node, actor_name, cluster_nodes

logger = logging.getLogger(__name__)

PING_SECONDS = 5.0  # for any process to answer, when a group has failed
GRACE_SECONDS = 0.75  # for the others, once one has; calls to a dead node fail after 1.5 s only
RESET_SECONDS = 5.0  # for a training thread to end once it is released or its peers are gone
START_SECONDS = 300.0  # for a process to start and import; a cloud node may pull its image first
_SHARED = {"CPU", "memory"}  # short tasks (Ray Data's) take and give these all the time; a worker gets its turn among them
AVOID_SECONDS = 5.0  # before a node on which a process did not start is tried again


@dataclass(eq=False)
class Member:
    """One worker process. `metadata` is None until it is warm; `busy` while it serves in a group."""

    actor: Any
    node_id: str
    warming: Any  # the object reference of its warm-up
    number: int
    started: float = field(default_factory=time.monotonic)
    metadata: Any = None
    busy: bool = False


class WarmPool:
    """The worker processes of one run.

    Args:
        actor_class: a Ray actor class with `warm_up`, `reset` and `poll_status`.
        resources: of one worker, as Ray names them (`CPU`, `GPU`, custom ones).
        config: of the run, to warm up with.
        nodes: gives the nodes of the moment; replaced in tests.
    """

    def __init__(
        self,
        actor_class: Any,
        resources: dict[str, float],
        config: Config,
        nodes: Callable[[], dict[str, Node]] = cluster_nodes,
    ) -> None:
        self._actor_class, self.resources, self._look = actor_class, {k: v for k, v in resources.items() if v > 0}, nodes
        self._config = ray.put(config)
        self._run_uri = f"{config.storage}/{config.name}"
        self._numbers = itertools.count()
        self.members: list[Member] = []
        self.nodes: dict[str, Node] = {}
        self.failed_starts: list[RuntimeError] = []  # since the last start that succeeded; CodeErrors are the code's
        self._avoided: dict[str, float] = {}  # nodes on which a start failed, and until when none is tried there

    def refresh(self) -> None:
        """Look at the cluster: warm members become usable; members that failed, timed out or whose node is gone leave."""
        self.nodes = self._look()
        for member in list(self.members):
            if member.node_id not in self.nodes:
                self.discard(member, "its node is gone")
            elif member.metadata is None:
                self._check_warming(member)
        for node in self.nodes.values():
            self._withdraw(node)

    def _check_warming(self, member: Member) -> None:
        done, _ = ray.wait([member.warming], timeout=0)
        if done:
            try:
                member.metadata = ray.get(member.warming)
                self.failed_starts.clear()
            except Exception as error:
                lines = str(error).strip().splitlines()
                kind = CodeError if code_failed(error) else RuntimeError
                self._start_failed(member, kind(lines[-1][:500] if lines else type(error).__name__))
        elif time.monotonic() - member.started > START_SECONDS:
            self._start_failed(member, RuntimeError(f"it was not ready within {START_SECONDS:.0f} s"))

    def _start_failed(self, member: Member, why: RuntimeError) -> None:
        self.failed_starts.append(why)
        self._avoided[member.node_id] = time.monotonic() + AVOID_SECONDS
        self.discard(member, str(why))

    def _withdraw(self, node: Node) -> None:
        """Give up starts on a place that another run took first: they would wait there for as long as it lives."""
        here = [member for member in self.members if member.node_id == node.node_id]
        surplus = len(here) - int(node.holds(self.resources) + 1e-9)
        for member in [member for member in reversed(here) if member.metadata is None][: max(0, surplus)]:
            self.discard(member, "its place was taken by others")

    def trim(self, limit: int) -> None:
        """End processes that do not serve until at most ``limit`` are left on nodes that stay, those still warming first."""
        staying = [member for member in self.members if not self.nodes[member.node_id].draining]
        idle = sorted((member for member in staying if not member.busy), key=lambda m: (m.metadata is not None, -m.number))
        for member in idle[: max(0, len(staying) - limit)]:
            self.discard(member, "others have a right to its place")

    def discard(self, member: Member, why: str) -> None:
        """Kill a member's process and forget it."""
        logger.warning("worker process on node %s ended: %s", member.node_id[:8], why)
        if member in self.members:
            self.members.remove(member)
        ray.kill(member.actor)

    def node_of(self, actor: Any) -> str:
        return next((member.node_id for member in self.members if member.actor is actor), "")

    def end(self, actor: Any) -> None:
        """Kill the process of an actor; its group notices and fails."""
        for member in [member for member in self.members if member.actor is actor]:
            self.discard(member, "it was stuck")

    def slots(self) -> dict[str, int]:
        """How many more workers each node could hold that is not draining; nodes with none are left out.

        Processors count as free unless somebody's workers hold them, accelerators and custom resources only if nobody does.
        """
        found = {}
        for node in self.nodes.values():
            if node.draining or time.monotonic() < self._avoided.get(node.node_id, 0.0):
                continue
            here = [member for member in self.members if member.node_id == node.node_id]
            # What was started and does not run yet is not taken off the node's free resources.
            waiting = sum(member.metadata is None for member in here)
            room = float("inf")
            for key, need in self.resources.items():
                if key in _SHARED:
                    room = min(room, node.holds({key: need}) - len(here))
                else:
                    room = min(room, node.free.get(key, 0.0) / need - waiting)
            if room >= 1 - 1e-9:
                found[node.node_id] = int(min(room, 1e6) + 1e-9)
        return found

    def start(self, node_id: str) -> Member:
        """Start and warm a process on a node; it becomes usable by itself (:meth:`refresh`)."""
        extra = {key: value for key, value in self.resources.items() if key not in ("CPU", "GPU", "memory")}
        number = next(self._numbers)
        actor = self._actor_class.options(
            name=actor_name(self._run_uri, f"worker {number}"),
            num_cpus=self.resources.get("CPU", 0),
            num_gpus=self.resources.get("GPU", 0),
            memory=self.resources.get("memory"),
            resources=extra or None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote()
        member = Member(actor, node_id, actor.warm_up.remote(self._config), number)
        self.members.append(member)
        return member

    def start_on(self, nodes: Iterable[str], count: int) -> list[Member]:
        """Start up to ``count`` processes on the free places of ``nodes``, one a node in turn."""
        room = {node: slots for node, slots in self.slots().items() if node in set(nodes)}
        started: list[Member] = []
        while len(started) < count and room:
            for node in list(room):
                if len(started) == count:
                    break
                started.append(self.start(node))
                room[node] -= 1
                if not room[node]:
                    del room[node]
        return started

    @property
    def warming(self) -> list[Member]:
        return [member for member in self.members if member.metadata is None]

    @property
    def usable(self) -> list[Member]:
        """Warm members on nodes that stay, those that serve now included; neighbours first, then oldest first."""
        staying = [m for m in self.members if m.metadata is not None and not self.nodes[m.node_id].draining]
        crowd = Counter(member.node_id for member in staying)
        return sorted(staying, key=lambda m: (-m.busy, -crowd[m.node_id], m.node_id, m.number))

    @property
    def doomed(self) -> list[Member]:
        """Members that serve on draining nodes."""
        return [member for member in self.members if member.busy and self.nodes[member.node_id].draining]

    def take(self, count: int) -> list[Member]:
        """``count`` usable idle members, now busy; fewer if there are no more."""
        idle = [member for member in self.usable if not member.busy]
        for member in idle[:count]:
            member.busy = True
        return idle[:count]

    def reclaim(self) -> None:
        """Make every busy member idle again; those that are gone, silent or whose training does not end are killed."""
        busy = [member for member in self.members if member.busy]
        for member in [m for m in busy if m.node_id not in self.nodes or self.nodes[m.node_id].draining]:
            self.discard(member, "its node is leaving")
            busy.remove(member)
        # The silent ones go first: the others' training may be waiting for them.
        answering = self._call(busy, "get_metadata", PING_SECONDS, grace=GRACE_SECONDS)
        clean = self._call(list(answering), "reset", RESET_SECONDS + 1, RESET_SECONDS)
        for member, reset in clean.items():
            member.busy = False
            if not reset:
                self.discard(member, "its training did not end")

    def _call(
        self, members: list[Member], method: str, seconds: float, *args: Any, grace: float | None = None
    ) -> dict[Member, Any]:
        """What each member answers within ``seconds``, or ``grace`` after the first; the others are discarded."""
        calls = {getattr(member.actor, method).remote(*args): member for member in members}
        first = ray.wait(list(calls), timeout=seconds)[0] if calls and grace is not None else []
        left = grace if first and grace is not None else seconds
        done = ray.wait(list(calls), num_returns=len(calls), timeout=left)[0] if calls else []
        answers = {}
        for call, member in calls.items():
            try:
                if call not in done:
                    raise TimeoutError("no answer")
                answers[member] = ray.get(call)
            except Exception as error:
                self.discard(member, f"{method}: {type(error).__name__}")
        return answers

    def close(self) -> None:
        """End every process."""
        for member in list(self.members):
            self.members.remove(member)
            ray.kill(member.actor)
