"""A run of one worker inside this process: its rows come out one at a time, and it can be ended at any moment."""

from __future__ import annotations

import fcntl
import gc
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch
from swav_ray.errors import InfraError, StorageAwayError, UserError
from swav_ray.train.blame import code_failed
from swav_ray.train.faults import Faults
from swav_ray.train.logs import identify
from swav_ray.train.prefetch import on_device

SETTLE_SECONDS = 3.0  # for a checkpoint under way when the run is dropped
LOCK_SECONDS = 60.0  # for a process of a driver that was killed to let go of the run
ERROR_FILE = "error.txt"  # in the run's folder: the traceback of its last failure
Row = dict[str, Any]


class _Dropped(BaseException):
    """Unwinds the training thread of a trial that was stopped."""


class LocalRun:
    """Trains ``config`` in a thread. At each epoch's end the thread waits until :meth:`go_on`, for the verdict on its row.

    Args:
        config: resolved; a run of this name begun before goes on from its checkpoint.
        finish: called with (config, backbone) after the last step; gives figures for the last row.
        faults: to strike on purpose (`train/faults.py`).
    """

    def __init__(
        self, config: Config, finish: Callable[[Config, Any], Row] | None = None, faults: Faults | None = None
    ) -> None:
        from swav_ray.train.signals import SIGNALS

        self.latest: Row = {}  # the newest figures, between rows too
        self._config, self._finish, self._faults = config, finish, faults
        self._rows: queue.Queue[Row | Exception] = queue.Queue()
        self._may_go = threading.Semaphore(0)
        self._waiting = self._dropped = False
        self._first_step_at: float | None = None
        SIGNALS.clear()
        self._thread = threading.Thread(target=self._main, name=f"train {config.name}", daemon=True)
        self._thread.start()

    def next_row(self, seconds: float) -> Row | None:
        """The next row, or None if there is none within ``seconds``. The last one has ``done``, and ``error`` if it failed.

        A row of an epoch's end has `epochs_done`, and what was measured there. A run that goes on first gives again the rows
        of what it measured in earlier lives.

        Raises:
            InfraError, StorageAwayError: the store was away for too long, another process holds the run, or something failed
                that may be the machine's fault; the run can go on in another process.
        """
        try:
            row = self._rows.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(row, Exception):
            raise row
        return row

    def go_on(self) -> None:
        """The verdict on the last row was good."""
        if self._waiting:
            self._waiting = False
            self._may_go.release()

    def close(self) -> None:
        """End the run. At an epoch's end it is dropped at once; on the way it makes its step and saves a checkpoint first."""
        from swav_ray.train.signals import SIGNALS, Request

        self._dropped = self._waiting
        SIGNALS.ask(Request.STOP)
        self._may_go.release()  # also for a thread that only now comes to an epoch's end
        self._thread.join()
        SIGNALS.clear()  # the request was this run's

    def _main(self) -> None:
        self._cpu = time.process_time()
        run = Storage(self._config.storage) / self._config.name
        identify(run.uri, rank=0)
        try:
            with run_lock(run):
                last = self._train()
            self._rows.put(last | {"done": True})
        except _Dropped:
            pass
        except (InfraError, StorageAwayError) as error:
            self._rows.put(error)
        except UserError as error:
            self._rows.put({**self.latest, "done": True, "error": str(error)})
        except Exception as error:
            run.write(ERROR_FILE, traceback.format_exc().encode())
            line = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:500]
            if code_failed(error):  # by this configuration: whoever meets it will meet it again
                self._rows.put({**self.latest, "done": True, "error": line})
            else:  # maybe the machine's, and then this process is not to be trusted with the next trial either
                self._rows.put(InfraError(line))
        finally:
            _let_go_of_memory()

    def _train(self) -> Row:
        import torch

        from swav_ray.train.loop import Training
        from swav_ray.train.trainer import open_run
        from swav_ray.train.world import World

        config = self._config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        training = Training(config, open_run(config), World(device=device), self._report, self._faults)
        self.latest = {"steps": training.step, "parameters": sum(p.numel() for p in training.model.parameters())}
        figures: Row = {}
        for figures in measured_before(training.run):
            self._rows.put(self.latest | figures)
        stream = on_device(training.stream, training.stream.local(training.position), device)
        try:
            found, asked = training.run_to_end(self._noting_the_first(stream))
        except BaseException:
            training.abandon(SETTLE_SECONDS)
            raise
        finally:
            stream.close()
        if asked:
            raise _Dropped
        figures = found or figures  # finished in an earlier life: what it measured then
        if self._finish is not None:
            figures = figures | self._finish(config, training.model.backbone)
        return self.latest | figures | self._cost()

    def _noting_the_first(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for count, batch in enumerate(batches):
            if count == 1:
                self._first_step_at = time.time()
            yield batch

    def _cost(self) -> Row:
        return {"cpu_seconds": time.process_time() - self._cpu, "workers": 1, "first_step_at": self._first_step_at}

    def _report(self, row: Row) -> None:
        self.latest = {"parameters": self.latest.get("parameters", 0), "steps": row["step"], **figures_of(row), **self._cost()}
        if "epochs_done" in row and row["epochs_done"] < self._config.epochs:
            self._waiting = True
            self._rows.put(self.latest)
            self._may_go.acquire()
            if self._dropped:
                raise _Dropped


def _let_go_of_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def figures_of(row: Row) -> Row:
    """What a sweep wants to know of a run's row."""
    return {key: value for key, value in row.items() if key in _KEPT or key.startswith(("probe/", "knn/"))}


_KEPT = {"epochs_done", "loss", "verdict", "unwell_since", "advice", "prototypes_in_use", "images_per_second"}


def measured_before(run: Storage) -> Iterator[Row]:
    """Rows of the epochs whose probes a run measured in earlier lives, oldest first."""
    from swav_ray.train.metrics import read_metrics

    return (figures_of(row) for row in read_metrics(run) if "epochs_done" in row)


@contextmanager
def run_lock(run: Storage) -> Iterator[None]:
    """Holds a local run's folder for this process alone; the process of a driver that was killed may linger for seconds.

    Raises:
        InfraError: somebody else still holds it after `LOCK_SECONDS`.
    """
    if run.is_s3:
        yield
        return
    folder = Path(run.root)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InfraError(f"{run.uri}: another process trains this run") from None
                time.sleep(0.2)
        yield
