"""The labelled rows of shards, or a share of them, as batches to train a classifier on and to score it with."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from swav_ray.config import Config
from swav_ray.data.ahead import chunks, in_threads
from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.multicrop import centre_crop, make_crops
from swav_ray.data.plan import Plan, Steps
from swav_ray.data.shards import Shards
from swav_ray.errors import UserError
from swav_ray.evaluate.subset import stratified

MOST_BAD = 0.01  # of the rows; so many unreadable pictures are left out and counted
KEPT_BYTES = 2 << 30  # of image files: what fits is read once and shuffled as a whole
WINDOW_ROWS = 4096  # shuffled together where it does not
TASK_ROWS = 32  # that one thread crops at a time


class Row(NamedTuple):
    """One image of the shards."""

    id: str
    label: int
    jpeg: bytes


@dataclass(frozen=True)
class Labelled:
    """Pictures ``(B, S, S, 3)`` and their labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class LabelledRows:
    """The rows of shards that have a label, or a stratified share of them (`evaluate/subset.py`).

    Args:
        share: of the labelled rows.
        most_rows: about so many rows at most, every class alike.
        again: batches are made more than once, so that image files are kept where they fit.

    Raises:
        UserError: no shards there, no labels in them, or, of its batches, more unreadable pictures than `MOST_BAD`.
    """

    def __init__(
        self, uri: str, *, share: float = 1.0, most_rows: int | None = None, seed: int = 0, again: bool = True
    ) -> None:
        self.uri, self.shards, self.seed = uri, Shards(uri), seed
        groups = list(self.shards.iter_groups(["id", "label"]))
        ids = [identifier for group in groups for identifier in group["id"].to_pylist()]
        labels = np.concatenate([group["label"].to_numpy() for group in groups]) if groups else np.empty(0, dtype=np.int64)
        labelled = int((labels >= 0).sum())
        if not labelled:
            raise UserError(f"{uri}: holds no labelled images, so there is nothing to score with")
        if most_rows is not None:
            share = min(share, most_rows / labelled)
        chosen = labels >= 0 if share == 1 else stratified(ids, labels, share, seed=seed)
        self.labels, self.ids = labels[chosen], list(itertools.compress(ids, chosen))
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        rows = [np.flatnonzero(chosen[start:end]) for start, end in itertools.pairwise(starts)]
        self._rows = {group: mine for group, mine in enumerate(rows) if len(mine)}  # of each row group, those that are in
        size = sum(int(file["bytes"]) for file in self.shards.manifest.files)
        self._keeps = again and size * len(self) <= KEPT_BYTES * len(labels)
        self._kept: dict[int, list[Row]] = {}
        self.bad: set[str] = set()  # ids of pictures that could not be read

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return max(len(self.shards.manifest.classes), int(self.labels.max()) + 1)

    def _read(self, group: int) -> list[Row]:
        """The rows of a row group that are in."""
        if group in self._kept:
            return self._kept[group]
        table = self.shards.read_group(group, Row._fields).take(pa.array(self._rows[group]))
        rows = [Row(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True)]
        if self._keeps:
            self._kept[group] = rows
        return rows

    def steps(self, epoch: int, batch_size: int) -> Iterator[list[Row]]:
        """The epoch's rows in an order of (seed, epoch), each once, in equal steps of at most ``batch_size``."""
        groups = list(self._rows)
        window = len(groups) if self._keeps else max(1, WINDOW_ROWS * len(groups) // len(self))
        sizes = [len(rows) for rows in self._rows.values()]
        plan = Plan(sizes, seed=self.seed, window_groups=window, block_rows=1)
        steps, step, waiting = Steps(len(self), batch_size, 1), 0, list[Row]()
        for shuffled in plan.windows(epoch):
            tables = {member: self._read(groups[member]) for member in np.unique(shuffled.pairs[:, 0]).tolist()}
            waiting += [tables[member][row] for member, row in shuffled.pairs.tolist()]
            while step < steps.per_epoch and len(waiting) >= (size := steps.start(step + 1) - steps.start(step)):
                yield waiting[:size]
                step, waiting = step + 1, waiting[size:]

    def train_batches(self, config: Config, epoch: int, batch_size: int) -> Iterator[Labelled]:
        """Each step's rows, cropped as ``config`` says by draws keyed (seed, epoch, id); unreadable ones are left out."""

        def crop(rows: list[Row]) -> tuple[NDArray[np.uint8], set[str]]:
            done = make_crops(config, epoch, [row.id for row in rows], [row.jpeg for row in rows])
            return done.crops[0][0], {identifier for identifier, _ in done.bad}

        yield from self._batches(self.steps(epoch, batch_size), crop)

    def test_batches(self, resize: int, size: int, batch_size: int = 256) -> Iterator[Labelled]:
        """All rows in the order of the shards, in the evaluation view; unreadable ones are left out."""

        def crop(rows: list[Row]) -> tuple[NDArray[np.uint8], set[str]]:
            views = np.zeros((len(rows), size, size, 3), dtype=np.uint8)
            bad = set()
            for view, row in zip(views, rows, strict=True):
                try:
                    view[:] = centre_crop(decode(row.jpeg), resize, size)
                except BadImageError:
                    bad.add(row.id)
            return views, bad

        rows = (row for group in self._rows for row in self._read(group))
        yield from self._batches(chunks(rows, batch_size), crop)

    def _batches(
        self, batches: Iterator[list[Row]], crop: Callable[[list[Row]], tuple[NDArray[np.uint8], set[str]]]
    ) -> Iterator[Labelled]:
        """Each batch as pictures, made by as many threads as there are cores and in the order of the batches."""

        def tasks() -> Iterator[tuple[int, list[Row]]]:
            for step, batch in enumerate(batches):
                for rows in chunks(batch, TASK_ROWS):
                    yield step, rows

        def work(task: tuple[int, list[Row]]) -> tuple[int, Labelled, set[str]]:
            step, rows = task
            images, bad = crop(rows)
            good = np.array([row.id not in bad for row in rows])
            return step, Labelled(images[good], np.array([row.label for row in rows])[good]), bad

        done = in_threads(work, tasks(), threads=os.cpu_count() or 1)
        for _, group in itertools.groupby(done, key=lambda part: part[0]):
            parts = [(made, bad) for _, made, bad in group]
            self.bad.update(*(bad for _, bad in parts))
            if len(self.bad) > MOST_BAD * len(self):
                raise UserError(
                    f"{self.uri}: {len(self.bad)} of {len(self):,} images cannot be read, {min(self.bad)} for one; more than "
                    f"{MOST_BAD:.0%} are too many to score with; make the shards again"
                )
            labels = np.concatenate([made.labels for made, _ in parts])
            if len(labels):
                yield Labelled(np.concatenate([made.images for made, _ in parts]), labels)


def check_classes(train: Shards, test: Shards) -> None:
    """Refuse two data sets in which one number means two classes. One may lack the other's last classes.

    Raises:
        UserError: which number, and how to mend it.
    """
    pairs = zip(train.manifest.classes, test.manifest.classes, strict=False)
    for number, (learnt, scored) in enumerate(pairs):
        if learnt != scored:
            raise UserError(
                f"{test.folder.uri}: not the classes of {train.folder.uri} (number {number} is {scored!r}, there {learnt!r}); "
                "make both with the same --classes FILE"
            )


def check_pair(train: LabelledRows, test: LabelledRows) -> None:
    """Refuse rows that no classifier could be learnt from, or be scored by.

    Raises:
        UserError: see :func:`check_classes`; or the training rows are of one class.
    """
    check_classes(train.shards, test.shards)
    if len(set(train.labels.tolist())) < 2:
        raise UserError(f"{train.uri}: a classifier needs images of at least two classes")
