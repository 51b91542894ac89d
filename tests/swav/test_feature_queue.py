"""The feature queue against a plain list: the last `length` rows, newest first, whoever holds them.

Shapes: V views, B rows of a step, D feature dimensions, L rows held.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.swav import FeatureQueue, cut_queue, gather_queue
from swav_ray.swav.feature_queue import usable_queue_length

PROPERTY = settings(derandomize=True, deadline=None, max_examples=80)
VIEWS, DIM = 2, 3


def batch(first_row: int, rows: int) -> torch.Tensor:
    """(V, B, D) whose every entry tells its row and view apart."""
    row_B = torch.arange(first_row, first_row + rows, dtype=torch.float32)
    view_V, dim_D = torch.arange(VIEWS) * 1000.0, torch.arange(DIM) * 0.25
    return row_B[None, :, None] + view_V[:, None, None] + dim_D


def cut(state: dict[str, Any], world_size: int) -> list[FeatureQueue]:
    """The queues of all ranks of a new world."""
    queues = []
    for rank in range(world_size):
        queue = FeatureQueue(1, VIEWS, DIM)  # a resumed run's queue; its length comes with the state
        queue.load_state_dict(cut_queue(state, rank, world_size))
        queues.append(queue)
    return queues


class ListModel:
    """What the queue promises, in one process."""

    def __init__(self, length: int) -> None:
        self.length, self.pushed = length, 0
        self.rows = torch.zeros(VIEWS, 0, DIM)

    def push(self, new_VBD: torch.Tensor) -> None:
        self.pushed += new_VBD.shape[1]
        self.rows = torch.cat([new_VBD, self.rows], dim=1)[:, : self.length]

    def check(self, queues: list[FeatureQueue]) -> dict[str, Any]:
        state = gather_queue([queue.state_dict() for queue in queues])
        assert torch.equal(state["rows"], self.rows)
        assert sum(queue.rows().shape[1] for queue in queues) == self.rows.shape[1]
        assert {queue.is_full for queue in queues} == {self.pushed >= self.length}
        return state


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[int, list[list[int]]]]]:
    """A queue length, and eras of one world size each: for every step, the rank of each row of the global batch."""
    eras = []
    for _ in range(draw(st.integers(1, 3))):
        world_size = draw(st.integers(1, 4))
        owners = st.lists(st.integers(0, world_size - 1), min_size=0, max_size=9)
        eras.append((world_size, draw(st.lists(owners, max_size=4))))
    return draw(st.integers(1, 17)), eras


@PROPERTY
@given(histories())
def test_any_ranks_and_any_splits_hold_the_global_list(history: tuple[int, list[tuple[int, list[list[int]]]]]) -> None:
    length, eras = history
    model = ListModel(length)
    state = FeatureQueue(length, VIEWS, DIM).state_dict()
    for world_size, steps in eras:
        queues = cut(state, world_size)
        for owners in steps:
            new_VBD = batch(model.pushed, len(owners))
            model.push(new_VBD)
            for rank, queue in enumerate(queues):
                positions = torch.tensor([place for place, owner in enumerate(owners) if owner == rank], dtype=torch.int64)
                queue.push(new_VBD[:, positions], positions=positions, global_rows=len(owners))
            model.check(queues)
        state = model.check(queues)


@PROPERTY
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 6))
def test_default_pushes_after_a_cut(length: int, world_size: int, rows: int, before: int, after: int) -> None:
    model, alone = ListModel(length), FeatureQueue(length, VIEWS, DIM)
    for _ in range(before):
        new_VBD = batch(model.pushed, 5)
        model.push(new_VBD)
        alone.push(new_VBD)
    queues = cut(model.check([alone]), world_size)
    model.check(queues)
    for _ in range(after):
        new_VBD = batch(model.pushed, rows * world_size)
        model.push(new_VBD)
        for queue, part_VBD in zip(queues, new_VBD.split(rows, dim=1), strict=True):
            queue.push(part_VBD)
        model.check(queues)


@PROPERTY
@given(st.integers(1, 25), st.integers(0, 30), st.integers(1, 7))
def test_gather_undoes_cut(length: int, pushed: int, world_size: int) -> None:
    queue = FeatureQueue(length, VIEWS, DIM)
    queue.push(batch(0, pushed))
    state = gather_queue([queue.state_dict()])
    again = gather_queue([part.state_dict() for part in cut(state, world_size)])
    assert again.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(again[name], value) if isinstance(value, torch.Tensor) else again[name] == value, name


def test_queues_that_were_never_cut_merge_by_age_then_rank() -> None:
    queues = [FeatureQueue(4, VIEWS, DIM) for _ in range(3)]
    model = ListModel(12)
    for _ in range(3):
        new_VBD = batch(model.pushed, 6)
        model.push(new_VBD)
        for queue, part_VBD in zip(queues, new_VBD.split(2, dim=1), strict=True):
            queue.push(part_VBD)
    state = gather_queue([queue.state_dict() for queue in queues])
    assert torch.equal(state["rows"], model.rows)
    assert (state["length"], state["pushed"], state["world_size"]) == (12, 18, 1)
    # and the merged state goes on as any other
    queues = cut(state, 2)
    new_VBD = batch(model.pushed, 8)
    model.push(new_VBD)
    for queue, part_VBD in zip(queues, new_VBD.split(4, dim=1), strict=True):
        queue.push(part_VBD)
    model.check(queues)


def test_a_push_longer_than_the_queue_keeps_its_first_rows() -> None:
    queue = FeatureQueue(3, VIEWS, DIM)
    queue.push(batch(0, 8))
    assert queue.is_full
    assert torch.equal(queue.rows(), batch(0, 3))


def test_rows_are_detached_and_in_the_queues_precision() -> None:
    queue = FeatureQueue(4, VIEWS, DIM)
    queue.push(batch(0, 2).to(torch.float16).requires_grad_())
    assert queue.rows().dtype == torch.float32
    assert not queue.rows().requires_grad


def test_a_state_is_a_copy() -> None:
    queue = FeatureQueue(4, VIEWS, DIM)
    queue.push(batch(0, 2))
    state, other = queue.state_dict(), FeatureQueue(4, VIEWS, DIM)
    other.load_state_dict(state)
    state["rows"].zero_()
    state["key"].zero_()
    for held in (queue, other):
        assert torch.equal(held.rows(), batch(0, 2))
        assert held.state_dict()["key"].tolist() == [-2, -1]


@pytest.mark.parametrize("shape", [(VIEWS + 1, 2, DIM), (VIEWS, 2, DIM + 1)])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, int, int]) -> None:
    queue = FeatureQueue(4, VIEWS, DIM)
    with pytest.raises(ValueError, match="embeddings"):
        queue.push(torch.zeros(shape))
    with pytest.raises(ValueError, match="embeddings"):
        FeatureQueue(4, shape[0], shape[2]).load_state_dict(queue.state_dict())


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        FeatureQueue(0, VIEWS, DIM)
    queue = FeatureQueue(4, VIEWS, DIM)
    with pytest.raises(ValueError, match="positions"):
        queue.push(batch(0, 2), positions=torch.arange(2))
    with pytest.raises(ValueError, match="positions"):
        queue.push(batch(0, 2), positions=torch.arange(3), global_rows=3)
    for rank, world_size in [(2, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="world"):
            cut_queue(queue.state_dict(), rank, world_size)


def test_states_that_do_not_belong_together_are_refused() -> None:
    queues = cut(FeatureQueue(4, VIEWS, DIM).state_dict(), 2)
    states = [queue.state_dict() for queue in queues]
    with pytest.raises(ValueError, match="all ranks of one world"):
        gather_queue(states[:1])
    queues[1].push(batch(0, 1))
    with pytest.raises(ValueError, match="same step"):
        gather_queue([queue.state_dict() for queue in queues])


@pytest.mark.parametrize(("asked", "global_batch", "usable"), [(3840, 256, 3840), (100, 64, 64), (63, 64, 0), (0, 64, 0)])
def test_usable_length_is_whole_batches(asked: int, global_batch: int, usable: int) -> None:
    assert usable_queue_length(asked, global_batch) == usable
