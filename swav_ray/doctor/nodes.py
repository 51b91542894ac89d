"""Where the doctor asks: this machine, or every node of a Ray cluster, by one way of asking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from swav_ray.doctor import on_node, on_store
from swav_ray.train import network
from swav_ray.train.cluster import Node

HERE = "this machine"
START_SECONDS = 90.0  # for a process to start on a node and answer; a busy node imports for long
SPOT_LABEL = "ray.io/market-type"


class UnansweredError(Exception):
    """A node that gave no answer, and why."""


Answer = Any | UnansweredError  # of one node


class Nodes(Protocol):
    """One answer a node, by the node's name."""

    names: list[str]

    def ask(self, function: Callable[..., Any], *args: Any, seconds: float = START_SECONDS) -> dict[str, Answer]: ...

    def ask_each(self, calls: Mapping[str, tuple[Any, ...]], *, seconds: float = START_SECONDS) -> dict[str, Answer]: ...


def answered(answers: Mapping[str, Answer]) -> dict[str, Any]:
    return {node: answer for node, answer in answers.items() if not isinstance(answer, UnansweredError)}


def unanswered(answers: Mapping[str, Answer]) -> dict[str, str]:
    return {node: str(answer) for node, answer in answers.items() if isinstance(answer, UnansweredError)}


class Here:
    """This machine, asked in this process."""

    def __init__(self) -> None:
        self.names = [HERE]

    def ask(self, function: Callable[..., Any], *args: Any, seconds: float = START_SECONDS) -> dict[str, Answer]:
        return self.ask_each({HERE: (function, *args)})

    def ask_each(self, calls: Mapping[str, tuple[Any, ...]], *, seconds: float = START_SECONDS) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for node, (function, *args) in calls.items():
            try:
                answers[node] = function(*args)
            except Exception as error:
                answers[node] = UnansweredError(reason(error))
        return answers


@dataclass(frozen=True)
class About:
    """What Ray's control store knows of a node."""

    node: Node
    address: str
    head: bool
    spot: bool
    ports: tuple[int, ...] = ()


@dataclass
class Cluster:
    """Every node that is alive and stays, asked by a process of its own there that takes no room; closing it ends these.

    Attributes:
        about: all nodes by name; `names` are those that stay, the head first.
        groups: resources of a node and how many of them the autoscaler may have, by node type; empty without one.
        gpus: that the process on each node holds.
    """

    about: dict[str, About]
    groups: dict[str, tuple[dict[str, float], int]]
    names: list[str]
    gpus: float = 0
    _hands: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def connected(cls) -> Cluster:
        """The cluster this process is connected to, as it is now."""
        import ray

        from swav_ray.train.cluster import cluster_nodes

        view = cluster_nodes()
        about: dict[str, About] = {}
        for row in ray.nodes():
            node = view.get(row["NodeID"])
            if not row["Alive"] or node is None:
                continue
            ports = tuple(int(row[key]) for key in ("NodeManagerPort", "ObjectManagerPort") if row.get(key))
            head = "node:__internal_head__" in row["Resources"]
            spot = str(row.get("Labels", {}).get(SPOT_LABEL, "")).lower() == "spot"
            name = f"{row['NodeManagerHostname']} ({row['NodeID'][:8]})"
            about[name] = About(node, row["NodeManagerAddress"], head, spot, ports)
        # A node that is draining starts no more processes.
        staying = [name for name in about if not about[name].node.draining]
        names = sorted(staying, key=lambda name: (not about[name].head, name))
        return cls(about, _groups(), names)

    def with_gpus(self) -> Cluster:
        """The same nodes, asked by processes that hold a GPU."""
        return Cluster(self.about, self.groups, self.names, gpus=1)

    def ask(self, function: Callable[..., Any], *args: Any, seconds: float = START_SECONDS) -> dict[str, Answer]:
        return self.ask_each(dict.fromkeys(self.names, (function, *args)), seconds=seconds)

    def ask_each(self, calls: Mapping[str, tuple[Any, ...]], *, seconds: float = START_SECONDS) -> dict[str, Answer]:
        """Run ``(function, *args)`` on each of the nodes at once; whoever is not done in time leaves no answer."""
        import ray

        waiting = {node: self._hand(node).do.remote(*call) for node, call in calls.items()}
        deadline = time.monotonic() + seconds
        answers: dict[str, Answer] = {}
        for node, reference in waiting.items():
            try:
                answers[node] = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                answers[node] = UnansweredError(f"no answer in {seconds:.0f} s")
                self.let_go(node)  # it may hang for ever
            except Exception as error:
                answers[node] = UnansweredError(reason(error))
                if isinstance(error, ray.exceptions.RayActorError):
                    self.let_go(node)
        return answers

    def _hand(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node not in self._hands:
            strategy = NodeAffinitySchedulingStrategy(self.about[node].node.node_id, soft=False)
            self._hands[node] = hand().options(num_cpus=0, num_gpus=self.gpus, scheduling_strategy=strategy).remote()
        return self._hands[node]

    def let_go(self, node: str) -> None:
        """End the process on a node, if there is one; the next question gets a new one."""
        import ray

        if node in self._hands:
            ray.kill(self._hands.pop(node))

    def close(self) -> None:
        for node in list(self._hands):
            self.let_go(node)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hand() -> Any:
    """A Ray actor class that does what it is told. Code goes along, for the node may have no swav-ray, or another one."""
    import ray
    import ray.cloudpickle

    for module in (on_node, on_store, network):
        ray.cloudpickle.register_pickle_by_value(module)

    @ray.remote(max_restarts=0)
    class Doctor:
        def do(self, function: Callable[..., Any], *args: Any) -> Any:
            return function(*args)

    return Doctor


def reason(error: BaseException) -> str:
    """An error in one line, without a traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if type(cause).__module__.startswith("ray.") and lines else " ".join(lines)
    return f"{type(cause).__name__}: {text[:300]}" if text else type(cause).__name__


def _groups() -> dict[str, tuple[dict[str, float], int]]:
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return {}
    return {group.name: (dict(group.resources), int(group.max_count)) for group in config.node_group_configs}
