"""Image bytes to pixels, and to the JPEG a shard holds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# A picture larger than this is a mistake or an attack. Decoding one that Pillow must decode takes 0.9 GB and a second or two.
MAX_PIXELS = 100_000_000
MAX_PIXELS_PER_BYTE = 1024  # a JPEG spends a bit on each block of 8 x 8 pixels of each colour; more is a header that lies
MAX_PASSES = 10**10  # pixels times scans of a JPEG: some seconds; each scan goes over all pixels, and ten bytes can be one
STRIP = 512  # lines
REFUSED = (ValueError, KeyError)  # by simplejpeg; KeyError: of a sampling it has no name for, as 4:4:1


class BadImageError(Exception):
    """An image that cannot be used; the message says why."""


def decode(content: bytes) -> Image.Image:
    """The RGB picture of image bytes, fully decoded.

    Raises:
        BadImageError: truncated, not an image, larger than 100 million pixels, or a bomb.
    """
    with _one_error():
        image: Image.Image = Image.open(io.BytesIO(content))
        _check(content, image.height, image.width)
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB


def _check(content: bytes, height: int, width: int) -> None:
    """Refuse what its header says would take too much memory or time, or cannot be true; nothing is decoded."""
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels is more than {MAX_PIXELS:,}")
    if content.startswith(b"\xff\xd8"):
        if pixels > MAX_PIXELS_PER_BYTE * len(content):
            raise BadImageError(f"{width} x {height} pixels is more than a JPEG of {len(content):,} bytes can hold")
        # Counting takes time too: only where that many would fit.
        if pixels * len(content) > 10 * MAX_PASSES and pixels * (scans := content.count(b"\xff\xda")) > MAX_PASSES:
            raise BadImageError(f"{width} x {height} pixels in {scans:,} scans would take too long")


def size_of(content: bytes) -> tuple[int, int]:
    """Height and width in pixels, from the header alone.

    Raises:
        BadImageError: not an image, larger than 100 million pixels, or a bomb.
    """
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    except REFUSED:  # no JPEG, or an odd one: Pillow decides
        with _one_error():
            image = Image.open(io.BytesIO(content))
            height, width = image.height, image.width
    _check(content, height, width)
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
    except REFUSED:
        pass
    image = decode(content)
    if image.size != (width, height):
        raise BadImageError(f"{image.width} x {image.height} pixels where its header says {width} x {height}")
    pixels = room[: height * width * 3].reshape(height, width, 3)
    for top in range(0, height, STRIP):  # of a whole picture numpy's copy takes three times its memory
        pixels[top : top + STRIP] = np.asarray(image.crop((0, top, width, min(top + STRIP, height))))


@contextmanager
def _one_error() -> Iterator[None]:
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


@dataclass(frozen=True)
class Ingested:
    """What goes into a shard: JPEG bytes, their size, and whether they are the file's own."""

    jpeg: bytes
    width: int
    height: int
    transcoded: bool


def ingest(content: bytes, quality: int = 95) -> Ingested:
    """JPEG bytes of any image file: untouched where every decoder reads them alike, else transcoded once.

    Transcoded are other formats, CMYK, rotated-by-EXIF and progressive files (2.2 times as slow to decode).

    Raises:
        BadImageError: see :func:`decode`.
    """
    rgb = decode(content)
    with _one_error():
        image: Image.Image = Image.open(io.BytesIO(content))
        turned = _is_turned(image)
        plain = image.format == "JPEG" and image.mode in ("RGB", "L") and not image.info.get("progressive")
        if plain and not turned:
            return Ingested(content, image.width, image.height, transcoded=False)
        if turned:
            image = ImageOps.exif_transpose(image)
            rgb = image.convert("RGB")
        grey = image.mode in ("1", "L", "I", "I;16", "F")
        if image.mode.startswith(("I", "F")):
            rgb = _from_deep(image)
        out = io.BytesIO()
        (rgb.convert("L") if grey else rgb).save(out, "JPEG", quality=quality, subsampling=0)
        return Ingested(out.getvalue(), rgb.width, rgb.height, transcoded=True)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) != 1
    except Exception:  # broken metadata turn nothing; the pixels are good
        return False


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit and float pictures scaled to 8 bits; Pillow's own conversion clips them white."""
    values: NDArray[np.float64] = np.asarray(image, dtype=np.float64)
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
    return Image.fromarray((values * (255.0 / top)).clip(0, 255).astype(np.uint8)).convert("RGB")
