"""A worker's batches, made where the configuration says.

On a cluster they come from Ray Data, which takes seconds to start. The first ones are therefore read and cropped by the
workers themselves, from the same plan, and the stream changes over to Ray Data's at a step agreed on by all.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator
from typing import Any

from swav_ray.data.ahead import Ahead
from swav_ray.data.ray_tasks import stop, tables
from swav_ray.data.stream import Batch, Position, Stream
from swav_ray.train.prefetch import on_device
from swav_ray.train.world import World

MEASURED_STEPS = 3  # whose pace says how many steps `data.bridge_seconds` are


def batches(stream: Stream, start: Position, world: World) -> Generator[Batch]:
    """This worker's batches from ``start`` to the end of the run, on its device. All workers take them in step."""
    if stream.config.data.crop_in == "worker":
        return on_device(stream, stream.local(start, world.rank, world.size), world.device)
    return on_device(stream, _bridged(stream, start, world), world.device)


def _bridged(stream: Stream, start: Position, world: World) -> Generator[Batch]:
    here = stream.local(start, world.rank, world.size)
    legs, first, change_at = None, None, None
    seconds = stream.config.data.bridge_seconds
    began = 0.0
    try:
        for count, batch in enumerate(here, 1):
            yield batch
            if count == 1:
                began = time.monotonic()  # the first step is no measure
            elif count == MEASURED_STEPS:
                pace = (time.monotonic() - began) / (MEASURED_STEPS - 1)
                steps = world.broadcast(math.ceil(seconds / pace))  # rank 0's clock decides
                change_at = stream.after(batch.next, steps, world.size)
                if change_at is not None:
                    legs = _legs(stream, change_at, world)
                    first = Ahead(next(legs))
            if batch.next == change_at:
                break
        if change_at is not None and first is not None and legs is not None:
            here.close()
            yield from stream.batches_of(change_at, itertools.chain([first], legs), world.rank, world.size)
    finally:
        here.close()
        if first is not None:
            first.close()
        if legs is not None:
            legs.close()


def _legs(stream: Stream, start: Position, world: World) -> Generator[Any]:
    """What Ray Data brings this worker, leg by leg; rank 0 plans a leg and hands everyone their part."""
    import ray.cloudpickle

    source = stream.on_ray(start, world.size) if world.rank == 0 else None
    mine = None
    try:
        while True:
            leg = next(source, None) if source is not None else None
            iterators = ray.cloudpickle.loads(world.broadcast(ray.cloudpickle.dumps(leg)))
            if iterators is None:
                return
            mine = iterators[world.rank]
            yield tables(mine)
    finally:
        # The process stays when its group changes, and so would Ray Data's execution and everyone who waits for it.
        if mine is not None and world.rank == 0:
            stop(mine)
