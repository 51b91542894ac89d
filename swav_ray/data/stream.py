"""From shards to the batches of one worker, in plan order, from any row on.

Every step of the run has a fixed set of rows, cut into fixed blocks (plan.Steps). Blocks are dealt to the workers in
turn, so each knows which it gets; what it receives is checked against that. Two ways run the same code: in this process
(one-worker trials, tests) and as tasks of Ray Data (clusters), which read and crop on any node.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from swav_ray.config import Config
from swav_ray.data.ahead import chunks, in_threads, iter_ahead
from swav_ray.data.multicrop import Crops, empty, make_crops, room
from swav_ray.data.plan import Plan, Steps, cut
from swav_ray.data.ray_tasks import from_table, ray_iterators
from swav_ray.data.shards import Shards

if TYPE_CHECKING:
    import ray.data
    from torch import Tensor

WINDOWS_PER_SPAN = 4  # a read task's share; at its ends a window may be read twice, and all of it may have to wait its turn
SPANS_PER_LEG = 4096  # read tasks planned ahead at a time


@dataclass(frozen=True, order=True)
class Position:
    """The next step of a run: its epoch and the first row of that step within it. Independent of any worker count."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Span:
    """Steps `first` to `last` - 1 of an epoch that is cut into `steps`."""

    epoch: int
    steps: Steps
    first: int
    last: int


@dataclass(frozen=True)
class Block:
    """Some rows of one step, as JPEGs: `positions` are their places in the step's global batch."""

    epoch: int
    step: int
    positions: range
    ids: list[str]
    jpegs: list[bytes]


@dataclass(frozen=True)
class Cropped:
    """Some blocks of one step, one worker's, their crops side by side: one array (C, rows, S, S, 3) for each crop size."""

    epoch: int
    step: int
    positions: list[range]
    ids: list[str]
    crops: Crops
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class Share:
    """The blocks of a step that are one worker's, by their places in the global batch; what all workers know of the step."""

    epoch: int
    step: int
    parts: list[range]
    global_rows: int
    largest: int  # rows of the worker that holds most of them
    next: Position


@dataclass(frozen=True)
class Batch:
    """One worker's rows of one step."""

    epoch: int
    step: int  # within the epoch, or within what was left of it where it was cut anew
    global_rows: int  # rows of the step over all workers
    largest_share: int  # rows of the worker that holds most of them
    next: Position
    positions: NDArray[np.int64]
    ids: list[str]
    crops: Sequence[NDArray[np.uint8] | Tensor]  # one (C, B, S, S, 3) for each crop size; tensors where they are on a GPU
    bad: list[tuple[str, str]]


