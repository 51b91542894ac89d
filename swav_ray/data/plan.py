"""The order of rows: a pure function of (seed, epoch), so that any worker count resumes at the very next row.

An epoch is a permutation of row groups, taken `window_groups` at a time; the rows of such a window are permuted among
themselves. Reading stays sequential by row group, and nothing per row is held beyond one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together: `pairs` (n, 2) lists their (group, row) in epoch order from row `start` on."""

    start: int
    pairs: NDArray[np.int64]


class Plan:
    """The order in which an epoch's rows are seen.

    Args:
        num_rows_per_group: rows of each row group of the shards, in manifest order.
        seed: of the run.
        window_groups: row groups shuffled together.
        block_rows: rows of one block of :meth:`blocks`.
    """

    def __init__(
        self, num_rows_per_group: Sequence[int] | NDArray[np.int64], *, seed: int, window_groups: int, block_rows: int
    ) -> None:
        self.rows_per_group = np.asarray(num_rows_per_group, dtype=np.int64)
        if self.rows_per_group.size and self.rows_per_group.min() < 1:
            raise ValueError("every row group must hold at least one row")
        if window_groups < 1 or block_rows < 1:
            raise ValueError("window_groups and block_rows must be at least 1")
        self.seed, self.window_groups, self.block_rows = seed, window_groups, block_rows
        self.num_rows = int(self.rows_per_group.sum())

    def _shuffle(self, count: int, *key: int) -> NDArray[np.int64]:
        # RandomState, not Generator: numpy promises never to change its stream, and a resumed run depends on it.
        words = [word for value in (self.seed, *key) for word in (value & 0xFFFFFFFF, value >> 32)]
        return np.random.RandomState(words).permutation(count).astype(np.int64, copy=False)

    def _check_start(self, row: int) -> None:
        if not 0 <= row <= self.num_rows:
            raise ValueError(f"start_row {row} is not within 0 to {self.num_rows}")

    def windows(self, epoch: int, start_row: int = 0) -> Iterator[Window]:
        """Windows from global row ``start_row`` of the epoch on; the first one is cut to begin exactly there."""
        self._check_start(start_row)
        groups = self._shuffle(len(self.rows_per_group), epoch, 0)
        ends = self.rows_per_group[groups]
        np.cumsum(ends, out=ends)  # in place: of a thousand million rows each such array is 125 MB
        first = int(np.searchsorted(ends, start_row, side="right")) // self.window_groups
        for index in range(first, -(-len(groups) // self.window_groups)):
            members = groups[index * self.window_groups : (index + 1) * self.window_groups]
            sizes = self.rows_per_group[members]
            end = int(ends[index * self.window_groups + len(members) - 1])
            begin = end - int(sizes.sum())
            rows = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            pairs = np.stack([np.repeat(members, sizes), rows], axis=1)[self._shuffle(len(rows), epoch, 1, index)]
            skip = max(0, start_row - begin)
            if skip < len(pairs):
                yield Window(begin + skip, pairs[skip:])

    def blocks(self, epoch: int, start_row: int = 0) -> Iterator[list[Pair]]:
        """Blocks of ``block_rows`` (group, row) pairs in order, from global row ``start_row`` on.

        Blocks end at multiples of ``block_rows`` of the epoch, so the first is shorter where ``start_row`` is not one of
        them, and the last where the epoch's length is not.
        """
        self._check_start(start_row)
        ends = range(
            start_row - start_row % self.block_rows + self.block_rows, self.num_rows + self.block_rows, self.block_rows
        )
        cuts = (min(end, self.num_rows) for end in ends)
        for pairs in cut((window.pairs for window in self.windows(epoch, start_row)), start_row, cuts):
            yield [(int(group), int(row)) for group, row in pairs]


def cut(pieces: Iterable[NDArray[np.int64]], start: int, ends: Iterable[int]) -> Iterator[NDArray[np.int64]]:
    """Re-cut consecutive arrays, the first beginning at row ``start``, so that they end at ``ends``; lazy."""
    source = iter(pieces)
    held: list[NDArray[np.int64]] = []
    have = 0
    for end in ends:
        need = end - start
        while have < need:
            piece = next(source, None)
            if piece is None:
                break
            held.append(piece)
            have += len(piece)
        rows = np.concatenate(held) if held else np.empty((0, 2), dtype=np.int64)
        if len(rows) == 0:
            return
        yield rows[:need]
        held, have, start = [rows[need:]], max(0, have - need), end


@dataclass(frozen=True)
class Steps:
    """How an epoch is cut into steps and a step into blocks; the same for any number of workers.

    The rows from `first_row` on are ceil(rows / global_batch_size) steps of equal size (to a row), so that every row is
    seen exactly once and no step is a small remainder. A step is cut into `blocks_per_step` blocks of equal size (to a
    row), which are dealt to the workers in turn.
    """

    num_rows: int
    global_batch_size: int
    block_rows: int
    first_row: int = 0  # a step begins here; the epoch's rows before it are done

    @property
    def rows(self) -> int:
        return self.num_rows - self.first_row

    @property
    def per_epoch(self) -> int:
        """Steps from `first_row` to the epoch's end."""
        return -(-self.rows // self.global_batch_size)

    @property
    def blocks_per_step(self) -> int:
        return -(-min(self.global_batch_size, self.rows) // self.block_rows)

    def start(self, step: int) -> int:
        """First row of the epoch's step ``step``; ``start(per_epoch)`` is the epoch's end."""
        return self.first_row + step * self.rows // self.per_epoch

    def behind(self, row: int) -> int:
        """Steps of this size that lie before row ``row``, rounded up: the step that begins there, if one does."""
        return -(-(row - self.first_row) * self.per_epoch // self.rows)

    def step_at(self, row: int) -> int:
        """The step that begins at row ``row``.

        Raises:
            ValueError: no step begins there, as when the batch size or the data changed.
        """
        step = self.behind(row)
        if row < self.first_row or self.start(step) != row:
            raise ValueError(f"no step begins at row {row} of {self.num_rows} with batches of {self.global_batch_size}")
        return step

    def recut(self, row: int) -> Steps:
        """These steps if one begins at row ``row``, else the rows from there on cut anew.

        So a run that stops and goes on with the same batch keeps its steps, and one that goes on with another sees the
        rest of the epoch once, in equal steps of at most that batch (a single short one, where that is all that is left).
        """
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row {row} is not within an epoch of {self.num_rows}")
        return self if self.start(self.behind(row)) == row else replace(self, first_row=row)

    def block_ends(self, step: int) -> list[int]:
        """Row at which each block of a step ends."""
        first, rows = self.start(step), self.start(step + 1) - self.start(step)
        count = min(self.blocks_per_step, rows)
        return [first + (block + 1) * rows // count for block in range(count)]
