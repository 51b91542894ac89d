"""The feature queue: the embeddings of the last `length` rows, spread over any number of ranks.

Shapes: V assigned crops (views), B rows of one push, D feature dimensions, L rows held.

The queue is one global list, newest first: rows of a later step come before rows of an earlier one, and within a step
rows stand in the order of the global batch. A rank holds some of that list's rows and, for each, its `key`: the row's
place in the list minus the number of rows ever pushed. A key never changes, `key + pushed` is the row's place now, and
a row leaves when its place reaches `length`. So what the ranks hold together is the same list for any number of ranks
and any uneven split of a batch among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FeatureQueue:
    """This rank's rows of the queue, newest first.

    Args:
        length: rows the whole queue holds when full. A queue that stands alone (never cut) counts its own pushes only.
        num_views: one list of embeddings per assigned crop.
        dim: feature dimensions.
        device: where the embeddings live; float64 if such are pushed, else float32.
    """

    def __init__(self, length: int, num_views: int, dim: int, *, device: torch.device | str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.length = length
        self.rank, self.world_size = 0, 1
        self.pushed = 0  # rows pushed so far by all ranks together
        self.steps = 0  # pushes so far
        self._rows_VLD = torch.zeros(num_views, 0, dim, device=device)
        # On the CPU: bookkeeping never waits for the device.
        self._key_L = torch.zeros(0, dtype=torch.int64)
        self._step_L = torch.zeros(0, dtype=torch.int64)

    @property
    def is_full(self) -> bool:
        """Whether ``length`` rows have been pushed; the same answer on every rank."""
        return self.pushed >= self.length

    def rows(self) -> Tensor:
        """``(V, filled, D)``: this rank's rows, newest first."""
        return self._rows_VLD

    def push(self, embeddings_VBD: Tensor, *, positions: Tensor | None = None, global_rows: int | None = None) -> None:
        """Add one step's embeddings; rows older than the last ``length`` leave.

        Args:
            embeddings_VBD: ``(V, B, D)`` of this rank's rows; detached here.
            positions: ``(B,)`` ascending places of these rows in the step's global batch. By default every rank pushes
                equally many rows and rank r holds the r-th part of the batch.
            global_rows: rows in the step's global batch; goes with ``positions``.
        """
        views, rows, dim = embeddings_VBD.shape
        if (views, dim) != (self._rows_VLD.shape[0], self._rows_VLD.shape[2]):
            raise ValueError(
                f"the queue holds ({self._rows_VLD.shape[0]}, *, {self._rows_VLD.shape[2]}) embeddings, "
                f"got {tuple(embeddings_VBD.shape)}"
            )
        if positions is None:
            positions = torch.arange(self.rank * rows, (self.rank + 1) * rows)
            global_rows = rows * self.world_size
        elif global_rows is None or len(positions) != rows or bool((positions.diff() <= 0).any()):
            raise ValueError("positions needs one ascending entry a row, and global_rows beside it")
        self.pushed += global_rows
        self.steps += 1
        self._key_L = torch.cat([positions.to(torch.int64).cpu() - self.pushed, self._key_L])
        self._step_L = torch.cat([torch.full((rows,), self.steps), self._step_L])
        keep = int((self._key_L + self.pushed < self.length).sum())  # keys ascend, so the rest is the tail
        dtype = torch.float64 if embeddings_VBD.dtype == torch.float64 else torch.float32
        new_VBD = embeddings_VBD.detach().to(dtype)
        self._rows_VLD = torch.cat([new_VBD, self._rows_VLD.to(new_VBD)], dim=1)[:, :keep]
        self._key_L, self._step_L = self._key_L[:keep], self._step_L[:keep]

    def state_dict(self) -> dict[str, Any]:
        """This rank's rows and counters; what :func:`gather_queue` takes from every rank."""
        return {
            "length": self.length,
            "rank": self.rank,
            "world_size": self.world_size,
            "pushed": self.pushed,
            "steps": self.steps,
            "rows": self._rows_VLD.clone(),
            "key": self._key_L.clone(),
            "step": self._step_L.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a rank's state (of :meth:`state_dict`, :func:`cut_queue`) or, for one rank, a global one.

        Raises:
            ValueError: the state holds another number of views or dimensions.
        """
        rows_VLD = state["rows"]
        if (rows_VLD.shape[0], rows_VLD.shape[2]) != (self._rows_VLD.shape[0], self._rows_VLD.shape[2]):
            raise ValueError(
                f"the saved queue holds ({rows_VLD.shape[0]}, *, {rows_VLD.shape[2]}) embeddings, "
                f"this one ({self._rows_VLD.shape[0]}, *, {self._rows_VLD.shape[2]})"
            )
        self.length, self.rank, self.world_size = state["length"], state["rank"], state["world_size"]
        self.pushed, self.steps = state["pushed"], state["steps"]
        self._rows_VLD = rows_VLD.to(self._rows_VLD.device, copy=True)
        self._key_L, self._step_L = state["key"].clone(), state["step"].clone()


def gather_queue(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The global, age-ordered state from the states of all ranks, in rank order.

    Queues that were never cut and stand on several ranks (each with its own count) are merged by (age, rank), and
    their lengths add up.

    Returns:
        A state for one rank: all rows newest first. Save it; :func:`cut_queue` makes it fit any world size.
    """
    rows_VLD = torch.cat([state["rows"] for state in states], dim=1)
    key_L = torch.cat([state["key"] for state in states])
    step_L = torch.cat([state["step"] for state in states])
    first = states[0]
    if len(states) > 1 and all(state["world_size"] == 1 for state in states):
        rank_L = torch.cat([torch.full_like(state["key"], rank) for rank, state in enumerate(states)])
        order = sorted(range(len(key_L)), key=lambda i: (-int(step_L[i]), int(rank_L[i]), int(key_L[i])))
        length, pushed = sum(s["length"] for s in states), sum(s["pushed"] for s in states)
        pushed = pushed if len(order) >= length else len(order)  # full only if each of them was
        key_L = torch.arange(len(order)) - pushed
        index = torch.tensor(order, dtype=torch.int64)
    else:
        if {state["world_size"] for state in states} != {len(states)} or len({s["pushed"] for s in states}) != 1:
            raise ValueError("gather_queue needs the states of all ranks of one world, taken after the same step")
        length, pushed = first["length"], first["pushed"]
        index = torch.argsort(key_L)
        key_L = key_L[index]
    return {
        "length": length,
        "rank": 0,
        "world_size": 1,
        "pushed": pushed,
        "steps": max(state["steps"] for state in states),
        "rows": rows_VLD[:, index.to(rows_VLD.device)],
        "key": key_L,
        "step": step_L[index],
    }


def cut_queue(state: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Rank ``rank``'s part of a global state: every ``world_size``-th row, so that all ranks' rows leave evenly."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    if state["world_size"] != 1:
        raise ValueError("cut_queue needs a global state, of gather_queue; this one is already one rank's part")
    return {
        **state,
        "rank": rank,
        "world_size": world_size,
        "rows": state["rows"][:, rank::world_size].clone(),
        "key": state["key"][rank::world_size].clone(),
        "step": state["step"][rank::world_size].clone(),
    }


def usable_queue_length(queue_length: int, global_batch_size: int) -> int:
    """The longest whole number of global batches within ``queue_length`` (SWAV_FACTS 4); 0 is no queue."""
    return queue_length - queue_length % global_batch_size
