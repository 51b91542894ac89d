"""A configuration to a model and its optimiser."""

from __future__ import annotations

import importlib
import shutil
from typing import Any

import torch
from torch import nn

from swav_ray.config import Config
from swav_ray.data.decode import decode
from swav_ray.data.multicrop import centre_crop
from swav_ray.data.stream import Stream
from swav_ray.errors import UserError, did_you_mean
from swav_ray.evaluate.features import normalise
from swav_ray.swav.batch_norm import leave_uncompiled
from swav_ray.swav.model import SwAV
from swav_ray.swav.optim import LARS
from swav_ray.swav.resnet import ARCHITECTURES, resnet


def build_backbone(config: Config) -> nn.Module:
    """The backbone the configuration names.

    Raises:
        UserError: no such architecture, or a factory that cannot be imported or lacks ``num_features``.
    """
    c = config.backbone
    if ":" in c.arch:
        module, _, factory = c.arch.partition(":")
        try:
            backbone = getattr(importlib.import_module(module), factory)()
        except (ImportError, AttributeError) as error:
            raise UserError(f"backbone.arch = {c.arch!r}: cannot be imported: {error}") from None
        if not isinstance(getattr(backbone, "num_features", None), int):
            raise UserError(f"backbone.arch = {c.arch!r}: the module needs an integer .num_features, the width of its features")
        if config.compute.recompute_activations:
            raise UserError(f"compute.recompute_activations: backbone.arch = {c.arch!r} is not ours to divide; set it to false")
        return backbone
    if c.arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"backbone.arch = {c.arch!r}{did_you_mean(c.arch, ARCHITECTURES)}: known are {known}, or package.module:factory"
        )
    backbone = resnet(c.arch, base_width=c.base_width, stem=c.stem)
    backbone.recompute = config.compute.recompute_activations
    return backbone


def compile_backbone(config: Config, model: SwAV) -> None:
    """Have the backbone compiled at its first call, if the configuration says so; its names and weights stay.

    Raises:
        UserError: this machine has no compiler for its processor.
    """
    mode = config.compute.compile
    if mode == "off":
        return
    if not any(p.is_cuda for p in model.parameters()) and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError(f"compute.compile = {mode}: needs a C++ compiler on this machine (g++); install one, or set it to off")
    leave_uncompiled()
    model.backbone.compile(mode=None if mode == "default" else mode)


def weights_dtype(config: Config) -> torch.dtype:
    """Of the weights; with mixed precision the activations have another."""
    return torch.float64 if config.precision == "float64" else torch.float32


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The forward pass runs within; it does something with mixed precision only."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16-mixed")


def build_model(config: Config) -> SwAV:
    backbone = build_backbone(config)
    return SwAV(
        backbone,
        num_features=backbone.num_features,  # type: ignore[arg-type]
        hidden_dim=config.hidden_dim,
        feature_dim=config.feature_dim,
        num_prototypes=config.num_prototypes,
    )


def build_optimizer(config: Config, model: SwAV) -> torch.optim.Optimizer:
    """The optimiser over one group, as published, or two where the prototypes have a learning rate of their own."""
    prototypes = list(model.prototypes.parameters())
    own = config.prototypes_lr_scale != 1
    rest = [p for p in model.parameters() if not own or all(p is not q for q in prototypes)]
    groups: list[dict[str, Any]] = [{"params": rest, "lr_scale": 1.0}]
    if own:
        groups.append({"params": prototypes, "lr_scale": config.prototypes_lr_scale})
    if config.optimizer == "lars":
        return LARS(groups, config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, config.base_lr, weight_decay=config.weight_decay)


@torch.no_grad()
def init_prototypes(model: SwAV, config: Config, stream: Stream) -> None:
    """Set the prototypes to the embeddings of K random images, the first of the plan; the same on every worker."""
    size, resize = evaluation_sizes(config)
    images: list[Any] = []
    for window in stream.plan.windows(epoch=0):
        pairs = window.pairs[: config.num_prototypes - len(images)]
        for jpeg in next(stream.shards.read_windows([pairs], ["jpeg"]))["jpeg"]:
            images.append(centre_crop(decode(jpeg), resize, size))
        if len(images) == config.num_prototypes:
            break
    if len(images) < config.num_prototypes:
        raise UserError(f"prototype_init samples: {len(images)} images are fewer than num_prototypes {config.num_prototypes}")
    import numpy as np

    parts = []
    for start in range(0, len(images), 256):
        pixels = normalise(np.stack(images[start : start + 256]), config.augment.mean, config.augment.std, torch.device("cpu"))
        parts.append(model.backbone(pixels))
    running = {name: value.clone() for name, value in model.state_dict().items() if "running" in name or "tracked" in name}
    model.prototypes.weight.copy_(nn.functional.normalize(model.projector(torch.cat(parts)), dim=1))
    model.load_state_dict(running, strict=False)


def evaluation_sizes(config: Config) -> tuple[int, int]:
    """(crop size, short side before it) of the evaluation view; 224 and 256 as published."""
    size = config.crop_sizes[0]
    return size, max(size, config.probe.resize or round(size * 256 / 224))
