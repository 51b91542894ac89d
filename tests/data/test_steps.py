"""How an epoch is cut into steps and a step into blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.data.plan import Steps, cut

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    batch = draw(st.integers(2, 200))
    return Steps(draw(st.integers(1, 500)), batch, draw(st.integers(1, batch)))


@PROPERTY
@given(steps())
def test_steps_are_equal_to_a_row_and_never_above_the_batch(steps: Steps) -> None:
    starts = [steps.start(step) for step in range(steps.per_epoch + 1)]
    sizes = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, steps.num_rows)
    assert 1 <= sizes.min() <= sizes.max() <= min(sizes.min() + 1, steps.global_batch_size)
    # As few steps as the batch size allows.
    assert (steps.per_epoch - 1) * steps.global_batch_size < steps.num_rows


@PROPERTY
@given(steps())
def test_a_row_where_a_step_begins_names_it_and_no_other_row_does(steps: Steps) -> None:
    starts = [steps.start(step) for step in range(steps.per_epoch + 1)]
    for row in range(steps.num_rows + 1):
        if row in starts:
            assert steps.step_at(row) == starts.index(row)
        else:
            with pytest.raises(ValueError, match=f"no step begins at row {row} of {steps.num_rows}"):
                steps.step_at(row)


@PROPERTY
@given(steps())
def test_blocks_partition_each_step(steps: Steps) -> None:
    for step in range(steps.per_epoch):
        cuts = [steps.start(step), *steps.block_ends(step)]
        sizes = np.diff(cuts)
        assert cuts[-1] == steps.start(step + 1)
        assert 1 <= sizes.min() <= sizes.max() <= min(sizes.min() + 1, steps.block_rows)


def test_steps_of_the_far_end_of_a_long_epoch_are_exact() -> None:
    steps = Steps(10**12 + 7, 4096, 16)
    last = steps.per_epoch - 1
    assert steps.step_at(steps.start(last)) == last
    assert steps.start(last + 1) == steps.num_rows == steps.block_ends(last)[-1]


@PROPERTY
@given(st.integers(0, 50), st.lists(st.integers(0, 7), max_size=12), st.data())
def test_cut_keeps_every_row_in_order(start: int, sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    rows = np.stack([np.arange(total), -np.arange(total)], axis=1)
    pieces = np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []
    ends = sorted(data.draw(st.sets(st.integers(start + 1, start + total), max_size=8))) if total else []
    got = list(cut(pieces, start, ends))
    assert len(got) == len(ends)
    for part, (begin, end) in zip(got, itertools.pairwise([start, *ends]), strict=True):
        np.testing.assert_array_equal(part, rows[begin - start : end - start])


def test_cut_takes_a_piece_only_when_its_rows_are_due() -> None:
    taken = []

    def pieces():
        for index in range(4):
            taken.append(index)
            yield np.full((3, 2), index)

    parts = cut(pieces(), 0, [2, 3, 5, 12])
    seen = []
    for _ in range(3):
        next(parts)
        seen.append(list(taken))
    assert seen == [[0], [0], [0, 1]]
