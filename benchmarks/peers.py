"""The steps ours is measured against: one written the plain way, and one of lightly's modules.

The plain step is written from the published method's description: float32, rows-first memory, torchvision's ResNet, a
backbone call a resolution, Sinkhorn on exponentials crop by crop, cross-entropies in two loops, the optimiser tensor by
tensor.

Shapes: B rows, K prototypes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from swav_ray.config import Config
from swav_ray.swav.model import SwAV


def torchvision_backbone(config: Config) -> nn.Module:
    backbone = getattr(torchvision.models, config.backbone.arch)()
    backbone.fc = nn.Identity()
    return backbone


class PlainStep:
    """``step(crops)`` makes one training step from normalised rows-first float32 crops and returns the loss.

    Args:
        weights: of a :class:`SwAV` model to begin with.
        bf16: run the network under autocast, all else as it is.
    """

    def __init__(self, config: Config, weights: dict[str, Tensor], device: torch.device, *, bf16: bool = False) -> None:
        self.config, self.device, self.bf16 = config, device, bf16
        backbone = torchvision_backbone(config)
        features = {"resnet18": 512, "resnet34": 512}.get(config.backbone.arch, 2048)
        # Only the modules of SwAV, for their names; its forward is not used.
        self.model = SwAV(
            backbone,
            num_features=features,
            hidden_dim=config.hidden_dim,
            feature_dim=config.feature_dim,
            num_prototypes=config.num_prototypes,
        )
        self.model.load_state_dict(weights)
        self.model.to(device)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=config.base_lr, momentum=config.momentum, foreach=False)

    def step(self, crops: list[Tensor]) -> Tensor:
        c, model = self.config, self.model
        crops = [crop.to(self.device, non_blocking=True) for crop in crops]
        rows = len(crops[0])
        with torch.no_grad():
            weight = model.prototypes.weight
            weight.copy_(nn.functional.normalize(weight, dim=1))
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            features, first = [], 0
            for count in c.crop_counts:
                features.append(model.backbone(torch.cat(crops[first : first + count])))
                first += count
            embeddings = nn.functional.normalize(model.projector(torch.cat(features)), dim=1)
            scores = model.prototypes(embeddings)
        scores = scores.float()
        loss = torch.zeros((), device=self.device)
        for assigned in c.crops_for_assign:
            codes = self._codes(scores[rows * assigned : rows * (assigned + 1)].detach())
            terms = torch.zeros((), device=self.device)
            for crop in range(c.num_crops):
                if crop != assigned:
                    predicted = torch.log_softmax(scores[rows * crop : rows * (crop + 1)] / c.temperature, dim=1)
                    terms = terms - (codes * predicted).sum(dim=1).mean()
            loss = loss + terms / (c.num_crops - 1)
        loss = loss / len(c.crops_for_assign)
        self.sgd.zero_grad()
        loss.backward()
        self._scale_gradients()
        self.sgd.step()
        return loss.detach()

    @torch.no_grad()
    def _codes(self, scores_BK: Tensor) -> Tensor:
        codes_KB = torch.exp(scores_BK / self.config.epsilon).T
        num_prototypes, rows = codes_KB.shape
        codes_KB = codes_KB / codes_KB.sum()
        for _ in range(self.config.sinkhorn_iterations):
            codes_KB = codes_KB / codes_KB.sum(dim=1, keepdim=True) / num_prototypes
            codes_KB = codes_KB / codes_KB.sum(dim=0, keepdim=True) / rows
        return (codes_KB * rows).T

    @torch.no_grad()
    def _scale_gradients(self) -> None:
        decay = self.config.weight_decay
        for p in self.model.parameters():
            if p.grad is not None:
                size, slope = p.norm(), p.grad.norm()
                if size != 0 and slope != 0:
                    p.grad = (p.grad + decay * p) * (0.001 * size / (slope + decay * size + 1e-8))


class LightlyStep:
    """One training step of lightly's modules as its examples put them together: a backbone call a crop, its own LARS."""

    def __init__(self, config: Config, device: torch.device) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
        from lightly.utils.lars import LARS

        self.device = device
        features = {"resnet18": 512, "resnet34": 512}.get(config.backbone.arch, 2048)
        self.backbone = torchvision_backbone(config).to(device)
        self.head = SwaVProjectionHead(features, config.hidden_dim, config.feature_dim).to(device)
        self.prototypes: Any = SwaVPrototypes(config.feature_dim, config.num_prototypes).to(device)
        self.criterion = SwaVLoss()
        parameters = [p for part in (self.backbone, self.head, self.prototypes) for p in part.parameters()]
        self.lars = LARS(parameters, lr=config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay)
        self.assigned = len(config.crops_for_assign)

    def step(self, crops: list[Tensor]) -> Tensor:
        self.prototypes.normalize()
        scores = []
        for crop in crops:
            features = self.backbone(crop.to(self.device, non_blocking=True)).flatten(start_dim=1)
            scores.append(self.prototypes(nn.functional.normalize(self.head(features), dim=1, p=2)))
        loss = self.criterion(scores[: self.assigned], scores[self.assigned :])
        self.lars.zero_grad()
        loss.backward()
        self.lars.step()
        return loss.detach()
