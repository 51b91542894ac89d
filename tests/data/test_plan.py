"""The plan: every row once an epoch, the same from any row on, frozen for good."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.data import Plan

FROZEN_EPOCH_0 = [[(2, 2), (2, 3), (1, 1), (2, 0)], [(2, 1), (1, 0), (3, 0), (0, 0)], [(0, 2), (0, 1)]]
FROZEN_EPOCH_1 = [[(1, 1), (1, 0), (3, 0), (0, 2)], [(2, 3), (2, 0), (2, 1), (0, 0)], [(0, 1), (2, 2)]]
FROZEN_DIGEST = "5ac74c4595a9eddef7c02a387b0b39d7bf2a7a53085d20f5415bef4e458f328e"
PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        draw(st.lists(st.integers(1, 9), min_size=1, max_size=12)),
        seed=draw(st.integers(0, 2**40)),
        window_groups=draw(st.integers(1, 5)),
        block_rows=draw(st.integers(1, 8)),
    )


def order(plan: Plan, epoch: int, start_row: int = 0) -> list[tuple[int, int]]:
    return [pair for block in plan.blocks(epoch, start_row) for pair in block]


@PROPERTY
@given(plans(), st.integers(0, 1000))
def test_an_epoch_holds_every_row_once(plan: Plan, epoch: int) -> None:
    everything = [(group, row) for group, rows in enumerate(plan.rows_per_group) for row in range(rows)]
    assert sorted(order(plan, epoch)) == everything


@PROPERTY
@given(plans(), st.data())
def test_any_start_row_continues_the_same_order(plan: Plan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_rows))
    assert order(plan, 3, start) == order(plan, 3)[start:]


@PROPERTY
@given(plans(), st.data())
def test_blocks_end_at_multiples_of_block_rows(plan: Plan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_rows))
    ends = list(itertools.accumulate((len(block) for block in plan.blocks(0, start)), initial=start))[1:]
    multiples = range(0, plan.num_rows, plan.block_rows)
    assert ends == [*(end for end in multiples if end > start), *([plan.num_rows] if start < plan.num_rows else [])]


@PROPERTY
@given(plans(), st.data())
def test_a_window_mixes_the_rows_of_a_few_whole_groups(plan: Plan, data: st.DataObject) -> None:
    row, seen = 0, set()
    for window in plan.windows(1):
        groups = set(window.pairs[:, 0].tolist())
        assert window.start == row
        assert len(groups) <= plan.window_groups
        assert not groups & seen
        assert len(window.pairs) == sum(plan.rows_per_group[group] for group in groups)
        row += len(window.pairs)
        seen |= groups
    # The window that a later start falls into is the same one, less what comes before the start.
    start = data.draw(st.integers(0, plan.num_rows - 1))
    first = next(plan.windows(1, start))
    whole = next(window for window in plan.windows(1) if window.start + len(window.pairs) > start)
    assert first.start == start
    np.testing.assert_array_equal(first.pairs, whole.pairs[start - whole.start :])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def of(seed: int, epoch: int) -> list[tuple[int, int]]:
        return order(Plan([64] * 10, seed=seed, window_groups=4, block_rows=16), epoch)

    assert of(31, 0) == of(31, 0)
    # The last two: a seed's upper half counts, and seed and epoch do not add up to one number.
    orders = [of(31, 0), of(31, 1), of(32, 0), of(31 + 2**32, 0), of(30, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_windows_are_not_shuffled_alike() -> None:
    windows = [window.pairs[:, 1].tolist() for window in Plan([64] * 8, seed=1, window_groups=1, block_rows=8).windows(0)]
    assert all(a != b for a, b in itertools.combinations(windows, 2))


def test_the_order_is_frozen() -> None:
    """A run that is resumed with a newer version must find its order unchanged; never edit these numbers."""
    small = Plan([3, 2, 4, 1], seed=31, window_groups=2, block_rows=4)
    assert list(small.blocks(0)) == FROZEN_EPOCH_0
    assert list(small.blocks(1)) == FROZEN_EPOCH_1
    large = Plan([64] * 150 + [17], seed=2**33 + 5, window_groups=16, block_rows=16)
    content = np.array(order(large, 7), dtype="<i8").tobytes()
    assert hashlib.sha256(content).hexdigest() == FROZEN_DIGEST


def test_the_far_end_of_a_hundred_million_rows_is_near() -> None:
    groups = 100_000_000 // 64
    plan = Plan(np.full(groups, 64), seed=31, window_groups=16, block_rows=16)
    start = plan.num_rows - 1_000
    tracemalloc.start()
    block = next(plan.blocks(5, start))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(block) == plan.block_rows - start % plan.block_rows
    # Some arrays of one number a row group, none of one number a row.
    assert peak < 8 * 8 * groups < plan.num_rows * 8


@pytest.mark.parametrize(
    "wrong", [{"window_groups": 0}, {"block_rows": 0}, {"num_rows_per_group": [3, 0]}], ids=lambda wrong: next(iter(wrong))
)
def test_impossible_plans_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="at least"):
        Plan(**{"num_rows_per_group": [3, 2], "seed": 1, "window_groups": 1, "block_rows": 1, **wrong})


def test_a_start_beyond_the_epoch_is_refused() -> None:
    plan = Plan([3, 2], seed=1, window_groups=1, block_rows=1)
    assert list(plan.blocks(0, 5)) == []
    for row in (-1, 6):
        with pytest.raises(ValueError, match=f"start_row {row} is not within 0 to 5"):
            list(plan.blocks(0, row))
