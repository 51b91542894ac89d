"""The newest checkpoint on all workers: found by the first, read once, and not at all where a worker still holds it."""

from __future__ import annotations

import io
from typing import Any

import torch

from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.world import World


def restore(checkpoints: Checkpoints, world: World) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """State and manifest of the newest checkpoint that is whole, or None; the same on every worker. All call it."""
    if world.group is None:
        return checkpoints.latest()
    before: str | None = None
    while True:
        found = world.broadcast(checkpoints.newest(before) if world.rank == 0 else None)
        if found is None:
            return None
        name, manifest = found
        # The process that wrote it may be any rank now; a new one, or one on a new node, holds nothing.
        holders = world.vote(world.size - world.rank if checkpoints.holds(name, manifest) else 0)()
        source = world.size - holders if holders else 0
        content = world.broadcast(checkpoints.state_bytes(name, manifest) if world.rank == source else None, source)
        if content is not None:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), manifest
        before = name
