"""Pictures to crops: what the draws say, done with Pillow as torchvision does it (SWAV_FACTS 1).

Shapes: B rows, C crops of one size, S side in pixels. Everything is uint8 until the training side normalises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from swav_ray.config import Config
from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.draws import Draws, draw

Crops = list[NDArray[np.uint8]]  # one array (C, B, S, S, 3) for each crop size


@dataclass(frozen=True)
class CropBatch:
    """The crops of B pictures, and the pictures that could not be read: (id, reason)."""

    crops: Crops
    bad: list[tuple[str, str]]


def make_crops(config: Config, epoch: int, ids: Sequence[str], jpegs: Sequence[bytes]) -> CropBatch:
    """Decode each picture once and cut all its crops.

    An unreadable picture is replaced by the next readable one of the same batch, seen through its own draws, so that
    batches keep their size; if none is readable, by black ones.
    """
    images: list[Image.Image | None] = []
    bad: list[tuple[str, str]] = []
    for identifier, jpeg in zip(ids, jpegs, strict=True):
        try:
            images.append(decode(jpeg))
        except BadImageError as error:
            images.append(None)
            bad.append((identifier, str(error)))
    if bad:
        images = _replace_missing(images)
    pictures = [image or Image.new("RGB", (config.crop_sizes[0],) * 2) for image in images]
    sizes = np.array([(image.height, image.width) for image in pictures], dtype=np.int64).reshape(-1, 2)
    draws = draw(config, epoch, ids, sizes)
    crops, first = [], 0
    for size, count in zip(config.crop_sizes, config.crop_counts, strict=True):
        group = np.empty((count, len(pictures), size, size, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            for crop in range(count):
                group[crop, row] = np.asarray(_crop(picture, draws, row, first + crop, size))
        crops.append(group)
        first += count
    return CropBatch(crops, bad)


def _replace_missing(images: list[Image.Image | None]) -> list[Image.Image | None]:
    count = len(images)
    return [next((images[(i + k) % count] for k in range(count) if images[(i + k) % count]), None) for i in range(count)]


def _crop(picture: Image.Image, draws: Draws, row: int, crop: int, size: int) -> Image.Image:
    at = (row, crop)
    if draws.angle[at]:
        picture = picture.rotate(float(draws.angle[at]), resample=Image.Resampling.BILINEAR)
    top, left, height, width = (int(part[at]) for part in (draws.top, draws.left, draws.height, draws.width))
    image = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if draws.flip[at]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draws.jitter[at]:
        for operation in draws.order[at]:
            image = _adjust(image, int(operation), float(draws.factors[row, crop, operation]))
    if draws.grey[at]:
        image = image.convert("L").convert("RGB")
    if draws.sigma[at]:
        image = image.filter(ImageFilter.GaussianBlur(float(draws.sigma[at])))
    return image


def _adjust(image: Image.Image, operation: int, factor: float) -> Image.Image:
    if operation == 3:
        return _shift_hue(image, factor) if factor else image
    if factor == 1.0:
        return image
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    return enhancers[operation](image).enhance(factor)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.array(turns * 255).astype(np.int32).astype(np.uint8)  # wraps around, as it should
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def centre_crop(image: Image.Image, resize: int, size: int) -> NDArray[np.uint8]:
    """The evaluation view ``(S, S, 3)``: short side to ``resize``, centre crop of ``size`` (SWAV_FACTS 8)."""
    if min(image.size) != resize:
        width, height = (int(resize * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
