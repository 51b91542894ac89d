"""Labelled rows as batches: each chosen row once an epoch, and every picture with its own label."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from swav_ray.data.chunks import Listed, Source
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import GROUP_ROWS, SCHEMA, Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.evaluate.protocol import Protocol
from swav_ray.train import labelled
from swav_ray.train.backbones import View
from swav_ray.train.classify import crop_config
from swav_ray.train.labelled import Labelled, LabelledRows
from tests.data.pictures import encode, picture

ROWS, CLASSES = 331, 5
VIEW = View(size=8, resize=9)


def source(row: int) -> Source:
    """Green and blue of a picture of its own; the red says the label."""
    pixels = np.array(picture(24, 20, row))
    pixels[..., 0] = 20 + 45 * (row % CLASSES)
    content = encode(Image.fromarray(pixels), quality=95, subsampling=0)
    return Source(f"{row:04d}", -1 if row % 10 == 9 else row % CLASSES, lambda: content)


def labels_in(batch: Labelled) -> list[int]:
    """As the pictures say."""
    red = batch.images[..., 0].reshape(len(batch.images), -1).mean(axis=1)
    return np.rint((red - 20) / 45).astype(int).tolist()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures of five classes, every tenth without a label."""
    place = Storage(str(tmp_path_factory.mktemp("shades")))
    write_shards([Listed([source(row) for row in range(ROWS)])], list("abcde"), place)
    return place.uri


LABELLED = {f"{row:04d}" for row in range(ROWS) if row % 10 != 9}


@pytest.mark.parametrize("kept", [labelled.KEPT_BYTES, 0])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_each_row_once_an_epoch_in_equal_steps(shards: str, share: float, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where too much to keep is read anew every epoch, in windows of some row groups."""
    monkeypatch.setattr(labelled, "KEPT_BYTES", kept)
    monkeypatch.setattr(labelled, "WINDOW_ROWS", 100)
    rows = LabelledRows(shards, share=share, seed=3)
    epochs = [[[row.id for row in step] for step in rows.steps(epoch, 64)] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    for epoch in epochs:
        ids = [identifier for step in epoch for identifier in step]
        assert sorted(ids) == sorted(rows.ids) and max(map(len, epoch)) - min(map(len, epoch)) <= 1
    assert set(rows.ids) == LABELLED if share == 1 else set(rows.ids) < LABELLED
    assert len(rows._kept) == (len(rows._rows) if kept else 0)


def test_a_share_is_of_every_class(shards: str) -> None:
    whole, tenth, few = LabelledRows(shards), LabelledRows(shards, share=0.1), LabelledRows(shards, most_rows=50)
    every = np.bincount(whole.labels)
    assert np.bincount(tenth.labels).tolist() == [max(1, int(0.1 * count + 0.5)) for count in every]
    assert abs(len(few) - 50) <= CLASSES and whole.num_classes == CLASSES
    assert set(tenth.ids) < set(few.ids)


def test_every_picture_keeps_its_label(shards: str) -> None:
    rows = LabelledRows(shards)
    config = crop_config(VIEW, Protocol(frozen="all"))
    for batches in (rows.train_batches(config, 0, 50), rows.test_batches(VIEW.resize, VIEW.size, 50)):
        seen = 0
        for batch in batches:
            assert batch.images.shape[1:] == (8, 8, 3) and len(batch.images) == len(batch.labels)
            assert labels_in(batch) == batch.labels.tolist()
            seen += len(batch.labels)
        assert seen == len(LABELLED)


def test_the_crops_of_a_row_do_not_depend_on_its_batch(shards: str) -> None:
    rows, config = LabelledRows(shards), crop_config(VIEW, Protocol(frozen="all"))

    def total(batch_size: int, epoch: int = 0) -> list[int]:
        images = np.concatenate([batch.images for batch in rows.train_batches(config, epoch, batch_size)])
        return images.astype(np.int64).sum(axis=(1, 2, 3)).tolist()

    assert total(40) == total(300) != total(40, epoch=1)


def spoil(shards: str, dest: Path, count: int) -> str:
    """A copy of the shards in which so many labelled pictures are cut short."""
    place = Storage(str(dest))
    for name in Storage(shards).list():
        place.write(name, Storage(shards).read(name))
    (file,) = Shards(shards).manifest.files
    rows = pq.read_table(io.BytesIO(place.read(file["name"]))).to_pylist()
    for row in [row for row in rows if row["label"] >= 0][:count]:
        row["jpeg"] = row["jpeg"][:150]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out, row_group_size=GROUP_ROWS, compression="none")
    place.write(file["name"], out.getvalue())
    return place.uri


def test_unreadable_pictures_are_left_out_and_too_many_are_an_error(shards: str, tmp_path: Path) -> None:
    config = crop_config(VIEW, Protocol(frozen="all"))
    rows = LabelledRows(spoil(shards, tmp_path / "some", 2))
    for batches in (rows.train_batches(config, 0, 50), rows.test_batches(VIEW.resize, VIEW.size)):
        made = list(batches)
        assert sum(len(batch.labels) for batch in made) == len(LABELLED) - 2
        assert all(labels_in(batch) == batch.labels.tolist() for batch in made)
    assert len(rows.bad) == 2
    many = LabelledRows(spoil(shards, tmp_path / "many", 20))
    for batches in (many.train_batches(config, 0, 50), many.test_batches(VIEW.resize, VIEW.size)):
        with pytest.raises(UserError, match=r"images cannot be read, \d+ for one; more than 1% are too many"):
            list(batches)


def test_no_labels_is_a_clear_line(tmp_path: Path) -> None:
    write_shards([Listed([source(9), source(19)])], [], Storage(str(tmp_path)))
    with pytest.raises(UserError, match="holds no labelled images"):
        LabelledRows(str(tmp_path))
