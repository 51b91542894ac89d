"""Metrics of a run: one JSON line a step, TensorBoard beside it, and only of steps that count.

After a restart the lines of steps that are done again are removed, so `metrics.jsonl` is always the one surviving history.
Beside it `bad_images.jsonl` lists the unreadable images met so far, each once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.train.gauges import Gauges
from swav_ray.train.trackers import Trackers

FILE = "metrics.jsonl"
BAD_IMAGES = "bad_images.jsonl"
LISTED_AT_MOST = 100_000  # bad images; more are counted only


def read_metrics(run: Storage, name: str = FILE) -> list[dict[str, Any]]:
    """All lines of a run, oldest first; none if it has not begun."""
    try:
        lines = run.read(name).decode().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run killed while writing it
            break
    return rows


class MetricsLog:
    """The writer, on one rank only.

    Args:
        run: folder of the run.
        step: steps already done and saved; lines of later steps are dropped.
        config: of the run, where its trackers are to be told too.

    Attributes:
        last: the last line kept that says how the run is (`verdict`); empty in a new run.
        bad_images: reasons by id, in the order they were met; of earlier lives of the run too.
    """

    def __init__(self, run: Storage, step: int, config: Config | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self._scratch = Path(tempfile.mkdtemp(prefix="swav-ray-")) if run.is_s3 else Path(run.root)
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self.last: dict[str, Any] = next((row for row in reversed(kept) if "verdict" in row), {})
        self._path = self._scratch / FILE
        Storage(str(self._scratch)).write(FILE, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self._path.open("a")
        listed = read_metrics(run, BAD_IMAGES)  # a bad image stays bad: those of steps that are done again are kept
        self.bad_images: dict[str, str] = {image["id"]: image["reason"] for image in listed}
        if listed:
            Storage(str(self._scratch)).write(BAD_IMAGES, "".join(json.dumps(image) + "\n" for image in listed).encode())
        self._problem: OSError | None = None
        self._board = SummaryWriter(str(self._scratch / "tensorboard"), purge_step=step + 1)
        self._trackers = Trackers(config, run) if config is not None and config.trackers else None
        self._gauges = Gauges(run.uri)

    def write(self, row: dict[str, Any]) -> None:
        """Add one step's line; plain numbers in it go to TensorBoard, and to the run's trackers."""
        if self._trackers is not None:
            self._trackers.write(row)
        self._gauges.tell(row)
        with self._noting():
            self._file.write(json.dumps(row) + "\n")
            for key, value in row.items():
                if isinstance(value, int | float) and key not in ("step", "time"):
                    self._board.add_scalar(key, value, row["step"])

    def list_bad(self, images: list[dict[str, Any]]) -> None:
        """Add unreadable images (each with `id` and `reason`) that are not listed yet to the list."""
        new = {image["id"]: image for image in images if image["id"] not in self.bad_images}
        new = dict(itertools.islice(new.items(), LISTED_AT_MOST - len(self.bad_images)))
        if not new:
            return
        self.bad_images |= {key: image["reason"] for key, image in new.items()}
        with self._noting(), (self._scratch / BAD_IMAGES).open("a") as file:
            file.write("".join(json.dumps(image) + "\n" for image in new.values()))

    def flush(self) -> None:
        """Make what was written visible to readers of the folder."""
        with self._noting():
            self._file.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # this rank alone knows; at the next checkpoint all ranks hear of it (`check`)
            self._problem = self._problem or error

    def check(self) -> None:
        """Raise what kept a line from being written, as a full disk does."""
        if self._problem is not None:
            raise self._problem

    def upload(self) -> None:
        """Copy what was flushed to the run's folder where that is S3; with each checkpoint, from any thread."""
        if self.run.is_s3:
            self._board.flush()
            self.run.put(self._path, FILE)
            if self.bad_images:
                self.run.put(self._scratch / BAD_IMAGES, BAD_IMAGES)
            for file in (self._scratch / "tensorboard").iterdir():
                self.run.put(file, f"tensorboard/{file.name}")

    def abandon(self) -> None:
        """Let go of the files, whatever they lack: another process may write them now."""
        if self._trackers is not None:
            self._trackers.close(failed=True, seconds=2.0)
        with contextlib.suppress(OSError):
            self._board.close()
            self._file.close()

    def close(self) -> None:
        if self._trackers is not None:
            self._trackers.close()
        self._board.close()
        self.flush()
        self.check()
        self.upload()
        self._file.close()
