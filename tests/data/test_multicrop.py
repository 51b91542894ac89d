"""Crops, pixel for pixel what torchvision does with the same draws; and what happens to pictures that cannot be read."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms import functional as vision

from swav_ray.config import Config
from swav_ray.data.decode import decode
from swav_ray.data.draws import Draws, draw
from swav_ray.data.multicrop import centre_crop, make_crops
from tests.data.pictures import encode, photo, picture
from tests.data.small import small_config

BILINEAR = InterpolationMode.BILINEAR
BACKENDS = ["fast", "reference"]


@functools.cache
def contents() -> dict[str, bytes]:
    """Files of many kinds by id."""
    photos = {name: encode(photo(name), quality=90) for name in ("china.jpg", "flower.jpg")}
    return photos | {
        "small": encode(picture(7, 9, 1)),
        "wide": encode(picture(300, 20, 2)),
        "tall": encode(picture(20, 300, 3)),
        "line": encode(picture(64, 1, 4)),
        "grey": encode(picture(60, 40, 5).convert("L")),
        "black": encode(Image.new("RGB", (30, 30))),
        "white": encode(Image.new("RGB", (30, 30), "white")),
        "red": encode(Image.new("RGB", (30, 30), (255, 0, 0))),
    }


def oracle(image: Image.Image, config: Config, draws: Draws, at: tuple[int, int], size: int) -> np.ndarray:
    """One crop in torchvision's words, as ColorJitter and the rest of the published pipeline call them."""
    if config.augment.rotation:
        image = vision.rotate(image, float(draws.angle[at]), BILINEAR)
    top, left, height, width = (int(part[at]) for part in (draws.top, draws.left, draws.height, draws.width))
    image = vision.resized_crop(image, top, left, height, width, [size, size], BILINEAR)
    if draws.flip[at]:
        image = vision.hflip(image)
    if draws.jitter[at]:
        strengths = (config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue)
        adjust = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)
        for operation in draws.order[at]:
            if strengths[operation]:  # ColorJitter leaves out an operation without strength
                image = adjust[operation](image, float(draws.factors[at][operation]))
    if draws.grey[at]:
        image = vision.to_grayscale(image, num_output_channels=3)
    if draws.sigma[at]:
        image = image.filter(ImageFilter.GaussianBlur(radius=float(draws.sigma[at])))
    return np.asarray(image)


