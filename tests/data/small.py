"""A data set of a few hundred small pictures, and configurations to stream it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swav_ray.config import Config, build_config
from swav_ray.data import sharding
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.shards import Manifest
from swav_ray.data.storage import Storage
from tests.data.pictures import encode, picture

ROWS = 331  # a prime: divides into nothing


class Counting:
    """Gives the bytes of one image and counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.calls = content, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.content


def small_sources(rows: int = ROWS, classes: int = 3) -> list[Source]:
    """Different pictures of different sizes."""
    return [
        Source(f"image-{row:04d}", row % classes, Counting(encode(picture(10 + row % 7, 9 + row % 5, row), quality=70)))
        for row in range(rows)
    ]


def write_small_shards(folder: Path, rows: int = ROWS, rows_per_file: int = 90) -> Manifest:
    """Several files, each with a row group that is not full."""
    sources = small_sources(rows)
    mean = sum(len(source.read.content) for source in sources) / rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "FILE_BYTES", int(mean * rows_per_file))
        return sharding.write_shards([Listed(sources)], ["a", "b", "c"], Storage(str(folder)))


def small_config(train: str = "", **changes: Any) -> Config:
    """Two crops of 8 px and one of 12, windows of two row groups, two epochs."""
    data = {"train": train, "window_groups": 2, "block_rows": 5, **changes.pop("data", {})}
    values = {
        "epochs": 2,
        "global_batch_size": 40,
        "num_prototypes": 4,
        "crop_sizes": [12, 8],
        "crop_counts": [1, 2],
        "crop_min_scales": [0.3, 0.1],
        "crop_max_scales": [1.0, 0.3],
        **changes,
        "data": data,
    }
    return build_config(values, "test")
