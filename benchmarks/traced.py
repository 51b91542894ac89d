"""A small backbone that writes down every training step, and takes as long for it as an accelerator would.

The processors of one machine are shared by all of its "nodes", so the time of a step is made by sleeping in proportion to
the worker's rows: a group of twice the workers is then about twice as fast, as on real nodes. Everything else is real.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from swav_ray.swav.resnet import resnet
from swav_ray.train.signals import SIGNALS

SECONDS_PER_ROW = 0.005
TRACE = "SWAV_RAY_BENCHMARK_TRACE"


class Step(NamedTuple):
    """A step begun on rank 0: when, with how many workers, and how many steps of the run were done before it."""

    time: float
    world: int
    done: int


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = resnet("resnet10", base_width=4, stem="small")
        self.num_features = self.net.num_features
        self.largest = 0  # side of the largest crops, which come first in a step

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.largest = max(self.largest, images.shape[-1])
        if self.training and images.shape[-1] == self.largest and TRACE in os.environ:  # once a step
            time.sleep(SECONDS_PER_ROW * len(images) / 2)
            joined = dist.is_initialized()
            if SIGNALS.beat().phase == "step" and (not joined or dist.get_rank() == 0):
                with Path(os.environ[TRACE]).open("a") as file:
                    file.write(f"{time.time()} {dist.get_world_size() if joined else 1} {SIGNALS.beat().step}\n")
        return self.net(images)


def backbone() -> nn.Module:
    return Traced()


def read_trace(path: Path) -> list[Step]:
    """All steps in order of time; none before the first."""
    if not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines() if line.count(" ") == 2]
    return sorted(Step(float(at), int(world), int(done)) for at, world, done in rows)
