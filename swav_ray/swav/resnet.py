"""ResNets of any base width with torchvision's parameter names (SWAV_FACTS 2).

Width 64 is torchvision's own network; 128, 256 and 320 are the published w2, w4 and w5 (every stage widened, not
torchvision's `wide_resnet50_2`, which widens the middle convolution only). The reference pads by a layer of its own before
a 7x7 convolution of padding 2: the same numbers, and no weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from swav_ray.swav.small_conv import Conv3x3

ONEDNN_BLOCK = 16  # channels


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, its channels filled up to a block with zeros.

    On CPUs oneDNN writes past its workspace in the backward pass of fewer channels (oneDNN issue 6035): a crash, and by that
    report wrong gradients or a hang.
    """

    def forward(self, input: Tensor) -> Tensor:
        missing = (0, 0, 0, 0, 0, ONEDNN_BLOCK - self.in_channels)
        return nn.functional.conv2d(
            nn.functional.pad(input, missing), nn.functional.pad(self.weight, missing), stride=self.stride
        )


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    if size == 3:
        return Conv3x3(inputs, outputs, stride)
    kind = _StridedPointwise if size == 1 and stride > 1 and inputs < ONEDNN_BLOCK else nn.Conv2d
    return kind(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + skip)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1; of ResNet-50."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = _conv(planes, planes * 4, 1), nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + skip)


@contextmanager
def _counted_once(block: nn.Module) -> Iterator[None]:
    """The same batch a second time: batch norm leaves its running statistics alone."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, before, strict=True):
            norm.track_running_stats = tracks


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first run of a block that is run twice, and of the second."""
    return nullcontext(), _counted_once(block)


class Design(NamedTuple):
    """All that makes one ResNet another; ``ResNet(*design)`` builds it."""

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, ...]
    base_width: int
    stem: str

    @property
    def arch(self) -> str:
        """Its name in :data:`ARCHITECTURES`, or how many blocks of which kind."""
        named = (name for name, known in ARCHITECTURES.items() if known == (self.block, self.layers))
        return next(named, f"ResNet of {'-'.join(map(str, self.layers))} {self.block.__name__}s")

    def __str__(self) -> str:
        return f"{self.arch} of width {self.base_width} with the {self.stem} stem"


class ResNet(nn.Module):
    """Images ``(N, 3, H, W)`` to features ``(N, num_features)``.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each of the four stages.
        base_width: channels of the stem; stage s has ``base_width * 2**s`` planes.
        stem: ``imagenet`` (7x7 stride 2, then 3x3 max-pool) or ``small`` (3x3 stride 1, no pool) for images of 16-64 px.

    Attributes:
        recompute: keep for the backward pass only what enters each block, and run the block again there.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], base_width: int = 64, stem: str = "imagenet"
    ) -> None:
        super().__init__()
        self.design = Design(block, layers, base_width, stem)
        self.recompute = False
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        elif stem == "small":
            self.conv1 = _conv(3, base_width, 3)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        self.bn1 = nn.BatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = base_width, []
        for index, blocks in enumerate(layers):
            planes = base_width * 2**index
            stage = []
            for i in range(blocks):
                stride = 2 if index > 0 and i == 0 else 1
                downsample = None
                if stride != 1 or channels != planes * block.expansion:
                    out = planes * block.expansion
                    downsample = nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))
                stage.append(block(channels, planes, stride, downsample))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for block in itertools.chain(self.layer1, self.layer2, self.layer3, self.layer4):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=functools.partial(_contexts, block))
            else:
                x = block(x)
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def resnet(arch: str, *, base_width: int = 64, stem: str = "imagenet") -> ResNet:
    """The network named ``arch``; see :data:`ARCHITECTURES`."""
    block, layers = ARCHITECTURES[arch]
    return ResNet(block, layers, base_width, stem)
