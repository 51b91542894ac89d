"""Crops by Pillow, as torchvision does them (SWAV_FACTS 1): the oracle of `fast.py`, and for hosts without numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from swav_ray.data.decode import decode
from swav_ray.data.draws import Draws


class Reference:
    """Cuts the crops that ``draws`` say; the same methods as :class:`swav_ray.data.fast.Fast`."""

    def __init__(self, draws: Draws, sizes: NDArray[np.int64]) -> None:
        self._draws = draws

    def cut(self, row: int, content: bytes, crops: list[NDArray[np.uint8]], at: int) -> None:
        picture, first = decode(content), 0
        for group in crops:
            for crop in range(len(group)):
                group[crop, at] = np.asarray(_crop(picture, self._draws, row, first + crop, group.shape[2]))
            first += len(group)


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
