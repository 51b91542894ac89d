"""The draws follow the published augmentation: torchvision's crops, jitter and flips, and the blur of SWAV_FACTS 1.

Every p-value is of a fixed seed, so a test that passes once passes always. Thresholds: p > 0.001.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from swav_ray.data.draws import JITTER_ORDERS, Draws, draw
from tests.data.small import small_config

P_VALUE = 0.001
SAMPLES = 3000
SCALES = [(0.14, 1.0), (0.05, 0.14)]  # of the published crops
SIZES = {  # (height, width)
    "photo": (375, 500),
    "upright": (500, 375),
    "digit": (28, 28),
    "wide": (40, 420),  # some attempts fit
    "tall": (420, 40),
    "very wide": (9, 1200),  # none does: the fallback
    "very tall": (1200, 9),
    "a line": (1, 64),
}


@functools.cache
def torchvision_boxes(size: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.int64]:
    """``(n, 4)``: top, left, height, width."""
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(31)
        boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(SAMPLES)]
    return np.array(boxes, dtype=np.int64)


@functools.cache
def our_draws() -> Draws:
    """Of many photographs, every step with the published strengths; one crop of each published scale."""
    config = small_config(crop_counts=[1, 1], crop_min_scales=[0.14, 0.05], crop_max_scales=[1.0, 0.14], seed=5)
    return draw(config, 3, [f"{row}" for row in range(4 * SAMPLES)], np.full((4 * SAMPLES, 2), (375, 500)))


def our_boxes(size: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.int64]:
    config = small_config(crop_sizes=[8], crop_counts=[2], crop_min_scales=[scale[0]], crop_max_scales=[scale[1]])
    draws = draw(config, 0, [f"{size}/{row}" for row in range(SAMPLES)], np.full((SAMPLES, 2), size))
    boxes = np.stack([draws.top, draws.left, draws.height, draws.width], axis=-1)
    return boxes[:, 1]


BOX_MEASURES: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]] = {
    "area": lambda box: box[:, 2] * box[:, 3] / 1.0,
    "aspect": lambda box: box[:, 3] / box[:, 2],
    "centre row": lambda box: box[:, 0] + box[:, 2] / 2,
    "centre column": lambda box: box[:, 1] + box[:, 3] / 2,
    "top": lambda box: box[:, 0] / 1.0,
    "left": lambda box: box[:, 1] / 1.0,
}


@pytest.mark.parametrize("scale", SCALES, ids=["large crops", "small crops"])
@pytest.mark.parametrize("kind", SIZES)
def test_boxes_are_those_of_random_resized_crop(kind: str, scale: tuple[float, float]) -> None:
    height, width = SIZES[kind]
    ours, theirs = our_boxes((height, width), scale), torchvision_boxes((height, width), scale)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for name, measure in BOX_MEASURES.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > P_VALUE, name


@pytest.mark.parametrize("kind", ["very wide", "very tall"])
def test_a_picture_into_which_no_box_fits_gives_torchvision_s_central_one(kind: str) -> None:
    ours, theirs = our_boxes(SIZES[kind], (0.14, 1.0)), torchvision_boxes(SIZES[kind], (0.14, 1.0))
    assert len(np.unique(ours, axis=0)) == 1
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_the_four_operations_come_in_every_order_equally_often() -> None:
    codes = our_draws().order.reshape(-1, 4) @ np.array([64, 16, 4, 1])
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == len(JITTER_ORDERS) == 24
    assert stats.chisquare(counts).pvalue > P_VALUE


@pytest.mark.parametrize(
    ("operation", "argument", "strength"),
    [
        pytest.param(0, "brightness", 0.8, id="brightness"),
        pytest.param(1, "contrast", 0.4, id="contrast"),
        pytest.param(2, "saturation", 1.5, id="saturation cut at zero"),
        pytest.param(3, "hue", 0.2, id="hue"),
    ],
)
def test_factors_are_those_of_color_jitter(operation: int, argument: str, strength: float) -> None:
    config = small_config(augment={argument: strength})
    ids = [f"{row}" for row in range(SAMPLES)]
    ours = draw(config, 1, ids, np.full((SAMPLES, 2), 28)).factors[:, 0, operation]
    jitter = ColorJitter(**{argument: strength})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        params = [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(SAMPLES)
        ]
    theirs = np.array([drawn[1 + operation] for drawn in params])
    assert stats.ks_2samp(ours, theirs).pvalue > P_VALUE
    low, high = getattr(jitter, argument)
    assert low <= ours.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < ours.max() <= high


@pytest.mark.parametrize(("step", "probability"), [("flip", 0.5), ("jitter", 0.8), ("grey", 0.2), ("sigma", 0.5)])
def test_steps_happen_as_often_as_published(step: str, probability: float) -> None:
    happens = (getattr(our_draws(), step) > 0).ravel()
    assert stats.binomtest(int(happens.sum()), happens.size, probability).pvalue > P_VALUE


def test_blur_is_uniform_between_its_bounds() -> None:
    sigma = our_draws().sigma
    assert stats.kstest(sigma[sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > P_VALUE


def test_rotation_is_uniform_both_ways() -> None:
    draws = draw(small_config(augment={"rotation": 15}), 0, [f"{row}" for row in range(SAMPLES)], np.full((SAMPLES, 2), 28))
    assert stats.kstest(draws.angle.ravel(), stats.uniform(-15, 30).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("step", ["flip", "jitter", "grey", "blur", "rotation"])
def test_zero_switches_a_step_off_and_leaves_the_others_as_they_were(step: str) -> None:
    ids, sizes = [f"{row}" for row in range(200)], np.full((200, 2), 28)
    on = draw(small_config(augment={"rotation": 15}), 0, ids, sizes)
    off = draw(small_config(augment={"rotation": 15, step: 0}), 0, ids, sizes)
    switched = {"blur": "sigma", "rotation": "angle"}.get(step, step)
    assert not getattr(off, switched).any()
    for part in dataclasses.fields(on):
        if part.name != switched:
            np.testing.assert_array_equal(getattr(off, part.name), getattr(on, part.name))


@pytest.mark.parametrize("blur", [0.5, 1.0], ids=["blur or not", "how much blur"])
def test_nothing_drawn_tells_of_anything_else_drawn(blur: float) -> None:
    """No two draws share a random number: rank correlations of all pairs, within a crop and between crops, are noise."""
    # Boxes this small always fit, so that the rejection of others binds nothing.
    config = small_config(
        crop_sizes=[8], crop_counts=[2], crop_min_scales=[0.05], crop_max_scales=[0.14], augment={"blur": blur}
    )
    rows, side = 4 * SAMPLES, 400
    draws = draw(config, 0, [f"{row}" for row in range(rows)], np.full((rows, 2), side))
    columns = {
        "area": draws.height * draws.width,
        "aspect": draws.width / draws.height,
        "top": draws.top / (side - draws.height),
        "left": draws.left / (side - draws.width),
        "flip": draws.flip,
        "jitter": draws.jitter,
        "order": draws.order @ np.array([64, 16, 4, 1]),
        "brightness": draws.factors[..., 0],
        "contrast": draws.factors[..., 1],
        "saturation": draws.factors[..., 2],
        "hue": draws.factors[..., 3],
        "grey": draws.grey,
        "blur": draws.sigma,
    }
    names = [f"{name} of crop {crop}" for crop in range(2) for name in columns]
    both = np.concatenate([np.stack([column[:, crop] for column in columns.values()]) for crop in range(2)])
    correlation = stats.spearmanr(both, axis=1).statistic
    np.fill_diagonal(correlation, 0)
    suspicious = np.argwhere(np.triu(np.abs(correlation)) > 4.5 / np.sqrt(rows))
    assert not [(names[a], names[b]) for a, b in suspicious]
