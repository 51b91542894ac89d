"""The random numbers behind the crops: a published generator, keyed so that nothing but the picture and epoch matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.data.draws import draw, id_key, philox, uniforms
from tests.data.small import small_config

# Salmon et al. 2011, known-answer vectors of philox4x32-10: counter, key, numbers.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
FROZEN = [[1727233695, 3009447265], [1752578349, 1323920686], [900605287, 1621834295]]
FROZEN_BOXES = [[22, 53, 193], [155, 228, 265], [321, 202, 163], [340, 223, 161]]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "numbers"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_numbers(counter: str, key: str, numbers: str) -> None:
    low, high = words(key)
    got = philox(np.array([words(counter)] * 3, dtype=np.uint64).reshape(3, 1, 4), low | high << 32)
    assert got.shape == (3, 1, 4)
    assert (got == np.array(words(numbers), dtype=np.uint64)).all()


def test_uniforms_are_philox_of_id_epoch_and_crop() -> None:
    """The counter's layout is frozen: a resumed run draws on."""
    key = id_key("n01440764/a.jpg")
    got = uniforms(2**40 + 31, 5, ["n01440764/a.jpg"], num_crops=3)
    per_crop = got.shape[-1] // 4
    counter = [[key & 0xFFFFFFFF, key >> 32, 5, index] for index in range(3 * per_crop)]
    expected = (philox(np.array(counter, dtype=np.uint64), 2**40 + 31).astype(np.float64) + 0.5) / 2**32
    np.testing.assert_array_equal(got.ravel(), expected.ravel())
    assert 0 < got.min() < got.max() < 1


def test_the_numbers_are_frozen() -> None:
    """Never edit these: a run resumed with a newer version would see other views."""
    got = (uniforms(31, 2, ["3/0042"], 2)[0, :, [0, 20, 32]] * 2**32 - 0.5).astype(np.int64)
    assert got.tolist() == FROZEN
    boxes = draw(small_config(), 2, ["3/0042"], np.array([[375, 500]]))
    assert [getattr(boxes, name)[0].tolist() for name in ("top", "left", "height", "width")] == FROZEN_BOXES


IDS = [f"{index:03d}" for index in range(24)]
SIZES = np.array([(20 + 7 * index, 300 - 11 * index) for index in range(24)])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=24, unique=True))
def test_a_picture_s_draws_do_not_depend_on_its_batch(rows: list[int]) -> None:
    config = small_config(augment={"rotation": 10})
    all_draws = draw(config, 4, IDS, SIZES)
    some_draws = draw(config, 4, [IDS[row] for row in rows], SIZES[rows])
    for part in dataclasses.fields(all_draws):
        np.testing.assert_array_equal(getattr(some_draws, part.name), getattr(all_draws, part.name)[rows])


def test_seed_epoch_picture_and_crop_each_change_the_draws() -> None:
    base = uniforms(31, 4, IDS, 3)
    others = [uniforms(32, 4, IDS, 3), uniforms(31 + 2**32, 4, IDS, 3), uniforms(31, 5, IDS, 3), np.roll(base, 1, axis=0)]
    for other in [*others, np.roll(base, 1, axis=1)]:
        assert not (base == other).any(axis=-1).any()
    # Nor does a number stand anywhere twice, but by the chance of 32 bits.
    everything = np.concatenate([base.ravel(), *(other.ravel() for other in others[:3])])
    assert len(everything) - len(np.unique(everything)) <= 2


def test_no_picture_gives_no_draws() -> None:
    nothing = draw(small_config(), 0, [], np.empty((0, 2), dtype=np.int64))
    assert nothing.top.shape == (0, 3)
    assert nothing.order.shape == (0, 3, 4)
