"""`--workers` against what the cluster can give, nodes that are about to leave, and spot nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from swav_ray.config_sections import Elastic
from swav_ray.doctor.check import Check, by_node, failure, listed, ok, warning
from swav_ray.doctor.nodes import About
from swav_ray.train.cluster import Node
from swav_ray.train.resize import fitting_size


def places(about: Mapping[str, About], resources: Mapping[str, float]) -> dict[str, int]:
    """How many workers of ``resources`` each node could hold that stays; what others hold for good is not there."""
    return {name: int(max(0.0, one.node.holds(dict(resources))) + 1e-9) for name, one in about.items() if not one.node.draining}


def later(groups: Mapping[str, tuple[Mapping[str, float], int]], resources: Mapping[str, float]) -> int:
    """How many the autoscaler's node types hold at their largest; a negative count of nodes has no end."""
    total = 0.0
    for holds, count in groups.values():
        each = int(max(0.0, Node("", dict(holds), {}).holds(dict(resources))) + 1e-9)
        total += each * (count if count >= 0 else math.inf) if each else 0
    return int(min(total, 1e9))


def ends(elastic: Elastic) -> tuple[int, int]:
    """The fewest and the most workers the run may have, of those that `elastic.sizes` allows."""
    return next(size for size in range(elastic.max + 1) if fitting_size(size, elastic)), fitting_size(elastic.max, elastic)


def _asked(elastic: Elastic) -> str:
    asked = f"--workers {elastic.min}:{elastic.max}" if elastic.min < elastic.max else f"--workers {elastic.min}"
    return f"{asked} in elastic.sizes {list(elastic.sizes)}" if elastic.sizes else asked


def check_workers(
    elastic: Elastic,
    resources: Mapping[str, float],
    about: Mapping[str, About],
    groups: Mapping[str, tuple[Mapping[str, float], int]],
) -> Check:
    """Whether the run can start, and whether it can grow to its largest size."""
    (low, high), asked = ends(elastic), _asked(elastic)
    here = places(about, resources)
    now = sum(here.values())
    most = max(now, later(groups, resources))
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    can = f"the cluster has places for {now} (of {each} each)" + (f", the autoscaler up to {most}" if groups else "")
    fewer = "change elastic.sizes" if elastic.sizes else f"ask for {'1:' if most > 1 else ''}{most}"
    mend = fewer if most else f"add nodes that have {each} free"
    if most < low:
        lacking = _lacking(about, resources)
        return failure("workers", f"{asked}: {can}{lacking}", f"{mend}, or add nodes, or lower what a worker takes (elastic.*)")
    if most < high:
        return warning("workers", f"{asked}: {can}, so the run never grows to {high}", f"{mend}, or add nodes")
    if now < low:
        return ok("workers", f"{asked}: {can}; the run waits for nodes first")
    return ok("workers", f"{asked}: {can}")


def _lacking(about: Mapping[str, About], resources: Mapping[str, float]) -> str:
    """Which resources no node has at all, or what others hold."""
    nodes = [one.node for one in about.values() if not one.node.draining]
    never = [name for name, need in resources.items() if all(node.total.get(name, 0.0) < need for node in nodes)]
    if never:
        return f"; no node has {listed(f'{resources[name]:g} {name}' for name in never)}"
    if any(node.taken for node in nodes):
        return "; other runs hold the rest"
    return ""


def check_machine_workers(elastic: Elastic, cpus: float, gpus: int) -> Check:
    """The same without a cluster, where an embedded Ray shares out this machine."""
    (low, high), asked = ends(elastic), _asked(elastic)
    each = elastic.gpus_per_worker
    if each is None:  # as a run decides it
        each = float(gpus >= elastic.min)
    if each and low * each > gpus:
        return failure(
            "workers",
            f"{asked} with {each:g} GPUs each, this process sees {gpus}",
            f"ask for {max(1, int(gpus / each))} workers" if gpus >= each else "--set elastic.gpus_per_worker=0",
        )
    if elastic.resources or elastic.accelerator_type:
        wanted = elastic.accelerator_type or ", ".join(elastic.resources)
        return failure(
            "workers", f"a worker needs {wanted}, which an embedded Ray does not have", "connect to a cluster: RAY_ADDRESS"
        )
    if each and high * each > gpus:
        most = int(gpus / each + 1e-9)
        return warning(
            "workers",
            f"{asked} with {each:g} GPUs each, this process sees {gpus}, so the run never grows to {high}",
            f"ask for {f'1:{most}' if most > 1 else most}, or connect to a cluster (RAY_ADDRESS)",
        )
    if high * elastic.cpus_per_worker > cpus:
        fitting = max(1, int(cpus / elastic.cpus_per_worker))
        return warning(
            "workers",
            f"{asked} of {elastic.cpus_per_worker:g} CPUs each share {cpus:g} CPUs: no faster than {fitting}",
            f"ask for {fitting}, or connect to a cluster (RAY_ADDRESS)",
        )
    return ok("workers", f"{asked} on {cpus:g} CPUs and {gpus} GPUs")


def check_leaving(about: Mapping[str, About]) -> Check:
    """Nodes with a notice count for nothing."""
    leaving = {
        name: f"leaves in {max(0.0, one.node.deadline_ms / 1000 - time.time()):.0f} s"
        if one.node.deadline_ms
        else "is draining"
        for name, one in about.items()
        if one.node.draining
    }
    if leaving:
        return warning(
            "leaving nodes", by_node(leaving), "nothing is lost, a run goes on without them; wait for their successors"
        )
    return ok("leaving nodes", "none")


def check_spot(about: Mapping[str, About]) -> Check:
    """A run bears the loss of spot nodes; its driver on the head does not."""
    spot = [name for name, one in about.items() if one.spot]
    if any(about[name].head for name in spot):
        return warning(
            "spot nodes",
            "the head is a spot node: when it is taken, the cluster is gone",
            "put the head on demand, and keep runs on s3:// so that the same command goes on elsewhere",
        )
    if spot:
        return ok("spot nodes", f"{len(spot)} of {len(about)} nodes may be taken with short notice; runs go on without them")
    return ok("spot nodes", "none is labelled so")
