"""Images to frozen features."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def normalise(
    images: NDArray[np.uint8] | Tensor, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Tensor:
    """``(N, S, S, 3)`` uint8 pictures to ``(N, 3, S, S)`` normalised floats on ``device``, channels last in memory."""
    pixels = torch.as_tensor(images).to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    scale, shift = torch.tensor([std, mean], device=device).view(2, 1, 3, 1, 1)
    return pixels.mul_(1.0 / (255.0 * scale)).sub_(shift / scale)  # in place: the one copy is the cast


@torch.no_grad()
def extract(backbone: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """``(N, D)`` features on the CPU of all batches, the backbone in eval mode; its mode is put back afterwards."""
    training = backbone.training
    backbone.eval()
    try:
        parts = [backbone(batch).float().cpu() for batch in batches]
    finally:
        backbone.train(training)
    return torch.cat(parts) if parts else torch.empty(0, 0)
