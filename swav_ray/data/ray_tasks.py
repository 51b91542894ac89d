"""A stream's blocks read and cropped by tasks of Ray Data on any node of the cluster, and dealt to the workers."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from swav_ray.data.ahead import chunks
from swav_ray.data.allocator import keep_memory

if TYPE_CHECKING:
    import ray.data

    from swav_ray.data.stream import Block, Cropped, Span, Stream

# A batch may lie in Ray's store; nothing writes to one. Once for all: `warnings.catch_warnings` does not go with threads.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

CPUS_PER_READER = 4  # of the cluster; a reader holds no processor, but what it reads out of turn waits in Ray's store
CROP_CPUS = 0.5  # of a cropping task: Ray fills free places ten times a second only, so a second task waits at each processor
ROWS_PER_TASK = 256  # cropped by one task at most: its start and the book-keeping of what it makes cost some milliseconds
STOP_SECONDS = 5.0
ROWS_AHEAD = 2048  # dealt at a time at most, and held by a reader as JPEGs


def ray_iterators(stream: Stream, spans: list[tuple[Span, int]], world_size: int) -> list[ray.data.DataIterator]:
    """Read and crop ``spans`` on the cluster, dealt to ``world_size`` workers block by block.

    Args:
        spans: each with the number of blocks dealt before it.
    """
    import ray.data

    def read(table: pa.Table) -> Iterator[pa.Table]:
        keep_memory()
        for content in table["span"].to_pylist():
            span, dealt = pickle.loads(content)
            for blocks in hands(stream, span, dealt, world_size):
                yield pa.table({"blocks": _column(pickle.dumps(blocks, protocol=5))})

    def crop(table: pa.Table) -> Iterator[pa.Table]:
        keep_memory()
        for chunk in table["blocks"].chunks:
            for row in range(len(chunk)):
                yield to_table(list(stream.crop(by_step(pickle.loads(_cell(chunk, row))))))

    dataset = ray.data.from_items([{"span": pickle.dumps(each)} for each in spans], override_num_blocks=len(spans))
    # Some blocks of one worker, perhaps none, are one row and one block of Ray's: each is dealt whole, and Ray's splitter,
    # which gives the next block to the worker with the fewest rows, deals strictly in turn.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    # Different CPU shares keep Ray from fusing the two, so that what one task reads is cropped in parallel.
    readers = ray.data.TaskPoolStrategy(size=max(2, int(ray.cluster_resources().get("CPU", 0)) // CPUS_PER_READER))
    jpegs = dataset.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=0, compute=readers)
    crops = jpegs.map_batches(crop, batch_size=1, batch_format="pyarrow", num_cpus=CROP_CPUS)
    return list(crops.streaming_split(world_size, equal=False))


def stop(iterator: ray.data.DataIterator) -> None:
    """End an execution of :func:`ray_iterators`, and everyone who waits for it; nothing happens if it has ended."""
    import ray
    from ray.exceptions import RayError

    coordinator = iterator._coord_actor  # type: ignore[attr-defined]
    # Only killed, it would hold its part of the cluster in Ray Data's books until its request expires, and whoever comes
    # next would get half the processors. Takes 0.1 s.
    with contextlib.suppress(RayError):
        ray.get(coordinator.shutdown_executor.remote(), timeout=STOP_SECONDS)
    ray.kill(coordinator)


def hands(stream: Stream, span: Span, dealt: int, world_size: int) -> Iterator[list[Block]]:
    """The blocks of a span, some of one worker at a time, the workers in turn; ``dealt`` blocks were dealt before it."""
    rows = stream.config.data.block_rows
    each = max(1, min(ROWS_PER_TASK // rows, ROWS_AHEAD // (rows * world_size)))
    for blocks in chunks(stream.read(span), each * world_size):
        for rank in range(world_size):
            yield blocks[(rank - dealt) % world_size :: world_size]
        dealt += len(blocks)


def by_step(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Those of each step."""
    for _, those in itertools.groupby(blocks, key=lambda block: (block.epoch, block.step)):
        yield list(those)


def to_table(pieces: Sequence[Cropped]) -> pa.Table:
    """Crops as one row. They stay where they are until Ray copies them into its store, once."""
    groups = [group for piece in pieces for group in piece.crops]
    heads = [(replace(piece, crops=[]), [group.shape for group in piece.crops]) for piece in pieces]
    return pa.table({"heads": _column(pickle.dumps(heads)), **{f"crops{n}": _column(group) for n, group in enumerate(groups)}})


def from_table(table: pa.Table) -> Iterator[Cropped]:
    """What :func:`to_table` was given; the crops are views of the table's memory, which must not be written to."""
    for batch in table.to_batches():
        for row in range(batch.num_rows):
            number = itertools.count()
            for piece, shapes in pickle.loads(_cell(batch["heads"], row)):
                flat = [np.frombuffer(_cell(batch[f"crops{next(number)}"], row), dtype=np.uint8) for _ in shapes]
                yield replace(piece, crops=[group.reshape(shape) for group, shape in zip(flat, shapes, strict=True)])


def _column(content: bytes | np.ndarray) -> pa.LargeBinaryArray:
    """A column of one cell, which is not copied."""
    buffer = pa.py_buffer(content)
    ends = pa.py_buffer(np.array([0, buffer.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, buffer])


def _cell(column: pa.LargeBinaryArray, row: int) -> pa.Buffer:
    """A cell's own memory; pyarrow's scalars are copies."""
    _, ends, content = column.buffers()
    start, end = np.frombuffer(ends, dtype=np.int64)[column.offset + row :][:2].tolist()
    return content.slice(start, end - start)


def tables(leg: ray.data.DataIterator) -> Iterator[Any]:
    """What one worker's iterator of :meth:`Stream.on_ray` brings."""
    yield from leg.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)  # type: ignore[arg-type]
