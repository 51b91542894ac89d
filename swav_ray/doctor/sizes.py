"""How much a configuration needs: of a checkpoint, of a worker's memory for its rows. Reckoned without allocating anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swav_ray.config import Config
from swav_ray.swav.feature_queue import usable_queue_length
from swav_ray.train.build import build_model, weights_dtype

STATE_COPIES = {"lars": 1, "sgd": 1, "adamw": 2}  # of the parameters, in the optimiser
SPARE = 1.25  # of what activations take: workspaces of kernels, fragmentation
MIXED = 0.65  # of float32's activations, measured with `precision: bf16-mixed` (benchmarks/memory.py)
PROCESS_BYTES = 1_500_000_000  # of a process that has imported torch, Ray and the data path, measured about so
CONTEXT_BYTES = 1_000_000_000  # of CUDA and NCCL on a GPU


@dataclass(frozen=True)
class Sizes:
    """Bytes. `row_bytes` is what one image with all its crops keeps until its gradients are done."""

    parameters: int
    buffers: int
    optimizer: int
    queue: int
    row_bytes: int
    crop_bytes: int  # of one image's crops as uint8

    @property
    def checkpoint(self) -> int:
        return self.parameters + self.buffers + self.optimizer + self.queue

    def device(self, rows: int) -> int:
        """Of the device that trains on so many rows at once: weights, gradients, optimiser, queue, activations."""
        return int(2 * self.parameters + self.buffers + self.optimizer + self.queue + SPARE * rows * self.row_bytes)


def sizes_of(config: Config) -> Sizes:
    """Run one forward pass of two images on torch's meta device, which computes shapes only, and count what it keeps.

    Raises:
        Exception: a backbone of the user's own that does something a tensor without values cannot.
    """
    with torch.device("meta"):
        model = build_model(config)
    dtype = weights_dtype(config)
    model.to("meta", dtype)
    width = dtype.itemsize
    parameters = sum(p.numel() for p in model.parameters()) * width
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    queue = (
        usable_queue_length(config.queue_length, config.global_batch_size) * len(config.crops_for_assign) * config.feature_dim
    )
    pixels = sum(count * size * size * 3 for size, count in zip(config.crop_sizes, config.crop_counts, strict=True))
    return Sizes(
        parameters=parameters,
        buffers=buffers,
        optimizer=STATE_COPIES[config.optimizer] * parameters,
        queue=queue * 4,
        row_bytes=math.ceil(_kept(config, model, dtype) * (MIXED if config.precision == "bf16-mixed" else 1)) + pixels * width,
        crop_bytes=pixels,
    )


def _kept(config: Config, model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes a row that autograd keeps from the forward to the backward pass."""
    rows = 2  # batch norm refuses one
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that no other takes its place
        return tensor

    crops = [
        torch.empty(rows, 3, size, size, device="meta", dtype=dtype)
        for size, count in zip(config.crop_sizes, config.crop_counts, strict=True)
        for _ in range(count)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(crops)
    return math.ceil(sum(nbytes for _, nbytes in kept.values()) / rows)
