"""The unreadable images of a run: counted over an epoch and all workers, listed, and a reason to stop when there are too many.

In a batch another picture stands for each of them (`data/multicrop.py`).
"""

from __future__ import annotations

import contextlib
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch
from swav_ray.errors import UserError
from swav_ray.train.metrics import BAD_IMAGES, MetricsLog
from swav_ray.train.world import World

NAMED = 3  # bad images in the message of a run that stops


class BadImages:
    """Every worker keeps one; rank 0's, which has the log, lists those of all.

    Args:
        epoch: in which the run goes on; what its log says of that epoch counts.
    """

    def __init__(self, config: Config, run: Storage, world: World, log: MetricsLog | None, epoch: int) -> None:
        self.config, self.run, self.world, self.log = config, run, world, log
        resumed = log is not None and log.last.get("epoch") == epoch
        self._in_epoch: int = log.last.get("bad_images", 0) if log is not None and resumed else 0
        self._new: list[dict[str, Any]] = []

    def meet(self, batch: Batch, step: int) -> None:
        """Note this worker's unreadable images of a step."""
        self._new += [{"id": key, "reason": reason, "epoch": batch.epoch, "step": step} for key, reason in batch.bad]

    def counts(self) -> tuple[int, int]:
        """Of this worker: images of the epoch so far, and those of them that are not listed yet. To be summed over all."""
        return self._in_epoch + len(self._new), len(self._new)

    def settle(self, new: int) -> None:
        """List what came since the last time, of all workers; ``new`` is its number, the same on each."""
        parts = self.world.gather(self._new) if new else None
        if self.log is not None and parts is not None:
            images = [image for part in parts for image in part]
            self.log.list_bad(sorted(images, key=lambda image: (image["step"], image["id"])))
        self._in_epoch, self._new = self._in_epoch + len(self._new), []

    def check(self, bad: int, rows: int, epoch: int) -> None:
        """Stop the run, on every worker at once, if ``bad`` unreadable images in an epoch of ``rows`` are too many.

        Raises:
            UserError: naming the first of them, and the list.
        """
        allowed = self.config.data.max_bad_fraction
        if bad <= allowed * rows:
            return
        listed = list(self.log.bad_images.items())[:NAMED] if self.log is not None else []
        first = "; ".join(f"{key}: {reason}" for key, reason in self.world.broadcast(listed))
        if self.log is not None:
            with contextlib.suppress(OSError):  # the message is more than the list
                self.log.upload()
        raise UserError(
            f"{self.config.data.train}: {bad} unreadable images in epoch {epoch}, more than data.max_bad_fraction {allowed} "
            f"allows ({first}; all in {self.run.uri}/{BAD_IMAGES}); mend the shards or raise it"
        )

    def end_epoch(self) -> None:
        self._in_epoch = 0
