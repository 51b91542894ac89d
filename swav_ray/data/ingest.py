"""Any image file to the JPEG a shard holds: one that every decoder reads alike and fast."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from swav_ray.data.decode import decode, one_error
from swav_ray.errors import UserError

QUALITY = 95  # of what has to be encoded anew and was no JPEG before
SMALLEST_SIDE = 8
_ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class Change:
    """What is changed in all pictures because it was asked for; by default nothing.

    Args:
        max_side: longest side in pixels; a larger picture is shrunk to it, a smaller one kept. 0: any size.
        quality: of JPEG, 1 to 100, at which every picture is encoded anew, colours at half resolution. 0: none is.

    Raises:
        UserError: a value out of its range.
    """

    max_side: int = 0
    quality: int = 0

    def __post_init__(self) -> None:
        if self.max_side and self.max_side < SMALLEST_SIDE:
            raise UserError(f"--max-side {self.max_side}: at least {SMALLEST_SIDE} pixels")
        if self.quality and not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: from 1 to 100")

    def named(self) -> dict[str, int]:
        """What a manifest says of it: the changes made, by name."""
        return {name: value for name, value in (("max_side", self.max_side), ("quality", self.quality)) if value}


@dataclass(frozen=True)
class Ingested:
    """What goes into a shard: JPEG bytes, their size in pixels, and why they are not the file's own (empty: they are)."""

    jpeg: bytes
    width: int
    height: int
    why: str = ""

    @property
    def transcoded(self) -> bool:
        return bool(self.why)


def ingest(content: bytes, change: Change | None = None) -> Ingested:
    """JPEG bytes of any image file: untouched where every decoder reads them alike, else transcoded once.

    Transcoded are pictures turned by EXIF, of 16 bits and more, CMYK, of another format, and progressive JPEGs (2.2 times
    as slow to decode); these keep their very coefficients where the `turbojpeg` package is there, else their own
    quantisation (0.2 to 0.3 grey levels off on average).

    Raises:
        BadImageError: see :func:`~swav_ray.data.decode.decode`.
    """
    change = change or Change()
    rgb = decode(content)  # all of it: a file cut short must not get in
    with one_error():
        image: Image.Image = Image.open(io.BytesIO(content))
        turned, why = _is_turned(image), _why(image)
        shrinks = bool(change.max_side) and max(image.size) > change.max_side
        if not turned and not shrinks and not change.quality:
            if not why:
                return Ingested(content, image.width, image.height)
            if why == "progressive":
                jpeg, how = _baseline(content, image)
                return Ingested(jpeg, image.width, image.height, f"progressive, {how}")
        why = "turned" if turned else why or ("shrunk" if shrinks else "encoded anew")
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        if turned:
            image = ImageOps.exif_transpose(image)
            rgb = image.convert("RGB")
        if image.mode.startswith(("I", "F")):
            rgb = _from_deep(image)
        if shrinks:
            rgb.thumbnail((change.max_side, change.max_side), Image.Resampling.LANCZOS, reducing_gap=None)
        out = io.BytesIO()
        subsampling = "4:2:0" if change.quality else "4:4:4"
        (rgb.convert("L") if grey else rgb).save(out, "JPEG", quality=change.quality or QUALITY, subsampling=subsampling)
        return Ingested(out.getvalue(), rgb.width, rgb.height, why)


def _why(image: Image.Image) -> str:
    """Why a file cannot go into a shard as it is; empty if it can."""
    if image.mode.startswith(("I", "F")):
        return "16 bits or more"
    if image.format not in ("JPEG", "MPO"):  # MPO: a JPEG with more pictures behind it, which nobody decodes
        return str(image.format)
    if image.mode not in ("RGB", "L"):
        return image.mode
    return "progressive" if image.info.get("progressive") else ""


def _baseline(content: bytes, image: Image.Image) -> tuple[bytes, str]:
    """A progressive JPEG as a baseline one, and how that was done."""
    try:
        import turbojpeg

        return turbojpeg.transform(content), "lossless"
    except (ImportError, RuntimeError):  # not installed, or stricter than Pillow with an odd file
        out = io.BytesIO()
        image.save(out, "JPEG", quality="keep" if image.format == "JPEG" else QUALITY)
        return out.getvalue(), "encoded anew"


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # broken metadata turn nothing; the pixels are good
        return False


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float pictures scaled to 8 bits; Pillow's own conversion clips them white.

    Pillow says of 16-bit files that they are, but for PGM, whose values it scales to 16 bits. What white is in a 32-bit or
    float file nobody says: the smallest usual value that holds all pixels.
    """
    values: NDArray[np.float64] = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16") or image.format == "PPM":
        white = 65535.0
    else:
        usual = (255.0, 65535.0, 2.0**31 - 1) if image.mode.startswith("I") else (1.0, 255.0, 65535.0)
        white = next((level for level in usual if values.max(initial=0) <= level), values.max(initial=0))
    return Image.fromarray((values * (255.0 / white)).clip(0, 255).round().astype(np.uint8)).convert("RGB")
