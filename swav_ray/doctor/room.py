"""Room for a run: checkpoints on disk, rows in memory, crops in the object store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swav_ray.config import Config
from swav_ray.doctor.check import Check, by_node, failure, ok, size, skipped, warning
from swav_ray.doctor.sizes import CONTEXT_BYTES, PROCESS_BYTES, Sizes
from swav_ray.doctor.workers import ends
from swav_ray.train.fit import LEAST

FULL = 0.95  # of a disk: Ray takes no more work there (local_fs_capacity_threshold)
BATCHES_AHEAD = 3  # of crops in the object store: consumed, ready, and being made
NEAR = 0.9  # of the memory that an estimate may fill before a warning
Facts = Mapping[str, Mapping[str, Any]]


def check_checkpoint_room(config: Config, sizes: Sizes, free: int | None, place: str) -> Check:
    """Whether the checkpoints kept, one more being written, and those kept for ever fit on the disk of a local store.

    Args:
        free: bytes there; None: an object store, which has no end.
    """
    for_ever = config.epochs // config.checkpoint.keep_every if config.checkpoint.keep_every else 0
    count = config.checkpoint.keep_last + 1 + for_ever
    need = count * sizes.checkpoint
    said = f"{count} checkpoints of about {size(sizes.checkpoint)} (model, optimiser, queue): {size(need)}"
    if free is None:
        return ok("checkpoints", f"{said} in {place}")
    if need > free:
        return failure(
            "checkpoints",
            f"{said}, {size(free)} free in {place}",
            "make room, lower checkpoint.keep_last or raise checkpoint.keep_every, or keep runs on s3:// (--storage)",
        )
    return ok("checkpoints", f"{said}, {size(free)} free in {place}")


def check_disks(nodes: Facts, folders: Mapping[str, str]) -> Check:
    """Room where Ray keeps its logs and what the object store spills, by node."""
    full, narrow = {}, {}
    for node, facts in nodes.items():
        folder = folders.get(node, "")
        room = facts["disks"].get(folder)
        if room is None:
            continue
        used = 1 - room["free"] / room["total"]
        what = f"{size(room['free'])} of {size(room['total'])} free in {folder}"
        if used > FULL:
            full[node] = what
        elif room["free"] < 5e9:
            narrow[node] = what
    mend = "make room there, or start Ray with --temp-dir on a larger disk"
    if full:
        return failure("disk", f"{by_node(full)}; Ray takes no work where less than 5 % are free", mend)
    if narrow:
        return warning("disk", by_node(narrow), mend)
    return ok("disk", "room for Ray's logs and spilled objects")


def check_object_store(nodes: Facts, stores: Mapping[str, float], config: Config | None, sizes: Sizes | None) -> Check:
    """Whether Ray's object store lies in memory and holds the crops on their way.

    Args:
        stores: bytes of each node's.
    """
    beyond = {
        node: f"an object store of {size(amount)}, /dev/shm holds {size(nodes[node]['shared_memory']['total'])}"
        for node, amount in stores.items()
        if node in nodes and nodes[node]["shared_memory"] and amount > nodes[node]["shared_memory"]["total"]
    }
    if beyond:
        mend = "give /dev/shm room (Docker: --shm-size=10g) and start Ray anew: its store lies on disk now, and is slow"
        return warning("object store", by_node(beyond), mend)
    total = sum(stores.values())
    if config is None or sizes is None or config.data.crop_in == "worker":
        return ok("object store", f"{size(total)} on {len(stores)} nodes")
    need = BATCHES_AHEAD * config.global_batch_size * sizes.crop_bytes
    said = f"{BATCHES_AHEAD} batches of crops take {size(need)} of {size(total)}"
    if need > total:
        mend = "start Ray with a larger --object-store-memory, or crop in the workers: --set data.crop_in=worker"
        return warning("object store", f"{said}: the rest is spilled to disk", mend)
    return ok("object store", said)


def check_memory(config: Config, sizes: Sizes, nodes: Facts, per_node: Mapping[str, int], gpus: float) -> Check:
    """Whether a worker's rows fit, with the fewest workers the run may have.

    Args:
        per_node: workers that may share each node.
        gpus: of a worker; 0: it trains on CPUs.
    """
    name = "memory"
    workers, _ = ends(config.elastic)
    batch = config.batch_on(workers)
    block = config.data.block_rows
    share = min(batch, -(-batch // (block * workers)) * block)
    cap = config.elastic.max_rows_per_device
    if cap == "auto":  # on a GPU the run tries down to the least
        cap = LEAST if gpus else 0
    rows = min(share, cap or share)
    need = sizes.device(rows)
    said = (
        f"about {size(need)} for {rows} rows x {config.num_crops} crops of {config.backbone.arch} on each of "
        f"{workers} worker{'s' if workers > 1 else ''} (an estimate: weights, gradients, optimiser, kept activations + 25 %)"
    )
    if gpus:
        rooms = {
            node: min(device["memory"] or facts["memory"] for device in facts["gpus"]["devices"]) - CONTEXT_BYTES
            for node, facts in nodes.items()
            if facts["gpus"]["devices"]
        }
        where = "GPU"
    else:
        # Workers that a node holds share its memory; what the object store takes is not theirs.
        rooms = {
            node: max(0, int(0.7 * facts["memory"] / max(1, min(per_node.get(node, 1), workers))) - PROCESS_BYTES)
            for node, facts in nodes.items()
            if per_node.get(node, 1)
        }
        where = "memory for a worker"
    if not rooms:
        return skipped(name, f"no node has room for a worker; {said}")
    least = min(rooms.values())
    fitting = f"--set elastic.max_rows_per_device={_fitting(sizes, least)}"
    mend = f"{fitting} (more passes, the same loss), more workers, or smaller crops"
    tight = {node: f"{where} of {size(room)}" for node, room in rooms.items() if need > room}
    if tight and need > max(rooms.values()):
        return failure(name, f"{said}; {by_node(tight)}", mend)
    if tight or need > NEAR * least:
        return warning(name, f"{said}; {by_node(tight) if tight else f'{where} of {size(least)}'}", mend)
    return ok(name, f"{said}; {where} of {size(least)}")


def _fitting(sizes: Sizes, room: int) -> int:
    """Rows that fit, rounded down to a power of two, 4 at least."""
    rows = (NEAR * room - sizes.device(0)) / max(1.0, sizes.device(1) - sizes.device(0))
    return max(4, 1 << max(0, int(rows).bit_length() - 1))
