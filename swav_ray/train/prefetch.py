"""Crops on their way to a GPU while the step before runs there."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swav_ray.data.stream import Batch, Stream


def on_device(stream: Stream, batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches of ``stream`` with their crops on ``device``, one batch ahead; on the CPU they stay arrays.

    On a GPU the stream joins its crops in pinned memory from here on, and a CUDA stream of its own copies them. The batches are
    taken in the caller's thread, for between them all workers may meet in a collective.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream.empty = pinned
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, list[Tensor], torch.cuda.Event] | None = None

    def arrived(source: Batch, crops: list[Tensor], copied: torch.cuda.Event) -> Batch:
        copied.synchronize()  # the source's memory goes back to its pool; where the GPU is the slower side, long done
        for group in crops:
            group.record_stream(torch.cuda.current_stream(device))
        return replace(source, crops=crops)

    try:
        for batch in batches:
            with torch.cuda.stream(copies):
                crops = [torch.as_tensor(group).to(device, non_blocking=True) for group in batch.crops]
                copied = copies.record_event()
            if ahead is not None:
                yield arrived(*ahead)
            ahead = batch, crops, copied
        if ahead is not None:
            yield arrived(*ahead)
    finally:
        batches.close()


def pinned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Page-locked memory, which a GPU copies from without the processor. It goes back to a pool of torch's."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
