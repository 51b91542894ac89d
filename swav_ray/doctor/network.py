"""Whether nodes reach each other as training needs it: a real all-reduce among one process a node."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swav_ray.doctor import on_node
from swav_ray.doctor.check import Check, by_node, failure, listed, ok
from swav_ray.doctor.nodes import Cluster, answered, unanswered

# For nodes to find each other and sum, and more for each node: usually milliseconds, but a name server that is not there
# costs each process ten seconds once (training bears them too).
CONNECT_SECONDS, EACH_SECONDS = 15.0, 0.1
GRACE_SECONDS = 15.0  # beyond it for the answer to come
LOAD_SECONDS = 120.0  # for torch to be imported
MOST_PAIRED = 16  # nodes of which every pair is tried; beyond, each with the first only
MENDS = {
    "gloo": "set GLOO_SOCKET_IFNAME to the interface that reaches the other nodes (see `ip -br addr`) before `ray start` "
    "there, and let the firewall pass all TCP ports between nodes",
    "nccl": "set NCCL_SOCKET_IFNAME to the interface that reaches the other nodes (NCCL_DEBUG=INFO says more), and use "
    "one driver and one torch on all nodes",
}


@dataclass(frozen=True)
class Reached:
    """What an all-reduce over all nodes came to, and, where it failed, which pairs do not reach each other."""

    backend: str
    nodes: int
    seconds: float = 0.0
    errors: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], str] = field(default_factory=dict)


def all_reduce(cluster: Cluster, names: Sequence[str], backend: str = "gloo") -> Reached:
    """Among one process on each of the nodes; if that fails, among pairs."""
    if silent := _loaded(cluster, names):
        return Reached(backend, len(names), errors=silent)
    took, errors = _among(cluster, [names], backend)
    if not errors:
        return Reached(backend, len(names), max(took, default=0.0))
    if not all(_of_others(text) for text in errors.values()):
        return Reached(backend, len(names), errors=errors)  # they say themselves what is wrong
    pairs: dict[tuple[str, str], str] = {}
    rounds = _rounds(names) if len(names) <= MOST_PAIRED else [[(names[0], other)] for other in names[1:]]
    for round_ in rounds:
        _, wrong = _among(cluster, round_, backend)
        for pair in round_:
            if any(node in wrong for node in pair):
                pairs[pair] = _own([wrong.get(node, "") for node in pair])
    return Reached(backend, len(names), errors=errors, pairs=pairs)


def check_network(reached: Reached) -> Check:
    """Which node or pair fails: a node that reaches nobody is named alone."""
    name = reached.backend
    if not reached.errors:
        return ok(name, f"an all-reduce over {reached.nodes} nodes took {reached.seconds * 1e3:.3g} ms")
    culprits = {node: text for node, text in reached.errors.items() if not _of_others(text)}
    alone = _alone(reached)
    if culprits:
        found = by_node(culprits)
    elif alone:
        found = f"{', '.join(alone)} and the others do not reach each other: {_own(list(reached.pairs.values()))}"
    elif reached.pairs:
        found = listed(f"{a} and {b} do not reach each other: {text}" for (a, b), text in reached.pairs.items())
    else:
        found = f"all {reached.nodes} nodes together fail, each pair works: {_own(list(reached.errors.values()))}"
    return failure(name, found, MENDS[name])


def _among(cluster: Cluster, groups: Sequence[Sequence[str]], backend: str) -> tuple[list[float], dict[str, str]]:
    """Seconds of all, and the errors of those that had one, of groups that run side by side."""
    firsts = {group[0]: (on_node.free_address, cluster.about[group[0]].address) for group in groups}
    places = cluster.ask_each(firsts)
    limit = CONNECT_SECONDS + EACH_SECONDS * max(map(len, groups))
    calls = {
        node: (on_node.all_reduce, rank, len(group), places[group[0]], backend, limit)
        for group in groups
        if group[0] in answered(places)
        for rank, node in enumerate(group)
    }
    answers = cluster.ask_each(calls, seconds=2 * limit + GRACE_SECONDS)
    # torch counts the groups that a process began, also one that failed, and two that count otherwise never find each
    # other: whoever failed answers next from a new process, with torch at hand.
    failed = unanswered(answers)
    for node in failed:
        cluster.let_go(node)
    _loaded(cluster, list(failed))
    return list(answered(answers).values()), unanswered(places) | failed


def _loaded(cluster: Cluster, names: Sequence[str]) -> dict[str, str]:
    """Torch, on each of the nodes; what those say on which it does not load."""
    answers = cluster.ask_each(dict.fromkeys(names, (on_node.load_torch,)), seconds=LOAD_SECONDS)
    return {node: f"torch does not load: {text}" for node, text in unanswered(answers).items()}


def _rounds(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Every pair once, in rounds of pairs that share no node, as a tournament is drawn."""
    left = list(itertools.combinations(names, 2))
    rounds: list[list[tuple[str, str]]] = []
    while left:
        busy: set[str] = set()
        round_ = []
        for pair in left:
            if not busy & set(pair):
                round_.append(pair)
                busy |= set(pair)
        left = [pair for pair in left if pair not in round_]
        rounds.append(round_)
    return rounds


def _alone(reached: Reached) -> list[str]:
    """Nodes that all failing pairs have in common, if there are more pairs than one."""
    pairs = list(reached.pairs)
    return sorted(set(pairs[0]).intersection(*pairs[1:])) if len(pairs) > 1 else []


def _of_others(text: str) -> bool:
    """Whether an error speaks of reaching others, and not of the node itself."""
    words = (
        "timeout",
        "timed out",
        "time out",
        "no answer",
        "wait",
        "connect",
        "unreachable",
        "no route",
        "reset",
        "broken pipe",
    )
    return any(word in text.lower() for word in words)


def _own(texts: Sequence[str]) -> str:
    """The error that says most: why a connection failed, rather than that nobody came."""
    said = sorted((text for text in texts if text), key=lambda text: "timed out" in text.lower() or "no answer" in text)
    return said[0] if said else "no answer"
