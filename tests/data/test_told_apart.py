"""A classifier that is to tell compiled crops from Pillow's cannot, and could if the pipeline had one of the usual faults.

Both sides see the same pictures through draws of their own, so that it is distributions that are compared. A row is a
picture's first two crops: two, so that a draw shared by the crops of a picture shows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from swav_ray.data import reference
from swav_ray.data.decode import decode
from swav_ray.data.draws import Draws, draw
from swav_ray.data.fast import Fast
from swav_ray.data.reference import Reference
from tests.data.pictures import encode, photo
from tests.data.small import small_config

SIDE = 32
ROWS = 16_000
CHANCE = 0.015  # how far from half counts as chance
CONFIG = small_config(crop_sizes=[SIDE], crop_counts=[2], crop_min_scales=[0.2], crop_max_scales=[1.0])


@functools.cache
def tiles() -> list[bytes]:
    """Parts of two photographs, 120 x 90."""
    corners = [(x, y) for x in range(0, 520, 40) for y in range(0, 330, 30)]
    names = ("china.jpg", "flower.jpg")
    return [encode(photo(name).crop((x, y, x + 120, y + 90)), quality=95) for name in names for x, y in corners]


def drawn(epoch: int, change: Callable[[Draws], Draws], rows: int) -> tuple[Draws, NDArray[np.int64]]:
    sizes = np.full((rows, 2), (90, 120), dtype=np.int64)
    return change(draw(CONFIG, epoch, [f"{row}" for row in range(rows)], sizes)), sizes


def unchanged(draws: Draws) -> Draws:
    return draws


def crops_of(backend: type, epoch: int, rows: int, change: Callable[[Draws], Draws] = unchanged) -> NDArray[np.uint8]:
    """``(rows, 2, S, S, 3)``."""
    out = [np.empty((2, rows, SIDE, SIDE, 3), dtype=np.uint8)]
    cutter = backend(*drawn(epoch, change, rows))
    for row in range(rows):
        cutter.cut(row, tiles()[row % len(tiles())], out, row)
    return out[0].swapaxes(0, 1)


def in_fixed_order(draws: Draws) -> Draws:
    return dataclasses.replace(draws, order=np.broadcast_to(np.arange(4), draws.order.shape).copy())


def shared(draws: Draws) -> Draws:
    """Both crops of a picture jittered alike."""
    return dataclasses.replace(draws, factors=np.repeat(draws.factors[:, :1], 2, axis=1))


def without_hue(draws: Draws) -> Draws:
    return dataclasses.replace(draws, factors=draws.factors * np.array([1, 1, 1, 0]))


class Faulty(Reference):
    """Makes the crop's 32 x 32 pixels otherwise, and lets Pillow do what then is left to do."""

    def cut(self, row: int, content: bytes, crops: list[NDArray[np.uint8]], at: int) -> None:
        d = self._draws
        nothing, full = np.zeros_like(d.top), np.full_like(d.height, SIDE)
        rest = self.rest(dataclasses.replace(d, top=nothing, left=nothing, height=full, width=full))
        for crop in range(2):
            small = self.crop(decode(content), row, crop)
            crops[0][crop, at] = np.asarray(reference._crop(small, rest, row, crop, SIDE))

    def rest(self, draws: Draws) -> Draws:
        return draws

    def crop(self, picture: Image.Image, row: int, crop: int) -> Image.Image:
        raise NotImplementedError


class Aliased(Faulty):
    """Bilinear between the four nearest pixels, however much it shrinks."""

    def crop(self, picture: Image.Image, row: int, crop: int) -> Image.Image:
        left, top, width, height = (int(getattr(self._draws, name)[row, crop]) for name in ("left", "top", "width", "height"))
        box = (left, top, left + width, top + height)
        return picture.transform((SIDE, SIDE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


class Unclamped(Faulty):
    """Jitter in real numbers, cut off to bytes only at its end."""

    def rest(self, draws: Draws) -> Draws:
        return dataclasses.replace(draws, jitter=np.zeros_like(draws.jitter), flip=np.zeros_like(draws.flip))

    def crop(self, picture: Image.Image, row: int, crop: int) -> Image.Image:
        d, off = self._draws, np.zeros_like(self._draws.jitter)
        plain = dataclasses.replace(d, jitter=off, grey=off, sigma=np.zeros_like(d.sigma))
        pixels = np.asarray(reference._crop(picture, plain, row, crop, SIDE)).astype(np.float64)
        for operation in d.order[row, crop] if d.jitter[row, crop] else ():
            grey = pixels @ np.array([0.299, 0.587, 0.114])
            base = (0.0, grey.mean(), grey[..., None], pixels)[operation]
            pixels = base + d.factors[row, crop, operation] * (pixels - base)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def features(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``(rows, F)``: what a crop is like (levels, clipped shares, colourfulness, sharpness), and how alike two are."""
    x = crops.astype(np.float64)
    high, low = x.max(axis=-1), x.min(axis=-1)
    grey = x @ np.array([0.299, 0.587, 0.114])
    across, along = np.diff(grey, axis=-1), np.diff(grey, axis=-2)
    curve = np.abs(np.diff(across, axis=-1)).mean(axis=(-1, -2))
    slope = np.abs(across).mean(axis=(-1, -2)) + np.abs(along).mean(axis=(-1, -2))
    spread = np.maximum(grey.std(axis=(-1, -2)), 1e-6)
    spectrum = (high - low) / np.maximum(high, 1)
    one = [
        *np.moveaxis(x.mean(axis=(2, 3)), -1, 0),
        *np.moveaxis(x.std(axis=(2, 3)), -1, 0),
        *np.moveaxis((x == 255).mean(axis=(2, 3)), -1, 0),
        *np.moveaxis((x == 0).mean(axis=(2, 3)), -1, 0),
        x.max(axis=(2, 3, 4)),
        x.min(axis=(2, 3, 4)),
        (high == 255).mean(axis=(2, 3)),
        (low == 0).mean(axis=(2, 3)),
        (high == low).mean(axis=(2, 3)),
        spectrum.mean(axis=(2, 3)),
        spectrum.std(axis=(2, 3)),
        (spectrum == 1).mean(axis=(2, 3)),
        spread,
        slope / spread,
        curve / spread,
        curve / np.maximum(slope, 1e-6),
    ]
    columns = np.stack(one, axis=-1)  # (rows, 2, features)
    between = np.abs(columns[:, 0] - columns[:, 1])
    return np.concatenate([columns[:, 0], columns[:, 1], between], axis=-1)


def share_told(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """How many of the held-out half a classifier puts on the right side."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    half = len(a) // 2
    left, right = features(a), features(b)
    train = np.concatenate([left[:half], right[:half]])
    test = np.concatenate([left[half:], right[half:]])
    told = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, random_state=0)
    told.fit(train, np.repeat([0, 1], half))
    return float(told.score(test, np.repeat([0, 1], len(a) - half)))


FAULTS = {
    "fixed order": (Fast, in_fixed_order),
    "shared draw": (Fast, shared),
    "no clamp": (Unclamped, without_hue),
    "no antialias": (Aliased, unchanged),
}


@pytest.mark.slow
def test_fast_crops_cannot_be_told_from_pillow_s() -> None:
    assert abs(share_told(crops_of(Fast, 1, ROWS), crops_of(Reference, 2, ROWS)) - 0.5) < CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_would_be_seen(fault: str) -> None:
    backend, change = FAULTS[fault]
    honest = crops_of(Fast, 2, ROWS, without_hue if change is without_hue else unchanged)
    assert share_told(crops_of(backend, 1, ROWS, change), honest) > 0.5 + CHANCE
