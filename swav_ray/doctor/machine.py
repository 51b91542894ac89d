"""What surrounds the processes of a node: environment, limits, shared memory, ports, and who may connect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swav_ray.doctor.check import Check, by_node, failure, ok, size, skipped, warning

FEW_FILES, TOO_FEW_FILES = 8_192, 1_024  # Ray's own advice, and what connections to a few dozen processes need
RAISED_FILES = 65_536  # to which a process that starts an embedded Ray raises its limit, if it may
STOP_SECONDS = 30  # to finish a step and save
WORKER_PORTS = range(10_002, 20_000)  # of Ray's worker processes
# Ray's object store by itself: this share of memory, but no more than /dev/shm holds or, where that is less, so many bytes.
STORE_SHARE, STORE_BYTES = 0.3, 10e9
SMALL_BYTES = 2e9  # of /dev/shm on a cluster, whose nodes may have been given a smaller store
MENDS = {
    "files": "raise it before `ray start`: `ulimit -n 65536` (Docker: --ulimit nofile=65536:65536)",
    "shared": "give it room: Docker --shm-size=10g, in Kubernetes an emptyDir of medium Memory on /dev/shm",
}
Facts = Mapping[str, Mapping[str, Any]]  # by node


def check_machines(nodes: Facts, head: str | None) -> list[Check]:
    """All checks of this file but `ports`.

    Args:
        head: name of the cluster's head; None without a cluster.
    """
    return [
        check_bytecode(nodes),
        check_threads(nodes),
        check_open_files(nodes, clustered=head is not None),
        check_shared_memory(nodes, clustered=head is not None),
        _short_lived_ports(nodes),
        check_stop(nodes, head),
        check_token(nodes, clustered=head is not None),
    ]


def check_bytecode(nodes: Facts) -> Check:
    found = {n: "PYTHONDONTWRITEBYTECODE is set" for n, f in nodes.items() if f["environment"].get("PYTHONDONTWRITEBYTECODE")}
    if found:
        mend = "unset it before `ray start`: every worker process compiles torch anew, for seconds"
        return warning("byte code", by_node(found), mend)
    return ok("byte code", "kept")


def check_threads(nodes: Facts) -> Check:
    many, wrong = {}, {}
    for node, facts in nodes.items():
        text = facts["environment"].get("OMP_NUM_THREADS")
        if text is None:
            continue
        if not text.isdigit() or int(text) < 1:
            wrong[node] = f"OMP_NUM_THREADS={text!r} is no number of threads"
        elif int(text) > max(1.0, facts["cpus"]):
            many[node] = f"OMP_NUM_THREADS={text} on {facts['cpus']:g} CPUs"
    mend = "unset OMP_NUM_THREADS before `ray start`: Ray gives each worker as many threads as it has CPUs"
    if wrong:
        return failure("threads", by_node(wrong), mend)
    return warning("threads", by_node(many), mend) if many else ok("threads", "no more than CPUs")


def check_open_files(nodes: Facts, *, clustered: bool) -> Check:
    limits = {}
    for node, facts in nodes.items():
        soft, hard = (RAISED_FILES if limit < 0 else limit for limit in facts["open_files"])  # below 0: none
        limits[node] = soft if clustered else max(soft, min(hard, RAISED_FILES))
    few = {node: f"at most {limit} open files" for node, limit in limits.items() if limit < FEW_FILES}
    if any(limit < TOO_FEW_FILES for limit in limits.values()):
        return failure("open files", by_node(few), MENDS["files"])
    if few:
        return warning("open files", by_node(few), MENDS["files"])
    return ok("open files", f"at least {min(limits.values())}")


def check_shared_memory(nodes: Facts, *, clustered: bool) -> Check:
    """Enough of it for the object store that Ray would make by default; what one holds is `object store`."""
    small = {}
    for node, facts in nodes.items():
        room = facts["shared_memory"]
        if room is None:
            small[node] = "no /dev/shm"
        elif room["total"] < min(STORE_SHARE * facts["memory"], SMALL_BYTES if clustered else STORE_BYTES):
            where = " in this container" if facts["container"] else ""
            small[node] = f"/dev/shm holds {size(room['total'])}{where}, so Ray keeps its object store on disk"
    if small:
        return warning("shared memory", by_node(small), MENDS["shared"])
    least = min(facts["shared_memory"]["total"] for facts in nodes.values())
    return ok("shared memory", f"/dev/shm holds {size(least)}{' or more' if len(nodes) > 1 else ''}")


def _short_lived_ports(nodes: Facts) -> Check:
    crossing = {}
    for node, facts in nodes.items():
        first, last = [*facts["short_lived_ports"], 0, 0][:2]
        if last and first < WORKER_PORTS.stop and last >= WORKER_PORTS.start:
            crossing[node] = f"connections of all programs take ports {first} to {last}, Ray's workers 10002 to 19999"
    if crossing:
        return warning("system ports", by_node(crossing), "sysctl -w net.ipv4.ip_local_port_range='32768 60999'")
    return ok("system ports", "short-lived ones lie outside 10002 to 19999")


def check_ports(ports: Mapping[str, tuple[int, ...]]) -> Check:
    """Ports of Ray's services, by node."""
    within = {node: [port for port in some if port in WORKER_PORTS] for node, some in ports.items()}
    found = {
        node: f"a Ray service listens on {', '.join(map(str, some))}, where workers take ports"
        for node, some in within.items()
        if some
    }
    if found:
        mend = (
            "start Ray there with ports outside 10002 to 19999, or set --min-worker-port and --max-worker-port apart from them"
        )
        return warning("ports", by_node(found), mend)
    return ok("ports", "Ray's services listen outside 10002 to 19999")


