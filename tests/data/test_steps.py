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


@PROPERTY
@given(steps(), st.data())
def test_from_any_row_the_rest_of_an_epoch_is_cut_into_equal_steps(steps: Steps, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, steps.num_rows - 1))
    rest = steps.recut(row)
    first = rest.step_at(row)
    starts = [rest.start(step) for step in range(first, rest.per_epoch + 1)]
    sizes = np.diff(starts)
    assert (starts[0], starts[-1]) == (row, steps.num_rows)
    assert 1 <= sizes.min() <= sizes.max() <= min(sizes.min() + 1, steps.global_batch_size)
    assert (len(sizes) - 1) * steps.global_batch_size < steps.num_rows - row, "as few as the batch size allows"
    for step in range(first, rest.per_epoch):
        assert rest.step_at(rest.start(step)) == step
        blocks = np.diff([rest.start(step), *rest.block_ends(step)])
        assert blocks.sum() == rest.start(step + 1) - rest.start(step)
        assert 1 <= blocks.min() <= blocks.max() <= min(blocks.min() + 1, steps.block_rows)
    if rest is not steps:
        for done in range(row):
            with pytest.raises(ValueError, match=f"no step begins at row {done} of"):
                rest.step_at(done)


@PROPERTY
@given(steps(), st.data())
def test_where_a_step_begins_nothing_is_cut_anew(steps: Steps, data: st.DataObject) -> None:
    """So a run that goes on with the batch it had keeps its steps, to the row."""
    row = data.draw(st.integers(0, steps.num_rows - 1))
    starts = [steps.start(step) for step in range(steps.per_epoch)]
    assert (steps.recut(row) == steps) == (row in starts)


@pytest.mark.parametrize("row", [-1, 10, 11])
def test_only_a_row_of_the_epoch_can_begin_a_step(row: int) -> None:
    with pytest.raises(ValueError, match=f"row {row} is not within an epoch of 10"):
        Steps(10, 4, 2).recut(row)


@PROPERTY
@given(steps(), st.data())
def test_steps_behind_a_row_grow_with_it_and_count_the_steps_begun(steps: Steps, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, steps.num_rows))
    assert steps.behind(row) == sum(steps.start(step) < row for step in range(steps.per_epoch))
    assert steps.behind(row) - 1 <= row * steps.per_epoch / steps.num_rows <= steps.behind(row)


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
