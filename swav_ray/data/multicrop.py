"""Pictures to crops: what the draws say, by one of two backends that give the same bytes.

Shapes: B rows, C crops of one size, S side in pixels. Everything is uint8 until the training side normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swav_ray.config import Config
from swav_ray.data.compiled import kernels
from swav_ray.data.decode import BadImageError, size_of
from swav_ray.data.draws import draw
from swav_ray.data.fast import Fast
from swav_ray.data.reference import Reference

Crops = list[NDArray[np.uint8]]  # one array (C, B, S, S, 3) for each crop size


@dataclass(frozen=True)
class CropBatch:
    """The crops of B pictures, and the pictures that could not be read: (id, reason)."""

    crops: Crops
    bad: list[tuple[str, str]]


def ready(config: Config) -> None:
    """Have the kernels compiled, which takes some seconds once on a machine.

    Raises:
        UserError: this host cannot; the line says what to install or set.
    """
    if config.data.backend == "fast":
        kernels()


def empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.empty(shape, dtype=np.uint8)


def room(config: Config, rows: int, empty: Callable[[tuple[int, ...]], NDArray[np.uint8]] = empty) -> Crops:
    """Arrays for the crops of so many pictures, still empty."""
    sizes = zip(config.crop_counts, config.crop_sizes, strict=True)
    return [empty((count, rows, size, size, 3)) for count, size in sizes]


def make_crops(
    config: Config, epoch: int, ids: Sequence[str], jpegs: Sequence[bytes], into: Crops | None = None, at: int = 0
) -> CropBatch:
    """Decode each picture once, one at a time, and cut all its crops.

    Args:
        into: where to put them, from row ``at`` on; by default into arrays of their own.

    An unreadable picture is replaced by the next readable one of the same batch, seen through its own draws, so that
    batches keep their size; if none is readable, by black ones.
    """
    backend = Fast if config.data.backend == "fast" else Reference
    crops = room(config, len(ids)) if into is None else into
    sizes = np.ones((len(ids), 2), dtype=np.int64)
    bad: dict[int, str] = {}
    for row, jpeg in enumerate(jpegs):
        try:
            sizes[row] = size_of(jpeg)
        except BadImageError as error:
            bad[row] = str(error)
    cutter = backend(draw(config, epoch, ids, sizes), sizes)
    for row, jpeg in enumerate(jpegs):
        if row not in bad:
            try:
                cutter.cut(row, jpeg, crops, at + row)
            except BadImageError as error:
                bad[row] = str(error)
    for row in bad:
        others = [(row + k) % len(ids) for k in range(1, len(ids)) if (row + k) % len(ids) not in bad]
        if others:
            size = sizes[others[:1]]
            backend(draw(config, epoch, [ids[row]], size), size).cut(0, jpegs[others[0]], crops, at + row)
        else:
            for group in crops:
                group[:, at + row] = 0
    return CropBatch(crops, [(ids[row], bad[row]) for row in sorted(bad)])


def centre_crop(image: Image.Image, resize: int, size: int) -> NDArray[np.uint8]:
    """The evaluation view ``(S, S, 3)``: short side to ``resize``, centre crop of ``size`` (SWAV_FACTS 8)."""
    if min(image.size) != resize:
        width, height = (int(resize * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
