"""Runs to export, made without training: a network with numbers of its own in a complete checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from swav_ray.config import load_config
from swav_ray.data.storage import Storage
from swav_ray.train.build import build_model
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.trainer import open_run
from tests.swav.reference_files import shaken


def untrained_run(storage: str, name: str, **changes: Any) -> str:
    """Address of a run with one checkpoint, as the training loop leaves it; its backbone is torchvision's ResNet-18."""
    settings = {"backbone.arch": "resnet18", "backbone.base_width": 64, "backbone.stem": "imagenet", "hidden_dim": 8}
    config = load_config("demo-digits", {"name": name, "storage": storage, "data.train": "none", **settings, **changes})
    run = open_run(config)
    torch.manual_seed(0)
    model = shaken(build_model(config)).to(memory_format=torch.channels_last)
    about = {"epoch": 3, "row": 0, "config_hash": config.hash(), "version": "9.9"}
    Checkpoints(Storage(run.uri) / "checkpoints").save(1234, {"model": model.state_dict()}, about)
    return run.uri
