"""A run of several workers inside another process, such as a trial's: it reports, and ends when it is told to.

The run goes on in a thread of this process, which owns its controller, which owns its workers. Whatever ends this process
ends them too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import InfraError, StorageAwayError, UserError
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.cluster import cancel_reservation
from swav_ray.train.control import Control
from swav_ray.train.metrics import read_metrics
from swav_ray.train.progress import forget_run
from swav_ray.train.trainer import elastic_trainer, pretrain


class ElasticRun:
    """Starts a run, or goes on with it, in the background; all methods may be called from any thread.

    Args:
        config: of the run, resolved.
        share_key: names its share of the workers, for :func:`~swav_ray.train.shares.set_share`; None: all it can get.

    Raises:
        UserError: this Ray lacks the hooks.
    """

    def __init__(self, config: Config, *, share_key: str | None = None) -> None:
        if elastic_trainer() is None:
            raise UserError("trials of several workers need the Ray that swav-ray is made for; install ray==2.60.*")
        self.config, self._share_key = config, share_key
        self._control = Control()
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # None: there will be no more
        self._epochs = 0  # of the newest row handed on
        self._figures: dict[str, Any] = {}
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"swav-ray-run-{config.name}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the run is over and every row of it was taken: :meth:`result` answers at once."""
        return self._over.is_set()

    def next_result(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The row of the next end of an epoch, with `epochs_done`, `workers`, and the probe's figures where it was due.

        Each epoch comes once and in order. Of epochs that an earlier life had finished and saved, those with a probe come
        first; ignore what you know already.

        Args:
            timeout: in seconds; None waits for the next row or the end.

        Returns:
            None when there was none in time, or when the run is over (:attr:`ended`).
        """
        if self._over.is_set():
            return None
        try:
            row = self._rows.get(timeout=timeout)
        except queue.Empty:
            return None
        if row is None:
            self._over.set()
            self._rows.put(None)  # for others who wait
        return row

    def results(self) -> Iterator[dict[str, Any]]:
        """All rows that are left, until the run is over."""
        while not self.ended:
            row = self.next_result()
            if row is not None:
                yield row

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """The run's last figures, once it has ended.

        Raises:
            InfraError: processes, nodes or the store failed; worth another try.
            UserError: the configuration or the user's code, or a diverged loss; not worth one.
            Stopped: by :meth:`stop` or :meth:`abort`.
            TimeoutError: it goes on after ``timeout`` seconds.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"run {self.config.name!r} goes on")
        if self._error is not None:
            raise self._error
        return self._figures

    def stop(self) -> None:
        """End after the next step, all saved; a new `ElasticRun` of the same configuration goes on from there."""
        self._control.stop()

    def abort(self, seconds: float = 3.0) -> bool:
        """End now, nothing saved: the workers are gone when this returns, and what they held is free.

        Returns:
            Whether all that was done within ``seconds``. If not, the thread is still waiting for a store that is away; it
            starts nothing any more.
        """
        self._control.abort()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        from ray.exceptions import RayError

        try:
            self._replay()
            figures = pretrain(self.config, epoch=self._hand_on, control=self._control, share_key=self._share_key)
            self._figures = figures or self._figures  # none where an earlier life had come to the end
        except (StorageAwayError, RayError) as error:
            self._error = InfraError(f"run {self.config.name!r}: {error}")
        except Exception as error:
            self._error = error
        finally:
            self._rows.put(None)

    def _replay(self) -> None:
        """Hand on what earlier lives had found and saved: a life may end between an epoch and the word of it."""
        run = Storage(self.config.storage) / self.config.name
        newest = Checkpoints(run / "checkpoints").newest()
        if newest is None:
            return
        for row in read_metrics(run):
            if "epochs_done" in row and row["step"] <= newest[1]["step"]:
                self._figures = row
                self._hand_on(row)

    def _hand_on(self, row: dict[str, Any]) -> None:
        if row["epochs_done"] > self._epochs:  # a loss may have sent the run back to before it
            self._epochs = row["epochs_done"]
            self._rows.put(row)


def clear_away(config: Config) -> None:
    """Remove what a run leaves whose process was killed, from any process: what it asked of the autoscaler, its last words.

    Its workers are gone by themselves. Not needed after an end, an abort or before a new life of the run.
    """
    run = Storage(config.storage) / config.name
    cancel_reservation(run.uri)
    forget_run(run.uri)