def check_stop(nodes: Facts, head: str | None) -> Check:
    """How long `ray job stop` waits before it kills."""
    if head is None:
        return skipped("job stop", "no cluster to submit to")
    text = nodes[head]["environment"].get("RAY_JOB_STOP_WAIT_TIME_S", "3") if head in nodes else "3"
    seconds = int(text) if text.isdigit() else 0
    if seconds < STOP_SECONDS:
        return warning(
            "job stop",
            f"`ray job stop` kills after {text} s, maybe before a run has saved its checkpoint",
            "set RAY_JOB_STOP_WAIT_TIME_S=60 before `ray start` on the head",
        )
    return ok("job stop", f"a stopped job has {seconds} s to save")


def check_token(nodes: Facts, *, clustered: bool) -> Check:
    """Whether a cluster asks for a token, and whether every node has one; never the token."""
    modes = {node: facts["environment"].get("RAY_AUTH_MODE", "").lower() for node, facts in nodes.items()}
    missing = {
        node: "RAY_AUTH_TOKEN_PATH names a file that is not there"
        for node, facts in nodes.items()
        if facts["token"].get("missing")
    }
    without = {
        node: "RAY_AUTH_MODE=token and no token"
        for node in nodes
        if modes[node] == "token" and not nodes[node]["token"]["source"]
    }
    mend = "`ray get-auth-token --generate` on the head, then the same ~/.ray/auth_token (or RAY_AUTH_TOKEN) on all nodes"
    if missing or without:
        return failure("authentication", by_node(without | missing), mend)
    shown = {
        node: f"the token in {facts['token']['source']} can be read by others"
        for node, facts in nodes.items()
        if facts["token"].get("open_to_others") and modes[node] != "disabled"
    }
    if shown:
        return warning("authentication", by_node(shown), "chmod 600 it")
    kinds = {
        "disabled" if mode == "disabled" else "token" if nodes[n]["token"]["source"] else "no token"
        for n, mode in modes.items()
    }
    if clustered and kinds != {"token"}:
        return warning(
            "authentication",
            "whoever reaches the cluster's ports may run code there: no token is asked for",
            f"{mend}, and RAY_AUTH_MODE=token; or keep the ports within a private network",
        )
    if clustered:
        return ok("authentication", f"by token, from {', '.join(sorted({f['token']['source'] for f in nodes.values()}))}")
    return ok("authentication", "needed by clusters only" if kinds != {"token"} else "a token is there")
