"""A stream's blocks read and cropped by tasks of Ray Data on any node of the cluster, and dealt to the workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from swav_ray.data.ahead import chunks

if TYPE_CHECKING:
    import ray.data

    from swav_ray.data.stream import Block, Span, Stream

READERS = 2  # spans read at a time; a reader waits most of the time, and holds no processor
ROWS_PER_TASK = 128  # cropped by one task; its start and the store's book-keeping cost some milliseconds


def ray_iterators(stream: Stream, spans: list[Span], world_size: int) -> list[ray.data.DataIterator]:
    """Read and crop ``spans`` on the cluster, dealt to ``world_size`` workers block by block."""
    import ray.data

    together = max(1, ROWS_PER_TASK // stream.config.data.block_rows)

    def read(batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for span in batch["span"]:
            for blocks in chunks(stream.read(pickle.loads(span)), together):
                yield {"blocks": [pickle.dumps(blocks, protocol=5)]}

    def crop(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for cell in batch["blocks"]:
            for block in pickle.loads(cell):
                yield to_table(stream.crop(block))

    dataset = ray.data.from_items([{"span": pickle.dumps(span)} for span in spans], override_num_blocks=len(spans))
    # One of our blocks is one row and one block of Ray's: each is dealt whole, and Ray's splitter, which gives the next
    # block to the worker with the fewest rows, deals strictly in turn.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    # Different CPU shares keep Ray from fusing the two, so that the blocks of one read are cropped in parallel.
    readers = ray.data.TaskPoolStrategy(size=READERS)
    cropped = dataset.map_batches(read, batch_size=1, num_cpus=0, compute=readers).map_batches(crop, batch_size=1, num_cpus=1)
    return list(cropped.streaming_split(world_size, equal=False))


def to_table(block: Block) -> pa.Table:
    """A cropped block as one row. The crops stay where they are until Ray copies them into its store, once."""
    shapes = [group.shape for group in block.crops]
    head = pickle.dumps((replace(block, jpegs=[], crops=[]), shapes))
    columns: dict[str, pa.Array] = {"head": pa.array([head], type=pa.large_binary())}
    for number, group in enumerate(block.crops):
        ends = pa.py_buffer(np.array([0, group.nbytes], dtype=np.int64))
        columns[f"crops{number}"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(group)])
    return pa.table(columns)


def from_table(table: pa.Table) -> Iterator[Block]:
    """The blocks of :func:`to_table`; their crops are views of the table's memory."""
    for row in range(table.num_rows):
        head, shapes = pickle.loads(table["head"][row].as_buffer())
        flat = (np.frombuffer(table[f"crops{number}"][row].as_buffer(), dtype=np.uint8) for number in range(len(shapes)))
        yield replace(head, crops=[group.reshape(shape) for group, shape in zip(flat, shapes, strict=True)])


def tables(leg: ray.data.DataIterator) -> Iterator[Any]:
    """What one worker's iterator of :meth:`Stream.on_ray` brings."""
    yield from leg.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)  # type: ignore[arg-type]
