"""Pictures that are none: a stream of random crops in the shape of a recipe's, for measuring steps without any data."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from swav_ray.config import Config
from swav_ray.data.multicrop import room
from swav_ray.data.plan import Plan
from swav_ray.data.stream import Batch, Position, Stream

GROUP = 64  # rows
DISTINCT = 2  # batches, which come again and again


@dataclass(frozen=True)
class _NoShards:
    num_rows: int


class SyntheticStream(Stream):
    """One epoch of equal steps without end in sight; every worker holds the same number of rows."""

    def __init__(self, config: Config, steps: int = 1_000_000) -> None:
        super().__init__(config)
        rows = -(-steps * config.global_batch_size // GROUP) * GROUP
        self.__dict__["shards"] = _NoShards(rows)  # in place of the cached ones
        self.__dict__["plan"] = Plan([rows], seed=config.seed, window_groups=1, block_rows=config.data.block_rows)

    def local(self, start: Position, rank: int = 0, world_size: int = 1) -> Generator[Batch]:
        config = self.config
        share = config.global_batch_size // world_size
        generator = np.random.default_rng(config.seed + rank)
        made = [room(config, share, self.empty) for _ in range(DISTINCT)]
        for group in itertools.chain.from_iterable(made):
            group[:] = generator.integers(0, 256, group.shape, dtype=np.uint8)
        for step in itertools.count():
            yield Batch(
                epoch=0,
                step=step,
                global_rows=share * world_size,
                largest_share=share,
                next=Position(0, (step + 1) * share * world_size),
                positions=np.arange(rank * share, (rank + 1) * share),
                ids=[str(row) for row in range(share)],
                crops=made[step % DISTINCT],
                bad=[],
            )
