"""Backbone, projector and prototypes as one module (arXiv 2006.09882; SWAV_FACTS 2).

Shapes: V crops, B rows, D feature dimensions, K prototypes. Outputs are crop-major: crop v of row b is row ``v * B + b``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    has_autocast = torch.amp.is_autocast_available(device.type)  # meta tensors have none
    return torch.autocast(device.type, enabled=False) if has_autocast else contextlib.nullcontext()


class SwAV(nn.Module):
    """Crops to unit embeddings and their cosine similarities to the prototypes.

    Args:
        backbone: any module from images ``(N, 3, H, W)`` to features ``(N, num_features)``.
        num_features: width of the backbone's features.
        hidden_dim: of the projector; 0 makes it a single linear layer.
        feature_dim: D, of the embeddings.
        num_prototypes: K.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        hidden_dim: int = 2048,
        feature_dim: int = 128,
        num_prototypes: int = 3000,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if hidden_dim:
            self.projector: nn.Module = nn.Sequential(
                nn.Linear(num_features, hidden_dim),
                nn.BatchNorm1d(hidden_dim),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_dim, feature_dim),
            )
        else:
            self.projector = nn.Sequential(nn.Linear(num_features, feature_dim))
        self.prototypes = nn.Linear(feature_dim, num_prototypes, bias=False)

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embed every crop; neighbouring crops of one size share a backbone call.

        The grouping is part of the method: batch statistics of the backbone are taken per resolution, those of the
        projector over all crops.

        Args:
            crops: V tensors ``(B, 3, H, W)``; or fewer, each of several crops of one size joined: ``(C * B, 3, H, W)``.

        Returns:
            ``(V * B, D)`` unit embeddings and ``(V * B, K)`` scores, both crop-major.
        """
        groups = [list(same) for _, same in itertools.groupby(crops, key=lambda crop: crop.shape[-1])]
        features = torch.cat([self.backbone(group[0] if len(group) == 1 else torch.cat(group)) for group in groups])
        # Whatever autocast does above: a cosine in bfloat16 is off by up to 0.004, which an epsilon of 0.05 makes 8 %. The head
        # is a hundredth of the work.
        with _no_autocast(features.device):
            projected = self.projector(features.to(self.prototypes.weight.dtype))
            embeddings = nn.functional.normalize(projected, dim=1)
            return embeddings, self.prototypes(embeddings)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Put every prototype back on the unit sphere, in place; done before each forward, also while frozen."""
        weight_KD = self.prototypes.weight
        weight_KD.copy_(nn.functional.normalize(weight_KD, dim=1))
