"""A stream's blocks read and cropped by tasks of Ray Data on any node of the cluster, and dealt to the workers."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from swav_ray.data.ahead import chunks
from swav_ray.data.allocator import keep_memory

if TYPE_CHECKING:
    import ray.data

    from swav_ray.data.stream import Block, Span, Stream

CPUS_PER_READER = 4  # of the cluster; a reader holds no processor, but what it reads out of turn waits in Ray's store
CROP_CPUS = 0.5  # of a cropping task: Ray fills free places ten times a second only, so a second task waits at each processor
ROWS_PER_TASK = 128  # cropped by one task at most: its start and the book-keeping of what it makes cost some milliseconds
ROWS_AHEAD = 2048  # dealt at a time at most, and held by a reader as JPEGs


def ray_iterators(stream: Stream, spans: list[tuple[Span, int]], world_size: int) -> list[ray.data.DataIterator]:
    """Read and crop ``spans`` on the cluster, dealt to ``world_size`` workers block by block.

    Args:
        spans: each with the number of blocks dealt before it.
    """
    import ray.data

    def read(batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for cell in batch["span"]:
            span, dealt = pickle.loads(cell)
            for blocks in hands(stream, span, dealt, world_size):
                yield {"blocks": [pickle.dumps(blocks, protocol=5)]}

    def crop(batch: dict[str, Any]) -> Iterator[pa.Table]:
        keep_memory()
        for cell in batch["blocks"]:
            yield to_table([stream.crop(block) for block in pickle.loads(cell)])

    dataset = ray.data.from_items([{"span": pickle.dumps(each)} for each in spans], override_num_blocks=len(spans))
    # Some blocks of one worker, perhaps none, are one row and one block of Ray's: each is dealt whole, and Ray's splitter,
    # which gives the next block to the worker with the fewest rows, deals strictly in turn.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    # Different CPU shares keep Ray from fusing the two, so that what one task reads is cropped in parallel.
    readers = ray.data.TaskPoolStrategy(size=max(2, int(ray.cluster_resources().get("CPU", 0)) // CPUS_PER_READER))
    jpegs = dataset.map_batches(read, batch_size=1, num_cpus=0, compute=readers)
    return list(jpegs.map_batches(crop, batch_size=1, num_cpus=CROP_CPUS).streaming_split(world_size, equal=False))


def hands(stream: Stream, span: Span, dealt: int, world_size: int) -> Iterator[list[Block]]:
    """The blocks of a span, some of one worker at a time, the workers in turn; ``dealt`` blocks were dealt before it."""
    rows = stream.config.data.block_rows
    each = max(1, min(ROWS_PER_TASK // rows, ROWS_AHEAD // (rows * world_size)))
    for blocks in chunks(stream.read(span), each * world_size):
        for rank in range(world_size):
            yield blocks[(rank - dealt) % world_size :: world_size]
        dealt += len(blocks)


def to_table(blocks: Sequence[Block]) -> pa.Table:
    """Cropped blocks as one row. The crops stay where they are until Ray copies them into its store, once."""
    groups = [group for block in blocks for group in block.crops]
    heads = [(replace(block, jpegs=[], crops=[]), [group.shape for group in block.crops]) for block in blocks]
    columns: dict[str, pa.Array] = {"heads": pa.array([pickle.dumps(heads)], type=pa.large_binary())}
    for number, group in enumerate(groups):
        ends = pa.py_buffer(np.array([0, group.nbytes], dtype=np.int64))
        columns[f"crops{number}"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(group)])
    return pa.table(columns)


def from_table(table: pa.Table) -> Iterator[Block]:
    """The blocks of :func:`to_table`; their crops are views of the table's memory."""
    for row in range(table.num_rows):
        number = itertools.count()
        for head, shapes in pickle.loads(table["heads"][row].as_buffer()):
            flat = [np.frombuffer(table[f"crops{next(number)}"][row].as_buffer(), dtype=np.uint8) for _ in shapes]
            yield replace(head, crops=[group.reshape(shape) for group, shape in zip(flat, shapes, strict=True)])


def tables(leg: ray.data.DataIterator) -> Iterator[Any]:
    """What one worker's iterator of :meth:`Stream.on_ray` brings."""
    yield from leg.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)  # type: ignore[arg-type]
