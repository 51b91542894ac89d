"""Image bytes to pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 100_000_000  # a picture larger than this is a mistake or an attack


class BadImageError(Exception):
    """An image that cannot be used; the message says why."""


def decode(content: bytes) -> Image.Image:
    """The RGB picture of image bytes, fully decoded.

    Raises:
        BadImageError: truncated, not an image, or larger than 100 million pixels.
    """
    with one_error():
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise BadImageError(f"{image.width} x {image.height} pixels is more than {MAX_PIXELS:,}")
        return image.convert("RGB")


def size_of(content: bytes) -> tuple[int, int]:
    """Height and width in pixels, from the header alone.

    Raises:
        BadImageError: not an image, or larger than 100 million pixels.
    """
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:  # no JPEG, or an odd one: Pillow decides
        with one_error():
            image = Image.open(io.BytesIO(content))
            height, width = image.height, image.width
    if height * width > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels is more than {MAX_PIXELS:,}")
    return height, width


def decode_into(room: NDArray[np.uint8], content: bytes, height: int, width: int) -> None:
    """Fill the first ``height * width * 3`` bytes of ``room`` with the RGB pixels that :func:`decode` gives.

    simplejpeg decodes what both read alike, bit for bit; the rest is left to Pillow: what simplejpeg refuses (it is the
    stricter one) and CMYK, which the two convert differently.

    Raises:
        BadImageError: see :func:`decode`.
    """
    import simplejpeg

    try:
        if simplejpeg.decode_jpeg_header(content)[2] in ("Gray", "YCbCr", "RGB"):
            simplejpeg.decode_jpeg(content, "RGB", buffer=room)
            return
    except ValueError:
        pass
    pixels = np.asarray(decode(content))
    if pixels.shape[:2] != (height, width):
        raise BadImageError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels where its header says {width} x {height}")
    room[: pixels.size] = pixels.reshape(-1)


@contextmanager
def one_error() -> Iterator[None]:
    """Whatever Pillow's plugins raise for a broken file, as BadImageError with a reason of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            yield
    except BadImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BadImageError("not an image" if "cannot identify" in reason else reason or type(error).__name__) from None
