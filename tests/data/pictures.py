"""Pictures for tests, and their bytes in many formats."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft colours with some detail: a random picture of a sixth of the size, enlarged, under a little noise."""
    random = np.random.RandomState(seed)
    small = random.randint(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, dtype=np.int64) + random.randint(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@functools.cache
def photo(name: str) -> Image.Image:
    """A real photograph of 640 x 427 that scikit-learn carries: ``china.jpg`` or ``flower.jpg``."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))
