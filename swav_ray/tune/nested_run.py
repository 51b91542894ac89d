"""A trial of several workers: a nested elastic run, seen as `LocalRun` is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import InfraError, Stopped, UserError
from swav_ray.train.nested import ElasticRun
from swav_ray.tune.local_run import Row, figures_of

STOP_SECONDS = 60.0  # for the last step and its checkpoint, when the sweep is stopped


class NestedRun:
    """Trains ``config`` on workers elsewhere. They go on while the verdict on a row is awaited.

    Args:
        config: resolved; its `elastic` says how many workers.
        share_key: names its share of the cluster.
        finish: called with (config, backbone) after the last step; gives figures for the last row.
    """

    def __init__(self, config: Config, share_key: str, finish: Callable[[Config, Any], Row] | None = None) -> None:
        self.latest: Row = {}
        self._finish, self._config = finish, config
        self._judged = True
        self._run = ElasticRun(config, share_key=share_key)

    def next_row(self, seconds: float) -> Row | None:
        """The next row, or None if there is none within ``seconds``; the last one has ``done``, and ``error`` if it failed.

        Raises:
            InfraError: processes, nodes or the store failed; the run can go on.
        """
        row = self._run.next_result(timeout=seconds)
        if row is not None:
            self._judged = row["epochs_done"] >= self._config.epochs
            self.latest = {"steps": row["step"], "workers": row.get("workers", 1), **figures_of(row)}
            return None if self._judged else self.latest
        return self._end() if self._run.ended else None

    def go_on(self) -> None:
        self._judged = True

    def close(self) -> None:
        """End the run: at once if its last row was judged bad, otherwise with a checkpoint first."""
        if self._judged:
            self._run.stop()
            end = time.monotonic() + STOP_SECONDS
            while not self._run.ended and time.monotonic() < end:
                self._run.next_result(timeout=0.5)
        self._run.abort()

    def _end(self) -> Row:
        try:
            figures = self._run.result()
            found = self._finish(self._config, self._backbone()) if self._finish is not None else {}
        except InfraError:
            raise
        except Stopped as stopped:
            raise InfraError(str(stopped)) from None
        except UserError as error:
            return {**self.latest, "done": True, "error": str(error)}
        return {**self.latest, **figures_of(figures), **found, "done": True}

    def _backbone(self) -> Any:
        from swav_ray.train.backbones import load_run

        return load_run((Storage(self._config.storage) / self._config.name).uri)[1]
