"""The workers of the moment: who this process is among them, and what it shares with them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass
class World:
    """This process among `size`; `group` is None for a single one. `control` carries objects, on the CPU."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _alone: dist.ProcessGroup | None = field(default=None, init=False)

    @classmethod
    def join(cls, device: torch.device) -> World:
        """The world of an initialised `torch.distributed`, or a single process where there is none."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(device=device)
        everyone: Any = dist.group.WORLD
        control: Any = dist.new_group(backend="gloo") if device.type == "cuda" else everyone
        return cls(dist.get_rank(), dist.get_world_size(), everyone, control, device)

    def subgroup(self, size: int) -> dist.ProcessGroup | None:
        """The group of this worker and its neighbours by rank, ``size`` in all; 0 is everyone. Every worker calls it."""
        if self.group is None or size in (0, self.size):
            return self.group
        groups: list[Any] = [dist.new_group(list(range(first, first + size))) for first in range(0, self.size, size)]
        return groups[self.rank // size]

    def alone(self) -> dist.ProcessGroup | None:
        """The group of this worker and nobody else. Every worker calls it."""
        if self._alone is None:
            self._alone = self.subgroup(1)
        return self._alone

    def leave(self) -> None:
        """Close this process's connections after an error, so that peers that wait for it fail at once.

        Not with NCCL, where a broken communicator may not be left without waiting: such a process is ended from outside.
        """
        if dist.is_initialized() and self.device.type == "cpu":
            self.group = self.control = self._alone = None
            dist.destroy_process_group()
            gc.collect()

    def gather(self, item: Any) -> list[Any] | None:
        """Everyone's item in rank order on rank 0; None elsewhere."""
        if self.group is None:
            return [item]
        items: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(item, items, dst=0, group=self.control)
        return items

    def broadcast(self, item: Any, source: int = 0) -> Any:
        """The item of rank ``source``, everywhere."""
        if self.group is None:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=source, group=self.control)
        return box[0]

    def vote(self, value: int) -> Callable[[], int]:
        """Begin to agree on the largest of all workers' values; call the result for it. Does not wait in between."""
        if self.group is None:
            return lambda: value
        largest = torch.tensor([value])
        work = dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.control, async_op=True)

        def result() -> int:
            work.wait()
            return int(largest)

        return result

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` summed over all workers, in place."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values
