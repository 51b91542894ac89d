"""GPUs as the driver, torch and Ray see them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from swav_ray.doctor.check import Check, by_node, failure, ok, warning


def check_gpus(nodes: Mapping[str, Mapping[str, Any]], offered: Mapping[str, float] | None = None) -> Check:
    """Whether every GPU can be used.

    Args:
        offered: how many GPUs Ray hands out on each node; None without a cluster.
    """
    for problem, mend in (
        (_driver, "mend the NVIDIA driver: `nvidia-smi` must list the GPUs (in a container: run it with --gpus all)"),
        (
            _torch,
            "install a torch built for this driver (https://pytorch.org/get-started/locally), or a newer driver; "
            "`python -c 'import torch; print(torch.cuda.is_available())'` must say True",
        ),
    ):
        found = {node: text for node, facts in nodes.items() if (text := problem(facts["gpus"]))}
        if found:
            return failure("gpus", by_node(found), mend)
    odd = {node: f"nvidia-smi says: {text}" for node, facts in nodes.items() if (text := facts["gpus"].get("odd"))}
    if odd:
        return warning("gpus", by_node(odd), "see what `nvidia-smi` says there; training goes on with the GPUs it lists")
    counts = {node: len(facts["gpus"]["devices"]) for node, facts in nodes.items()}
    if offered is not None:
        hidden = {
            node: f"{counts[node]} GPUs, Ray hands out {offered.get(node, 0):g}"
            for node in counts
            if counts[node] != offered.get(node, 0)
        }
        if hidden:
            return warning("gpus", by_node(hidden), "start Ray there without --num-gpus, or with as many as there are")
    kinds = {device["name"] for facts in nodes.values() for device in facts["gpus"]["devices"]}
    drivers = {device["driver"] for facts in nodes.values() for device in facts["gpus"]["devices"]}
    if not kinds:
        return ok("gpus", "none, training runs on CPUs")
    found = {node: _kinds(facts["gpus"]) for node, facts in nodes.items() if facts["gpus"]["devices"]}
    if len(kinds) > 1:
        return warning(
            "gpus",
            by_node(found),
            "the slowest sets the pace; keep to one kind with --set elastic.accelerator_type=NAME",
        )
    if len(drivers) > 1:
        return warning("gpus", f"driver versions differ: {', '.join(sorted(drivers))}", "use one driver on all nodes")
    return ok("gpus", by_node(found))


def visible(count: int) -> int:
    """How many of so many GPUs this process, and an embedded Ray, may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return count
    return 0 if named in ("", "-1", "NoDevFiles") else min(count, len(named.split(",")))


def _driver(gpus: Mapping[str, Any]) -> str:
    return str(gpus.get("driver_problem", ""))


def _torch(gpus: Mapping[str, Any]) -> str:
    count = len(gpus["devices"])
    if not count:
        return ""
    if gpus.get("problem"):
        return str(gpus["problem"])
    if not gpus.get("cuda"):
        return f"{count} GPUs and driver {gpus['devices'][0]['driver']}, but torch is built without CUDA"
    if gpus.get("usable") != count:
        return (
            f"{count} GPUs and driver {gpus['devices'][0]['driver']}, but torch (CUDA {gpus['cuda']}) can use "
            f"{gpus.get('usable', 0)}{': ' + gpus['why'] if gpus.get('why') else ''}"
        )
    return ""


def _kinds(gpus: Mapping[str, Any]) -> str:
    device = gpus["devices"][0]
    return f"{len(gpus['devices'])} x {device['name']}, driver {device['driver']}, torch for CUDA {gpus['cuda']}"
