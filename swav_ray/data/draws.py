"""Every random number of every crop, drawn first, from a counter-based generator keyed (seed, epoch, image id, crop).

The same picture gets the same views on any worker, in any order, fresh or resumed. Distributions are those of
torchvision's RandomResizedCrop and ColorJitter and of the published blur (SWAV_FACTS 1).

Shapes: B rows, V crops, U uniforms of one crop.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swav_ray.config import Config

ATTEMPTS = 10  # of RandomResizedCrop to find a box inside the picture
RATIO = (3 / 4, 4 / 3)
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.int64)  # 0 brightness 1 contrast 2 saturation 3 hue

# Places of the uniforms of one crop; the first 2 * ATTEMPTS are (area, ratio) pairs.
_TOP, _LEFT, _FLIP, _JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GREY, _BLUR, _SIGMA, _ANGLE = range(
    2 * ATTEMPTS, 2 * ATTEMPTS + 13
)
_BLOCKS = -(-(2 * ATTEMPTS + 13) // 4)  # of four 32-bit numbers


def philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Philox 4x32-10 (Salmon et al. 2011): counters ``(..., 4)`` and a 64-bit key to ``(..., 4)`` 32-bit numbers."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) & mask for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def id_key(identifier: str) -> int:
    """The 64-bit number that stands for an image id in the generator's counter."""
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")


def uniforms(seed: int, epoch: int, ids: Sequence[str], num_crops: int) -> NDArray[np.float64]:
    """``(B, V, U)`` uniform numbers in (0, 1), one set for each (image, crop)."""
    keys = np.array([id_key(identifier) for identifier in ids], dtype=np.uint64)
    counter = np.zeros((len(ids), num_crops, _BLOCKS, 4), dtype=np.uint64)
    counter[..., 0] = (keys & np.uint64(0xFFFFFFFF))[:, None, None]
    counter[..., 1] = (keys >> np.uint64(32))[:, None, None]
    counter[..., 2] = np.uint64(epoch)
    counter[..., 3] = (np.arange(num_crops, dtype=np.uint64) * np.uint64(_BLOCKS))[:, None] + np.arange(
        _BLOCKS, dtype=np.uint64
    )
    return (philox(counter, seed).reshape(len(ids), num_crops, 4 * _BLOCKS).astype(np.float64) + 0.5) / 2.0**32


@dataclass(frozen=True)
class Draws:
    """What happens to the crops of B pictures; every array is ``(B, V)`` unless said."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    order: NDArray[np.int64]  # (B, V, 4), operations in the order they are applied
    factors: NDArray[np.float64]  # (B, V, 4): brightness, contrast, saturation factors; hue shift in turns
    grey: NDArray[np.bool_]
    sigma: NDArray[np.float64]  # pixels; 0 where the crop is not blurred
    angle: NDArray[np.float64]  # degrees, of the whole picture


def draw(config: Config, epoch: int, ids: Sequence[str], sizes: NDArray[np.int64]) -> Draws:
    """All draws for pictures ``ids`` of ``sizes`` ``(B, 2)`` (height, width)."""
    counts, augment = config.crop_counts, config.augment
    u = uniforms(config.seed, epoch, ids, config.num_crops)
    low = np.repeat(config.crop_min_scales, counts)
    high = np.repeat(config.crop_max_scales, counts)
    top, left, height, width = _boxes(u, sizes, low, high)

    def factor(place: int, strength: float) -> NDArray[np.float64]:
        floor = max(0.0, 1.0 - strength)
        return floor + u[..., place] * (1.0 + strength - floor)

    hue = (2 * u[..., _HUE] - 1) * augment.hue
    factors = [
        factor(_BRIGHTNESS, augment.brightness),
        factor(_CONTRAST, augment.contrast),
        factor(_SATURATION, augment.saturation),
    ]
    sigma_low, sigma_high = augment.blur_sigma
    return Draws(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=u[..., _FLIP] < augment.flip,
        jitter=u[..., _JITTER] < augment.jitter,
        order=JITTER_ORDERS[(u[..., _ORDER] * 24).astype(np.int64)],
        factors=np.stack([*factors, hue], axis=-1),
        grey=u[..., _GREY] < augment.grey,
        sigma=np.where(u[..., _BLUR] < augment.blur, sigma_low + u[..., _SIGMA] * (sigma_high - sigma_low), 0.0),
        angle=(2 * u[..., _ANGLE] - 1) * augment.rotation,
    )


def _boxes(
    u: NDArray[np.float64], sizes: NDArray[np.int64], low_V: NDArray[np.float64], high_V: NDArray[np.float64]
) -> tuple[NDArray[np.int64], ...]:
    """RandomResizedCrop's boxes: the first of ten that fits, else the largest central one of an allowed ratio."""
    height_B1, width_B1 = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = (height_B1 * width_B1)[..., None] * (low_V[:, None] + u[..., 0 : 2 * ATTEMPTS : 2] * (high_V - low_V)[:, None])
    ratio = np.exp(np.log(RATIO[0]) + u[..., 1 : 2 * ATTEMPTS : 2] * (np.log(RATIO[1]) - np.log(RATIO[0])))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))  # (B, V, attempts)
    fits = (widths > 0) & (widths <= width_B1[..., None]) & (heights > 0) & (heights <= height_B1[..., None])
    first = fits.argmax(axis=-1)[..., None]
    found = fits.any(axis=-1)

    picture = width_B1 / height_B1
    central_w = np.where(picture > RATIO[1], np.rint(height_B1 * RATIO[1]), width_B1)
    central_h = np.where(picture < RATIO[0], np.rint(width_B1 / RATIO[0]), height_B1)
    width = np.where(found, np.take_along_axis(widths, first, -1)[..., 0], central_w)
    height = np.where(found, np.take_along_axis(heights, first, -1)[..., 0], central_h)
    top = np.where(found, np.floor(u[..., _TOP] * (height_B1 - height + 1)), (height_B1 - height) // 2)
    left = np.where(found, np.floor(u[..., _LEFT] * (width_B1 - width + 1)), (width_B1 - width) // 2)
    return tuple(part.astype(np.int64) for part in (top, left, height, width))
