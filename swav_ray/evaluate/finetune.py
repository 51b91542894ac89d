"""A linear classifier on a backbone, trained with as much of the backbone as is not frozen.

Shapes: B rows, N all rows, D features, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from swav_ray.errors import UserError
from swav_ray.evaluate.protocol import Protocol

STEM = ("conv1", "bn1")
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class Classifier(nn.Module):
    """Images ``(B, 3, H, W)`` to scores ``(B, C)``.

    What is frozen keeps its weights and, being in eval mode always, its running statistics; the rest of the trunk normalises
    by the statistics of the batch while it trains, as the published fine-tuning does.

    Raises:
        UserError: a layer is named and the backbone has none of that name.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, protocol: Protocol) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(protocol.seed)
            self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]
            if protocol.head_std is not None:
                nn.init.normal_(self.head.weight, std=protocol.head_std)
                nn.init.zeros_(self.head.bias)
        self.frozen: list[nn.Module] = frozen_parts(backbone, protocol.frozen)
        for module in self.frozen:
            module.requires_grad_(False)

    @property
    def trunk_is_frozen(self) -> bool:
        return self.frozen == [self.backbone]

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_is_frozen):
            features = self.backbone(images)
        return self.head(features)

    def optimizer(self, protocol: Protocol) -> torch.optim.Optimizer:
        """SGD over the head, and over what learns of the trunk; `initial_lr` of a group is its rate before the schedule."""
        trunk = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        groups = [{"params": list(self.head.parameters()), "lr": protocol.head_lr, "initial_lr": protocol.head_lr}]
        if trunk:
            groups.append({"params": trunk, "lr": protocol.lr, "initial_lr": protocol.lr})
        return torch.optim.SGD(groups, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def frozen_parts(backbone: nn.Module, frozen: str) -> list[nn.Module]:
    """What `frozen` names of a trunk; raises UserError where it has no such layers."""
    if frozen == "all":
        return [backbone]
    if frozen == "none":
        return []
    names = (*STEM, *LAYERS[: LAYERS.index(frozen) + 1])
    children = dict(backbone.named_children())
    missing = [name for name in names if name not in children]
    if missing:
        raise UserError(f"frozen {frozen}: {type(backbone).__name__} has no {missing[0]}; freeze none or all of it")
    return [children[name] for name in names]


@contextmanager
def drawn_by(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """What torch draws within is a function of (seed, number), and changes nothing of what it draws afterwards."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):  # not of all GPUs
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7]))
        yield


def train_epoch(
    model: Classifier, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]], rate: float
) -> float:
    """One pass over ``(images, labels)`` at ``rate`` times each group's own learning rate; the mean loss over its rows.

    Raises:
        UserError: the loss is not finite.
    """
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate * group["initial_lr"]
    total, rows = torch.zeros((), device=next(model.parameters()).device), 0
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)
        rows += len(labels)
    mean = total.item() / max(1, rows)
    if not math.isfinite(mean):
        raise UserError(f"the loss is {mean}: the training diverged; lower --set head_lr and --set lr")
    return mean


@torch.no_grad()
def scores_of(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """``(N, C)`` outputs on the CPU in eval mode; of the whole classifier or of a part of it."""
    model.eval()
    return torch.cat([model(images).float().cpu() for images in batches])
