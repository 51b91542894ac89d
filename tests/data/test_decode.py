"""Image bytes to pixels, and to what a shard holds."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.ingest import ingest
from tests.data.pictures import encode, opened, photo, picture

JPEG_TOLERANCE = 5.0  # mean levels; a picture turned the wrong way differs by dozens
ORIENTATION = 0x0112


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data do not hold."""
    content = bytearray(encode(Image.new("RGB", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def assert_looks_like(jpeg: bytes, expected: np.ndarray) -> None:
    pixels = np.asarray(opened(jpeg).convert("RGB"), dtype=np.float64)
    if expected.ndim == 2:
        expected = expected[..., None]
    assert pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels - expected).mean() < JPEG_TOLERANCE


@pytest.mark.parametrize("read", [decode, ingest])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "not an image", id="empty"),
        pytest.param(b"hello, world" * 50, "not an image", id="text"),
        pytest.param(encode(picture(64, 48))[:700], "truncated", id="truncated jpeg"),
        pytest.param(encode(picture(64, 48), "PNG")[:700], "truncated", id="truncated png"),
        pytest.param(encode(picture(64, 48))[:30], "", id="header only"),
        pytest.param(png_claiming(40_000, 40_000), "decompression bomb", id="a bomb to Pillow"),
        pytest.param(png_claiming(10_001, 10_000), "10001 x 10000 pixels is more than 100,000,000", id="a bomb to us"),
    ],
)
def test_bad_bytes_are_one_error_of_one_line(read, content: bytes, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        read(content)
    message = str(caught.value)
    assert reason in message
    assert message
    assert "\n" not in message
    assert "0x" not in message  # no addresses: the same file gives the same words


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of metadata that stay broken in files kept as they are
def test_whatever_is_broken_the_error_is_the_same() -> None:
    """Some thousand files with flipped bytes in their headers and metadata."""
    flips = random.Random(31)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = picture(16, 12)
    good = [
        encode(image, exif=exif),
        encode(image.convert("CMYK"), exif=exif),
        encode(image, "PNG", exif=exif),
        encode(image, "WEBP", exif=exif),
        encode(image, "TIFF"),
        encode(image.convert("P"), "GIF"),
    ]
    readable = 0
    for turn in range(3000):
        content = bytearray(good[turn % len(good)])
        for _ in range(flips.randint(1, 3)):
            content[flips.randrange(min(len(content), 120))] = flips.randrange(256)
        try:
            result = ingest(bytes(content))
        except BadImageError:
            continue
        assert opened(result.jpeg).size == (result.width, result.height)
        readable += 1
    assert 300 < readable < 2900


def test_a_picture_no_jpeg_can_hold_is_bad() -> None:
    with pytest.raises(BadImageError):
        ingest(encode(Image.new("RGB", (70_000, 2)), "PNG"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_jpeg_is_kept_byte_for_byte(mode: str) -> None:
    content = encode(picture(33, 21).convert(mode), quality=60)
    kept = ingest(content)
    assert kept.jpeg == content
    assert (kept.width, kept.height, kept.transcoded) == (33, 21, False)
    assert decode(content).mode == "RGB"


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_broken_metadata_cost_no_picture(file_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encode(picture(20, 14), file_format, exif=exif)
    broken = content.replace(b"MM\x00*", b"MM\x00?")
    assert broken != content
    done = ingest(broken)
    assert (done.width, done.height) == (20, 14)
    assert (done.jpeg == broken) == (file_format == "JPEG")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encode(photo("china.jpg"), progressive=True), id="progressive"),
        pytest.param(encode(photo("china.jpg").convert("CMYK"), quality=95), id="cmyk"),
        pytest.param(encode(photo("china.jpg"), "PNG"), id="png"),
        pytest.param(encode(photo("china.jpg").quantize(256), "PNG"), id="palette"),
        pytest.param(encode(photo("china.jpg").convert("RGBA"), "PNG"), id="rgba"),
        pytest.param(encode(photo("china.jpg"), "WEBP", lossless=True), id="webp"),
        pytest.param(encode(photo("china.jpg"), "TIFF"), id="tiff"),
        pytest.param(encode(photo("china.jpg"), "BMP"), id="bmp"),
    ],
)
def test_other_formats_become_baseline_rgb_jpegs_of_the_same_pixels(content: bytes) -> None:
    done = ingest(content)
    jpeg = opened(done.jpeg)
    assert done.transcoded
    assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", (done.width, done.height))
    assert not jpeg.info.get("progressive")
    assert_looks_like(done.jpeg, np.asarray(opened(content).convert("RGB")))
    # The result is what a second pass would keep.
    assert not ingest(done.jpeg).transcoded


GRADIENT = np.linspace(0, 255, 40 * 30).reshape(30, 40)  # the brightness that every deep picture below stands for


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.fromarray(GRADIENT.astype(np.uint8)), id="8 bits"),
        pytest.param(Image.fromarray((GRADIENT * 257).astype(np.uint16)), id="16 bits"),
        pytest.param(Image.fromarray((GRADIENT * 257).astype(np.int32)), id="32 bits"),
    ],
)
def test_grey_pictures_stay_grey_and_keep_their_brightness(image: Image.Image) -> None:
    done = ingest(encode(image, "TIFF"))
    assert opened(done.jpeg).mode == "L"
    assert_looks_like(done.jpeg, GRADIENT)


def test_sixteen_bit_png() -> None:
    done = ingest(encode(Image.fromarray((GRADIENT * 257).astype(np.uint16)), "PNG"))
    assert_looks_like(done.jpeg, GRADIENT)


UPRIGHT = {  # what each EXIF orientation asks for, in numpy's words
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: lambda pixels: np.rot90(pixels, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["jpeg", "16 bit png"])
def test_turned_pictures_are_put_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if kind == "jpeg":
        pixels = np.asarray(picture(40, 30, seed=orientation))
        content = encode(Image.fromarray(pixels), exif=exif, quality=98, subsampling=0)
    else:
        pixels = GRADIENT
        content = encode(Image.fromarray((GRADIENT * 257).astype(np.uint16)), "PNG", exif=exif)
    done = ingest(content)
    assert done.transcoded
    assert (done.height, done.width) == UPRIGHT[orientation](pixels).shape[:2]
    assert_looks_like(done.jpeg, UPRIGHT[orientation](pixels))
    assert opened(done.jpeg).getexif().get(ORIENTATION, 1) == 1
