"""`elastic.max_rows_per_device: auto`: in how few passes a worker's rows fit into its GPU's memory, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from swav_ray.config import Config
from swav_ray.data.stream import Position
from swav_ray.errors import UserError
from swav_ray.swav.batch_norm import batch_norm_over
from swav_ray.train.step import buffers_kept, loss_and_gradients
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World

if TYPE_CHECKING:
    from swav_ray.train.loop import Training

MARGIN = 0.08  # of a GPU's memory, left free: for communication, the probe, and memory in pieces too small to use
LEAST = 3  # rows of a pass: two could leave one row alone, which has no batch statistics


def with_cap(training: Training) -> Config:
    """The run's configuration with a number in place of `auto`: the largest that fits on every worker; on a CPU no cap.

    Every worker calls it, before the gradients' exchange is set up. Weights, statistics and queue stay as they are.

    Raises:
        UserError: not even the fewest rows fit.
    """
    config, world = training.config, training.world
    if config.elastic.max_rows_per_device != "auto":
        return config
    if world.device.type != "cuda":
        return capped(config, 0)
    batch = config.batch_on(world.size)
    blocks = -(-batch // config.data.block_rows)
    share = min(batch, -(-blocks // world.size) * config.data.block_rows)  # of the worker that holds most rows
    return capped(config, largest_cap(share, lambda cap: world.vote(not fits(training, share, cap))() == 0))


def capped(config: Config, rows: int) -> Config:
    """``config`` with so many rows at once; 0 is no cap."""
    return config.model_copy(update={"elastic": config.elastic.model_copy(update={"max_rows_per_device": rows})})


def largest_cap(share: int, fit: Callable[[int], bool]) -> int:
    """The largest cap on ``share`` rows that is ``fit``, among those that differ in passes; 0 (no cap) if all rows fit at once.

    Raises:
        UserError: the smallest is not.
    """
    passes = 1
    while True:
        rows = max(LEAST, -(-share // passes))
        if fit(rows):
            return 0 if passes == 1 else rows
        if rows == LEAST:
            raise UserError(
                f"elastic.max_rows_per_device auto: not even {LEAST} rows at once fit into this GPU's memory; "
                "take a smaller backbone or smaller crop_sizes, or set compute.recompute_activations"
            )
        passes += max(1, passes // 4)


def fits(training: Training, share: int, cap: int) -> bool:
    """Whether a step of ``share`` rows, ``cap`` at once, fits beside all that the run keeps. This worker alone, on no data."""
    model, device = training.model, training.world.device
    config = capped(training.config, cap)
    stream = SyntheticStream(config.model_copy(update={"global_batch_size": share}))
    alone = World(device=device)
    on_gpu = device.type == "cuda"
    devices = [device] if on_gpu else []
    try:
        with torch.random.fork_rng(devices), buffers_kept(model), batch_norm_over(model, training.world.alone()):
            held = _held_later(training)
            loss_and_gradients(config, model, model, next(stream.local(Position())), alone, training.queue)
            if on_gpu:
                torch.cuda.synchronize(device)
            del held
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.empty_cache()
    return True


def _held_later(training: Training) -> torch.Tensor:
    """Memory that the run will ask for beside the step: the margin, the optimiser's state, the gradients' buckets."""
    device = training.world.device
    weights = sum(p.numel() * p.element_size() for p in training.model.parameters())
    copies = 0 if training.optimizer.state else (2 if training.config.optimizer == "adamw" else 1)
    copies += training.world.group is not None
    margin = MARGIN * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return torch.empty(int(margin) + copies * weights, dtype=torch.uint8, device=device)
