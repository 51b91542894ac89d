"""The compiled crops are those of Pillow to the last bit: decoded pixels, resize, every colour, blur, rotation."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from swav_ray.data.compiled import kernels
from swav_ray.data.decode import BadImageError, decode, decode_into, size_of
from swav_ray.data.multicrop import make_crops
from tests.data.pictures import encode, photo, picture
from tests.data.small import small_config

SIZES = [(1, 1), (1, 64), (64, 1), (2, 3), (7, 9), (31, 17), (128, 96), (96, 128), (500, 12), (12, 500), (640, 9), (257, 255)]


def pictures_of_every_kind(count: int) -> Iterator[tuple[str, bytes]]:
    """Grey, tiny, panoramas, one pixel wide, CMYK, saturated, noise, gradients, flat; in JPEGs of many settings."""
    for number in range(count):
        draw = np.random.RandomState(number)
        width, height = SIZES[number % len(SIZES)]
        kind = number % 7
        if kind == 0:
            image = picture(width, height, number)
        elif kind == 1:
            image = picture(width, height, number).convert("L")
        elif kind == 2:
            image = picture(width, height, number).convert("CMYK")
        elif kind == 3:  # saturated: every channel full or empty
            image = Image.fromarray(draw.randint(0, 2, (height, width, 3)).astype(np.uint8) * 255)
        elif kind == 4:
            image = Image.fromarray(draw.randint(0, 256, (height, width, 3)).astype(np.uint8))
        elif kind == 5:
            ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
            image = Image.fromarray(np.broadcast_to(ramp * draw.rand(3), (height, width, 3)).astype(np.uint8))
        else:
            image = Image.new("RGB", (width, height), tuple(int(value) for value in draw.randint(0, 256, 3)))
        options = {"quality": (75, 90, 100)[number % 3], "progressive": number % 11 == 0}
        yield f"{number}", encode(image, **options) if number % 13 else encode(image.convert("RGB"), "PNG")


def test_a_thousand_pictures_of_every_kind_give_the_crops_of_pillow() -> None:
    """The promise is a mean difference of half a grey level at most; what is asked for here is none at all."""
    ids, contents = zip(*pictures_of_every_kind(1000), strict=True)
    strongest = {"jitter": 0.9, "grey": 0.2, "blur": 0.5, "rotation": 10, "blur_sigma": [0.1, 4.0]}
    for name, augment in (("published", {}), ("strongest", strongest)):
        settings = {"crop_sizes": [56, 24], "crop_counts": [1, 2], "augment": augment}
        fast, slow = (
            make_crops(small_config(data={"backend": backend}, **settings), 3, ids, contents)
            for backend in ("fast", "reference")
        )
        assert fast.bad == slow.bad == []
        for got, expected in zip(fast.crops, slow.crops, strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=name)


def planes_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.reshape(-1, 3).T)


def test_every_colour_s_hue_is_shifted_as_pillow_does() -> None:
    """All 16,777,216 colours to bytes of hue, saturation and value and back."""
    from swav_ray.data.kernels import jitter  # type: ignore[attr-defined]

    kernels()
    index = np.arange(2**24, dtype=np.uint32).reshape(4096, 4096)
    colours = np.stack([index >> 16, index >> 8 & 255, index & 255], axis=-1).astype(np.uint8)
    for shift in (0, 17, 230):
        planes = planes_of(colours)
        jitter._shift_hue(planes, shift)
        hue, saturation, value = Image.fromarray(colours).convert("HSV").split()
        turned = Image.fromarray(np.asarray(hue) + np.uint8(shift))
        expected = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
        np.testing.assert_array_equal(planes, planes_of(expected))


@pytest.mark.parametrize("side", [8, 23, 224])
def test_any_box_is_resized_as_pillow_does(side: int) -> None:
    """Enlarged, kept, shrunk a little and by forty times; boxes at the very edge of the picture."""
    image = picture(900, 640, 1)
    flat = np.append(np.asarray(image), np.uint8(0))
    boxes = random.Random(side)
    out, nothing = np.empty((1, 1, side, side, 3), dtype=np.uint8), np.zeros((1, 6))
    for turn in range(400):
        width = min(900, max(1, round(side * 2 ** boxes.uniform(-4, 5.5))))
        height = min(640, max(1, round(side * 2 ** boxes.uniform(-4, 5.5))))
        left, top = boxes.choice([0, 900 - width, boxes.randint(0, 900 - width)]), boxes.choice([0, 640 - height])
        flip = turn % 2
        kernels().crops(flat, 640, 900, np.array([[top, left, height, width, flip, *[0] * 6]]), nothing, out, 0)
        expected = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
        if flip:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(out[0, 0], np.asarray(expected), err_msg=f"{width} x {height} at {left}, {top}")


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.41, 1.42, 2.0, 2.44, 2.46, 3.0, 5.0, 20.0])
def test_any_blur_is_that_of_pillow(sigma: float) -> None:
    from swav_ray.data.kernels import gaussian  # type: ignore[attr-defined]

    for side in (8, 21, 96):
        image = picture(side, side, 7)
        pixels = np.asarray(image).copy().reshape(-1)
        gaussian.blur(pixels, side, sigma)
        expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))
        np.testing.assert_array_equal(pixels.reshape(side, side, 3), expected)


def decoded_fast(content: bytes) -> NDArray[np.uint8]:
    height, width = size_of(content)
    room = np.full(height * width * 3 + 7, 99, dtype=np.uint8)
    decode_into(room, content, height, width)
    assert (room[-7:] == 99).all(), "written beyond the picture"
    return room[:-7].reshape(height, width, 3)


def test_broken_files_are_read_or_refused_as_pillow_does() -> None:
    """Some thousand files with flipped bytes or cut short, of all kinds."""
    flips = random.Random(5)
    good = [content for _, content in pictures_of_every_kind(60)] + [encode(photo("china.jpg").resize((90, 60)))]
    read = 0
    for turn in range(4000):
        content = bytearray(good[turn % len(good)])
        if turn % 5 == 0:
            content = content[: flips.randrange(len(content))]
        else:
            for _ in range(flips.randint(1, 4)):
                content[flips.randrange(len(content))] = flips.randrange(256)
        broken = bytes(content)
        try:
            expected = np.asarray(decode(broken))
        except BadImageError as error:
            with pytest.raises(BadImageError) as caught:
                decoded_fast(broken)
            assert str(caught.value) == str(error)
        else:
            np.testing.assert_array_equal(decoded_fast(broken), expected)
            read += 1
    assert 1500 < read < 3500


@pytest.mark.parametrize(
    ("width", "height", "reason"), [(12_000, 9_000, "12000 x 9000 pixels is more than"), (65_535, 65_535, "bomb")]
)
def test_a_bomb_is_refused_from_its_header(width: int, height: int, reason: str) -> None:
    tiny = bytearray(encode(picture(16, 16)))
    place = tiny.index(b"\xff\xc0") + 5  # height and width in the frame's header
    tiny[place : place + 4] = struct.pack(">HH", height, width)
    with pytest.raises(BadImageError, match=reason):
        size_of(bytes(tiny))