OFF = {"flip": 0, "jitter": 0, "grey": 0, "blur": 0}
SETTINGS = {
    "published": {},
    "crop alone": OFF,
    "flip": {**OFF, "flip": 1},
    "jitter": {**OFF, "jitter": 1},
    "strong jitter": {**OFF, "jitter": 1, "brightness": 1.5, "contrast": 1.5, "saturation": 1.5, "hue": 0.5},
    "jitter without hue and saturation": {**OFF, "jitter": 1, "hue": 0, "saturation": 0},
    "grey": {**OFF, "grey": 1},
    "blur": {**OFF, "blur": 1},
    "rotation": {**OFF, "rotation": 40},
    "everything": {"flip": 1, "jitter": 1, "grey": 0.5, "blur": 1, "rotation": 15},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_crops_are_those_of_torchvision(setting: str, backend: str) -> None:
    config = small_config(
        data={"backend": backend},
        crop_sizes=[32, 17],
        crop_counts=[2, 3],
        crop_min_scales=[0.14, 0.05],
        crop_max_scales=[1.0, 0.14],
        augment=SETTINGS[setting],
    )
    ids, jpegs = list(contents()), list(contents().values())
    images = [decode(jpeg) for jpeg in jpegs]
    for epoch in range(3):
        done = make_crops(config, epoch, ids, jpegs)
        draws = draw(config, epoch, ids, np.array([(image.height, image.width) for image in images]))
        assert done.bad == []
        assert [(group.shape, group.dtype) for group in done.crops] == [
            ((2, len(ids), 32, 32, 3), np.uint8),
            ((3, len(ids), 17, 17, 3), np.uint8),
        ]
        for row, image in enumerate(images):
            for crop in range(5):
                got = done.crops[0][crop, row] if crop < 2 else done.crops[1][crop - 2, row]
                expected = oracle(image, config, draws, (row, crop), 32 if crop < 2 else 17)
                np.testing.assert_array_equal(got, expected, err_msg=f"{ids[row]}, crop {crop}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", [[10], [1] * 10, [3, 0, 7], [7, 3]], ids=str)
def test_a_picture_s_crops_do_not_depend_on_its_batch(parts: list[int], backend: str) -> None:
    config = small_config(data={"backend": backend})
    ids, jpegs = list(contents()), list(contents().values())
    together = make_crops(config, 1, ids, jpegs).crops
    done = []
    for end, count in zip(np.cumsum(parts), parts, strict=True):
        rows = slice(end - count, end)
        done.append(make_crops(config, 1, ids[rows], jpegs[rows]).crops)
    for group, whole in zip(zip(*done, strict=True), together, strict=True):
        np.testing.assert_array_equal(np.concatenate(group, axis=1), whole)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_picture_s_crops_do_not_depend_on_the_threads_beside(threads: int) -> None:
    config = small_config(crop_sizes=[64, 24], augment={"rotation": 10})
    ids, jpegs = list(contents()), list(contents().values())
    alone = [make_crops(config, epoch, ids, jpegs).crops for epoch in range(24)]
    with ThreadPoolExecutor(threads) as pool:
        beside = pool.map(lambda epoch: make_crops(config, epoch, ids, jpegs).crops, range(24))
    for got, expected in zip(beside, alone, strict=True):
        for group, whole in zip(got, expected, strict=True):
            np.testing.assert_array_equal(group, whole)


def test_another_epoch_shows_other_views() -> None:
    jpegs = list(contents().values())
    first, second = (make_crops(small_config(), epoch, list(contents()), jpegs).crops[0][:, :2] for epoch in (0, 1))
    assert (first != second).any(axis=(0, 2, 3, 4)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unreadable_pictures_are_reported_and_replaced_by_the_next_readable_one(backend: str) -> None:
    config = small_config(data={"backend": backend})
    good = contents()["china.jpg"], contents()["flower.jpg"]
    ids = ["a", "b", "c", "d", "e"]
    done = make_crops(config, 2, ids, [good[0], b"", good[1][:900], good[1], b"not an image"])
    assert [identifier for identifier, _ in done.bad] == ["b", "c", "e"]
    assert done.bad[0][1] == "not an image"
    assert "truncated" in done.bad[1][1]
    # Each id keeps its own draws; "e" is the last, so the next one is the first.
    meant = make_crops(config, 2, ids, [good[0], good[1], good[1], good[1], good[0]])
    for got, expected in zip(done.crops, meant.crops, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_batch_without_a_readable_picture_is_black() -> None:
    done = make_crops(small_config(), 0, ["a", "b"], [b"", b"?"])
    assert [identifier for identifier, _ in done.bad] == ["a", "b"]
    assert [group.shape for group in done.crops] == [(1, 2, 12, 12, 3), (2, 2, 8, 8, 3)]
    assert not any(group.any() for group in done.crops)


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (28, 28), (32, 28), (9, 8)])
def test_the_evaluation_view_is_that_of_torchvision(resize: int, size: int) -> None:
    sizes = [(640, 427), (427, 640), (28, 28), (31, 97), (321, 107), (107, 321), (20, 335), (90, 20), (256, 300), (300, 256)]
    for width, height in sizes:
        image = picture(width, height)
        expected = Compose([Resize(resize, BILINEAR), CenterCrop(size)])(image)
        got = centre_crop(image, resize, size)
        assert got.shape == (size, size, 3)
        np.testing.assert_array_equal(got, np.asarray(expected), err_msg=f"{width} x {height}")