class Stream:
    """The data side of a run. Small and picklable; reads the manifest when it is first asked for rows, not to crop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.empty: Callable[[tuple[int, ...]], NDArray[np.uint8]] = empty  # memory for a batch

    def __reduce__(self) -> tuple[Any, ...]:
        return _stream, (pickle.dumps(self.config),)

    @functools.cached_property
    def shards(self) -> Shards:
        return Shards(self.config.data.train)

    @functools.cached_property
    def plan(self) -> Plan:
        data = self.config.data
        sizes = self.shards.rows_per_group
        return Plan(sizes, seed=self.config.seed, window_groups=data.window_groups, block_rows=data.block_rows)

    @property
    def steps(self) -> Steps:
        """How the most workers there may be cut a whole epoch."""
        return self.steps_on(self.config.elastic.max)

    def steps_on(self, workers: int) -> Steps:
        """How so many workers cut a whole epoch; the same for all but with `elastic.scale_lr_with_batch`."""
        return Steps(self.plan.num_rows, self.config.batch_on(workers), self.config.data.block_rows)

    def spans_from(self, start: Position, world_size: int) -> Iterator[Span]:
        """What is left of the run on so many workers, one span an epoch.

        Raises:
            ValueError: the batch is the same for any worker count, and none of its steps begins at ``start``.
        """
        whole = self.steps_on(world_size)
        steps = whole.recut(start.row) if self.config.elastic.scale_lr_with_batch else whole
        first = steps.step_at(start.row)
        for epoch in range(start.epoch, self.config.epochs):
            yield Span(epoch, steps, first, steps.per_epoch)
            steps, first = whole, 0

    def after(self, start: Position, steps: int, world_size: int) -> Position | None:
        """Where so many more steps end on so many workers; None when the run ends before."""
        for span in self.spans_from(start, world_size):
            if steps < span.last - span.first:
                return Position(span.epoch, span.steps.start(span.first + steps))
            steps -= span.last - span.first
        return None

    def read(self, span: Span) -> Iterator[Block]:
        """Blocks of a span's steps. Each window is read once, while the one before it is used."""
        epoch, steps = span.epoch, span.steps
        begin, end = steps.start(span.first), steps.start(span.last)
        ends, rows_of = itertools.tee((step, row) for step in range(span.first, span.last) for row in steps.block_ends(step))
        asked, cuts = itertools.tee(self._windows(epoch, begin, end))
        windows = self.shards.read_windows(asked, ["id", "jpeg"])
        ids: list[str] = []
        jpegs: list[bytes] = []

        def pieces() -> Iterator[NDArray[np.int64]]:
            for pairs, rows in zip(cuts, windows, strict=True):
                ids.extend(rows["id"])
                jpegs.extend(rows["jpeg"])
                yield pairs

        start = begin
        for (step, stop), pairs in zip(ends, cut(pieces(), begin, (row for _, row in rows_of)), strict=True):
            count, offset = len(pairs), start - steps.start(step)
            yield Block(epoch, step, range(offset, offset + count), ids[:count], jpegs[:count])
            del ids[:count], jpegs[:count]
            start = stop

    def _windows(self, epoch: int, begin: int, end: int) -> Iterator[NDArray[np.int64]]:
        """The (group, row) of an epoch's rows ``begin`` to ``end`` - 1, window by window."""
        for window in self.plan.windows(epoch, begin):
            yield window.pairs[: end - window.start]
            if window.start + len(window.pairs) >= end:
                return

    def crop(self, steps: Iterable[list[Block]], threads: int = 1) -> Generator[Cropped]:
        """Each step's blocks cropped, side by side in the same arrays; a thread takes a block at a time."""

        def places() -> Iterator[tuple[list[Block], Block, Crops, int]]:
            for blocks in steps:
                crops = room(self.config, sum(len(block.ids) for block in blocks), self.empty)
                at = 0
                for block in blocks:
                    yield blocks, block, crops, at
                    at += len(block.ids)

        def work(place: tuple[list[Block], Block, Crops, int]) -> tuple[list[Block], Block, Crops, list[tuple[str, str]]]:
            blocks, block, crops, at = place
            return blocks, block, crops, self.crop_block(block, crops, at)

        bad: list[tuple[str, str]] = []
        for blocks, block, crops, bad_here in in_threads(work, places(), threads):
            bad += bad_here
            if block is blocks[-1]:
                ids = [identifier for each in blocks for identifier in each.ids]
                yield Cropped(block.epoch, block.step, [each.positions for each in blocks], ids, crops, bad)
                bad = []

    def crop_block(self, block: Block, crops: Crops, at: int) -> list[tuple[str, str]]:
        """Put a block's crops into arrays, from row ``at`` on; its bad pictures. A block is cropped alike in any company."""
        return make_crops(self.config, block.epoch, block.ids, block.jpegs, crops, at).bad

    def local(self, start: Position, rank: int = 0, world_size: int = 1) -> Generator[Batch]:
        """This worker's batches to the end of the run, read and cropped in threads of this process, one a CPU it has."""
        spans = self.spans_from(start, world_size)
        blocks = itertools.chain.from_iterable(self.read(span) for span in spans)
        mine = itertools.islice(blocks, rank, None, world_size)
        steps = (list(itertools.islice(mine, len(share.parts))) for share in self._shares(start, rank, world_size))
        cropped = self.crop((blocks for blocks in steps if blocks), max(1, int(self.config.elastic.cpus_per_worker)))
        return iter_ahead(self._batches(start, cropped, rank, world_size))

    def on_ray(self, start: Position, world_size: int) -> Iterator[list[ray.data.DataIterator]]:
        """For each leg of the run, one Ray Data iterator a worker; take a leg when the one before is used up."""
        for leg in chunks(self._dealt(start, world_size), SPANS_PER_LEG):
            yield ray_iterators(self, leg, world_size)

    def batches_of(self, start: Position, legs: Iterable[Iterable[Any]], rank: int, world_size: int) -> Generator[Batch]:
        """One worker's batches from the :func:`tables` of its iterators of :meth:`on_ray`.

        Made in the caller's thread: to go on to the next leg may be a collective of all workers.
        """

        cropped = (pieces for leg in legs for table in leg for pieces in from_table(table))
        return self._batches(start, cropped, rank, world_size)

    def _dealt(self, start: Position, world_size: int) -> Iterator[tuple[Span, int]]:
        """:meth:`_short_spans`, each with the number of blocks that were dealt before it."""
        dealt = 0
        for span in self._short_spans(start, world_size):
            yield span, dealt
            dealt += sum(len(span.steps.block_ends(step)) for step in range(span.first, span.last))

    def _short_spans(self, start: Position, world_size: int) -> Iterator[Span]:
        """:meth:`spans_from` in pieces of about `WINDOWS_PER_SPAN` windows of rows."""
        window_rows = self.config.data.window_groups * self.shards.manifest.group_rows
        for span in self.spans_from(start, world_size):
            size = -(-WINDOWS_PER_SPAN * window_rows // span.steps.global_batch_size)
            for first in range(span.first, span.last, size):
                yield replace(span, first=first, last=min(first + size, span.last))

    def _shares(self, start: Position, rank: int, world_size: int) -> Iterator[Share]:
        """A worker's share of every step to the end of the run."""
        dealt = 0  # blocks dealt to all workers
        spans = self.spans_from(start, world_size)
        for span, step in ((each, step) for each in spans for step in range(each.first, each.last)):
            epoch, first, last = span.epoch, span.steps.start(step), span.steps.start(step + 1)
            cuts = [0, *(end - first for end in span.steps.block_ends(step))]
            parts = [range(a, b) for a, b in itertools.pairwise(cuts)]
            shares = [parts[(worker - dealt) % world_size :: world_size] for worker in range(world_size)]
            dealt += len(parts)
            done = last == self.plan.num_rows
            after = Position(epoch + 1, 0) if done else Position(epoch, last)
            largest = max(sum(map(len, share)) for share in shares)
            yield Share(epoch, step, shares[rank], last - first, largest, after)

    def _batches(self, start: Position, cropped: Iterator[Cropped], rank: int, world_size: int) -> Generator[Batch]:
        for share in self._shares(start, rank, world_size):
            pieces: list[Cropped] = []
            while sum(len(piece.positions) for piece in pieces) < len(share.parts):
                if (piece := next(cropped, None)) is None:
                    break
                pieces.append(piece)
            expected = [(share.epoch, share.step, part) for part in share.parts]
            got = [(piece.epoch, piece.step, part) for piece in pieces for part in piece.positions]
            if got != expected:
                raise RuntimeError(f"the data stream is out of step: expected {expected}, got {got}")
            yield Batch(
                share.epoch,
                share.step,
                global_rows=share.global_rows,
                largest_share=share.largest,
                next=share.next,
                positions=np.concatenate([np.arange(p.start, p.stop) for p in share.parts] or [np.empty(0, dtype=np.int64)]),
                ids=[identifier for piece in pieces for identifier in piece.ids],
                crops=self._join(pieces),
                bad=[entry for piece in pieces for entry in piece.bad],
            )

    def _join(self, pieces: list[Cropped]) -> Crops:
        """The crops of a batch; uncopied if they are one piece and its memory will do."""
        if len(pieces) == 1 and (self.empty is empty or pieces[0].crops[0].flags.writeable):
            return pieces[0].crops
        crops = room(self.config, sum(len(piece.ids) for piece in pieces), self.empty)
        for number, group in enumerate(crops):
            if pieces:
                np.concatenate([piece.crops[number] for piece in pieces], axis=1, out=group)
        return crops


@functools.lru_cache(maxsize=4)
def _stream(config: bytes) -> Stream:
    """One for all tasks of a process: the manifest is read once, files stay open."""
    return Stream(pickle.loads(config))
