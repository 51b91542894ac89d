"""A run small enough for tests: a few hundred digits, a network of a few thousand weights, every mechanism on."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swav_ray.config import Config, load_config
from swav_ray.data.chunks import Listed
from swav_ray.data.sharding import write_shards
from swav_ray.data.sources import digits_sources
from swav_ray.data.storage import Storage
from swav_ray.swav.resnet import resnet
from swav_ray.train.loop import Training
from swav_ray.train.metrics import read_metrics
from swav_ray.train.trainer import open_run
from swav_ray.train.world import World

ROWS, BATCH, EPOCHS = 330, 40, 2  # 9 steps of 36 or 37 rows an epoch: nothing divides anything
STEPS = EPOCHS * 9


def small_shards(uri: str) -> str:
    """Shards of 330 digits of all classes."""
    sources, classes = digits_sources("train")
    write_shards([Listed(sources[:: len(sources) // ROWS][:ROWS])], classes, Storage(uri))
    return uri


def small_config(train: str, storage: str, name: str, **changes: Any) -> Config:
    """Queue on from the second epoch, two crop sizes, ids logged, a checkpoint every 4 steps."""
    settings = {
        "name": name,
        "storage": storage,
        "data.train": train,
        "data.window_groups": 3,
        "data.block_rows": 7,
        "data.log_ids": True,
        "epochs": EPOCHS,
        "precision": "float64",  # in float32 a rounding now and then flips a ReLU, and two runs part ways by 1e-3
        "global_batch_size": BATCH,
        "crop_sizes": [16, 12],
        "backbone.base_width": 4,
        "hidden_dim": 16,
        "feature_dim": 8,
        "num_prototypes": 20,
        "queue_length": 80,
        "queue_start_epoch": 0,
        "freeze_prototypes_epochs": 0.3,
        "warmup_epochs": 1,
        "base_lr": 0.003,
        "final_lr": 0.0001,
        "start_warmup": 0.001,
        "checkpoint.every_steps": 4,
        "probe.every_epochs": 0,
        **changes,
    }
    return load_config("demo-digits", settings)


def train_here(config: Config, *, rank: int = 0, world: World | None = None, steps: int | None = None) -> list[dict[str, Any]]:
    """Train in this process (one of a gloo world, where there is one) and return the lines of metrics that have a loss."""
    torch.set_num_threads(1)
    world = world or World.join(torch.device("cpu"))
    training = Training(config, open_run(config), world)
    batches = training.stream.local(training.position, world.rank, world.size)
    training.run_to_end(itertools.islice(batches, steps))
    return losses_of(config)


def losses_of(config: Config) -> list[dict[str, Any]]:
    return [row for row in read_metrics(Storage(config.storage) / config.name) if "loss" in row]


class _Mortal(nn.Module):
    """A small ResNet whose process dies without notice at its n-th training forward of small crops, once."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet("resnet10", base_width=4, stem="small")
        self.num_features = self.net.num_features
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and images.shape[-1] == 12:
            self.calls += 1
            trap = Path(os.environ.get("SWAV_RAY_TEST_TRAP", "/nonexistent"))
            if self.calls == 7:
                try:
                    trap.unlink()  # whoever removes it dies of it
                except FileNotFoundError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self.net(images)


def mortal_backbone() -> nn.Module:
    """For ``backbone.arch: tests.train.small:mortal_backbone``; armed by a file named in SWAV_RAY_TEST_TRAP."""
    return _Mortal()
