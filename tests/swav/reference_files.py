"""Files as the reference writes them: its key sets and shapes (SWAV_FACTS 2, 6), around torchvision's own networks."""

from __future__ import annotations

import io
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

HIDDEN = {1: 2048, 2: 8192, 4: 8192, 5: 8192}  # of the projector, by width


class Widened(torchvision.models.ResNet):
    """torchvision's ResNet-50 with every stage and the stem `widen` times as wide, and no classifier."""

    def __init__(self, widen: int) -> None:
        self.widen = widen
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.conv1 = nn.Conv2d(3, 64 * widen, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **settings: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = 64 * self.widen
        return super()._make_layer(block, planes * self.widen, *args, **settings)


def shaken(model: nn.Module) -> nn.Module:
    """The model with batch norm's tensors other than ones and zeros, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if "bn" in key or "downsample.1" in key:
            value.add_(torch.rand(value.shape, generator=generator).mul_(0.2).to(value.dtype))
    return model.eval()


def trunk_and_heads(trunk: nn.Module, widen: int = 1) -> dict[str, Tensor]:
    """The model's state as a training process holds it: `module.` before all, head and prototypes beside the trunk."""
    hidden = HIDDEN[widen]
    device = next(trunk.parameters()).device
    with device:
        head = nn.Sequential(nn.Linear(2048 * widen, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 128))
        prototypes = nn.Linear(128, 3000, bias=False)
    state = dict(trunk.state_dict())
    state |= {f"projection_head.{key}": value for key, value in head.state_dict().items()}
    state["prototypes.weight"] = prototypes.weight.detach()
    return {f"module.{key}": value for key, value in state.items()}


def training_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What stands in a `.pth.tar` of the reference's training script."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.6, momentum=0.9).state_dict()
    amp = {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}}
    return {"epoch": 200, "state_dict": state, "optimizer": optimizer, "amp": amp}


def saved(content: Any, *, zipped: bool = True) -> bytes:
    """Bytes of torch.save; the format before PyTorch 1.6, which the published files have, with `zipped` off."""
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()
