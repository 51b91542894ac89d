"""Experiment trackers a run tells its figures to, each through its own library: W&B and MLflow.

`metrics.jsonl` is the truth; these are copies, on rank 0 only. They are written in a thread of their own, so that one that
is slow or away holds up nothing, and one that fails is left with a warning. A resumed run goes on in the same tracker run,
whose name stands in the run's `trackers.json`; steps that are done again give the same figures again.

Credentials and addresses come from the trackers' own variables (`WANDB_API_KEY`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`, ...).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError, without_credentials

FILE = "trackers.json"
PROJECT = "swav-ray"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say another
MOST_WAITING = 10_000  # rows; a tracker that falls further behind is left
BATCH = 50  # rows told at once
CLOSE_SECONDS = 10.0  # for what is not told yet when the run, or this start of it, ends; then it goes on behind its back
Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """One tracker's library; every call may raise whatever it likes."""

    def open(self, config: Config, identity: str | None, folder: Path | None) -> str:
        """Begin the tracker's run, or go on with ``identity``'s; its identity.

        Local files go to ``folder``, the run's own; None where the run is on S3.
        """

    def tell(self, rows: list[Row]) -> None:
        """Add rows of plain numbers, each with its `step`."""

    def close(self, failed: bool) -> None:
        """The run has ended, for now."""


class _Wandb:
    def open(self, config: Config, identity: str | None, folder: Path | None) -> str:
        import wandb

        if os.environ.get("WANDB_MODE") == "offline":
            _lasting(folder, "WANDB_DIR")
        identity = identity or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=config.name or None,
            id=identity,
            resume="allow",
            reinit="finish_previous",  # the process may have served another run
            dir=os.environ.get("WANDB_DIR") or str(folder or tempfile.mkdtemp(prefix="swav-ray-")),
            config=_settings(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        return identity

    def tell(self, rows: list[Row]) -> None:
        for row in rows:
            if row["step"] >= self._run.step:  # W&B's steps never go back; it has those that are done again
                self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    def open(self, config: Config, identity: str | None, folder: Path | None) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        _lasting(folder, "MLFLOW_TRACKING_URI")
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._client = MlflowClient(tracking_uri=where)
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            identity = str(self._client.create_run(experiment, run_name=config.name or None).info.run_id)
            settings = [Param(key, str(value)[:500]) for key, value in _settings(config).items()]
            self._client.log_batch(identity, params=settings[:100])  # 100 a call, by its protocol
            self._client.log_batch(identity, params=settings[100:])
        else:
            self._client.update_run(identity, status="RUNNING")
        self._identity = identity
        return identity

    def tell(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, row["step"]) for row in rows for key, value in row.items() if key != "step"]
        for start in range(0, len(metrics), 1000):  # a call takes so many
            self._client.log_batch(self._identity, metrics=metrics[start : start + 1000])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._identity, "FAILED" if failed else "FINISHED")


def _lasting(folder: Path | None, variable: str) -> None:
    if folder is None and not os.environ.get(variable):
        raise UserError(f"the run is on S3, so {variable} must name a place that lasts")


KINDS: dict[str, type[Tracker]] = {"wandb": _Wandb, "mlflow": _MLflow}


def check_installed(config: Config) -> None:
    """Raise a UserError if the library of a tracker that is asked for is not there."""
    for name in config.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin: a folder of that name, as W&B leaves one
            raise UserError(f"trackers: {name} is not installed; pip install 'swav-ray[{name}]', or leave it out of trackers")


class Trackers:
    """All trackers of a run, on rank 0; nothing it is told ever raises or waits.

    Args:
        config: of the run; names the trackers.
        run: its folder, which keeps the trackers' identities.
    """

    def __init__(self, config: Config, run: Storage) -> None:
        self._config, self._run = config, run
        self._lock = threading.Lock()  # on the file of identities
        self._threads = [_Thread(name, self) for name in dict.fromkeys(config.trackers)]

    def write(self, row: Row) -> None:
        """Tell the plain numbers of a row."""
        if self._threads:
            plain = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "time"}
            for thread in self._threads:
                thread.put(plain)

    def close(self, failed: bool = False, seconds: float = CLOSE_SECONDS) -> None:
        """Tell what is left and end the trackers' runs, in ``seconds`` at most."""
        for thread in self._threads:
            thread.end(failed)
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.leave(f"it took more than {seconds:.0f} s to take the last figures")

    def open(self, name: str) -> Tracker:
        """Begin, or take up again, the tracker's run."""
        tracker, known = KINDS[name](), self._identities().get(name)
        identity = tracker.open(self._config, known, None if self._run.is_s3 else Path(self._run.root))
        if known != identity:
            with self._lock:
                self._run.write(FILE, json.dumps(self._identities() | {name: identity}).encode())
        return tracker

    def _identities(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._run.read(FILE)))
        except (FileNotFoundError, ValueError):
            return {}


class _Thread(threading.Thread):
    """One tracker's: it may raise, hang or lag as it likes."""

    def __init__(self, name: str, owner: Trackers) -> None:
        super().__init__(name=f"swav-ray-{name}", daemon=True)
        self._tracker, self._owner, self._left = name, owner, False
        self._ending = threading.Event()
        self._rows: queue.Queue[Row | bool] = queue.Queue(MOST_WAITING)
        self.start()

    def put(self, row: Row) -> None:
        if not self._left:
            try:
                self._rows.put_nowait(row)
            except queue.Full:
                self.leave(f"it is {MOST_WAITING:,} rows behind")

    def end(self, failed: bool) -> None:
        self._ending.set()
        with contextlib.suppress(queue.Full):
            self._rows.put_nowait(failed)

    def _is_ending(self, tracker: str) -> bool:
        return self._tracker == tracker and self._ending.is_set()

    def leave(self, why: str) -> None:
        """Tell it no more; said once."""
        if not self._left:
            self._left = True
            line = without_credentials(" ".join(why.split()))[:300]
            logger.warning("trackers: %s is told no more: %s; metrics.jsonl has everything", self._tracker, line)

    def run(self) -> None:
        try:
            for other in threading.enumerate():  # of the run's last start in this process: one after the other
                if isinstance(other, _Thread) and other is not self and other._is_ending(self._tracker):
                    other.join(60)
            tracker = self._owner.open(self._tracker)
            while True:
                rows, failed = self._next()
                if rows:
                    tracker.tell(rows)
                if failed is not None:
                    tracker.close(failed)
                    return
        except BaseException as error:  # SystemExit too: a library's whim ends its own thread, never the run
            self.leave(f"{type(error).__name__}: {error}")

    def _next(self) -> tuple[list[Row], bool | None]:
        """Rows that wait, at least one, and how the run ended if it has."""
        rows: list[Row] = []
        item = self._rows.get()
        while not isinstance(item, bool):
            rows.append(item)
            if len(rows) == BATCH or self._rows.empty():
                return rows, None
            item = self._rows.get()
        return rows, item


def _settings(config: Config) -> dict[str, Any]:
    """Dotted settings, and what names them; no address with a user or a password in it."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    plain = flat(config.model_dump(mode="json"))
    shown = {key: without_credentials(value) if isinstance(value, str) else value for key, value in plain.items()}
    return shown | {"config_hash": config.hash()}
