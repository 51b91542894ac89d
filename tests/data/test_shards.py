"""Shards: what is in the files, what the manifest says, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from swav_ray.data.chunks import Listed, Source
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import MANIFEST, SCHEMA, Manifest, Shards, read_manifest, verify
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture
from tests.data.small import ROWS, Counting, small_sources, write_small_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder)
    return folder


def test_rows_come_back_in_order_with_everything(folder: Path) -> None:
    shards = Shards(str(folder))
    rows = [row for table in shards.iter_groups(SCHEMA.names) for row in table.to_pylist()]
    sources = small_sources()
    assert shards.num_rows == len(rows) == ROWS
    assert [(row["id"], row["label"], row["jpeg"]) for row in rows] == [(s.id, s.label, s.read.content) for s in sources]
    assert [(row["width"], row["height"]) for row in rows] == [(10 + row % 7, 9 + row % 5) for row in range(ROWS)]


def test_files_are_as_the_design_says(folder: Path) -> None:
    files = sorted(folder.glob("*.parquet"))
    assert len(files) == 4
    for file in files:
        metadata = pq.ParquetFile(file).metadata
        assert pq.ParquetFile(file).schema_arrow.names == ["id", "label", "width", "height", "jpeg"]
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        assert [group.num_rows for group in groups[:-1]] == [64] * (len(groups) - 1)
        assert {group.column(index).compression for group in groups for index in range(5)} == {"UNCOMPRESSED"}
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, *(file.name for file in files)]


def test_the_manifest_counts_and_signs(folder: Path) -> None:
    manifest = read_manifest(Storage(str(folder)))
    assert (manifest.num_rows, manifest.classes, manifest.transcoded, manifest.skipped) == (ROWS, ["a", "b", "c"], 0, [])
    assert sum(file["num_rows"] for file in manifest.files) == ROWS
    assert [file["bytes"] for file in manifest.files] == [(folder / file["name"]).stat().st_size for file in manifest.files]
    assert list(verify(Storage(str(folder)))) == []


def test_the_same_source_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_small_shards(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_rows_per_group_is_what_the_files_hold(folder: Path) -> None:
    held = []
    for file in sorted(folder.glob("*.parquet")):
        metadata = pq.ParquetFile(file).metadata
        held += [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert Shards(str(folder)).rows_per_group.tolist() == held
    assert min(held) < 64  # a file's last group, also in the middle of the data set


def test_files_of_whole_groups_have_no_empty_one(tmp_path: Path) -> None:
    write_shards([Listed(small_sources(128))], ["a", "b", "c"], Storage(str(tmp_path)))
    assert Shards(str(tmp_path)).rows_per_group.tolist() == [64, 64]


def test_windows_come_in_the_order_asked_for(folder: Path) -> None:
    shards = Shards(str(folder))
    starts = np.concatenate([[0], np.cumsum(shards.rows_per_group)])
    pairs = np.array([(group, row) for group, rows in enumerate(shards.rows_per_group) for row in range(rows)])
    chosen = np.random.RandomState(3).permutation(ROWS)[:200]
    chosen[10] = chosen[20]  # a row may be asked for twice
    windows = [pairs[chosen[:90]], pairs[chosen[90:]]]
    ids = [{"id": [f"image-{starts[g] + r:04d}" for g, r in window]} for window in windows]
    assert list(shards.read_windows(windows, ["id"])) == ids


def test_a_window_reads_each_group_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(str(folder))
    read, real = [], shards.read_group
    monkeypatch.setattr(shards, "read_group", lambda group, columns: (read.append(group), real(group, columns))[1])
    list(shards.read_windows([np.array([(3, 1), (0, 5), (3, 0), (0, 4), (1, 0)])], ["id"]))
    assert sorted(read) == [0, 1, 3]


def test_parts_of_iter_groups_share_the_groups_out(folder: Path) -> None:
    shards = Shards(str(folder))
    whole = [table.column("id").to_pylist() for table in shards.iter_groups(["id"])]
    parts = [[table.column("id").to_pylist() for table in shards.iter_groups(["id"], part, 3)] for part in range(3)]
    assert [parts[group % 3][group // 3] for group in range(len(whole))] == whole


def test_unreadable_images_are_counted_with_their_reason(tmp_path: Path) -> None:
    def denied() -> bytes:
        raise PermissionError(13, "Permission denied", "x.jpg")

    sources = small_sources(70)
    sources[3] = Source("empty", 0, Counting(b""))
    sources[40] = Source("cut", 0, Counting(encode(picture(64, 48))[:900]))
    sources[69] = Source("denied", 0, denied)
    sources[5] = Source("png", 2, Counting(encode(picture(12, 10), "PNG")))
    manifest = write_shards([Listed(sources)], ["a", "b", "c"], Storage(str(tmp_path)))
    assert [entry["id"] for entry in manifest.skipped] == ["empty", "cut", "denied"]
    assert manifest.skipped[0]["reason"] == "not an image"
    assert "truncated" in manifest.skipped[1]["reason"]
    assert "Permission denied" in manifest.skipped[2]["reason"]
    assert (manifest.num_rows, manifest.transcoded) == (67, 1)
    assert read_manifest(Storage(str(tmp_path))) == manifest
    ids = [i for table in Shards(str(tmp_path)).iter_groups(["id"]) for i in table.column("id").to_pylist()]
    assert ids == [source.id for source in sources if source.id not in ("empty", "cut", "denied")]


def test_verify_names_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    flipped = bytearray((tmp_path / "part-00000_001.parquet").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "part-00000_001.parquet").write_bytes(flipped)
    (tmp_path / "part-00000_003.parquet").unlink()
    assert list(verify(Storage(str(tmp_path)))) == [
        f"{tmp_path}/part-00000_001.parquet: checksum differs from the manifest",
        f"{tmp_path}/part-00000_003.parquet: missing",
    ]
    with pytest.raises(UserError, match=r"part-00000_003\.parquet: is in the manifest but not there"):
        list(Shards(str(tmp_path)).iter_groups(["id"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json there, so no finished shards; make them with `swav-ray shard SRC"),
        (b"{", "not valid JSON"),
        (b"[1]", "not of format 1"),
        (json.dumps({**Manifest().__dict__, "format": 2}).encode(), "not of format 1"),
    ],
    ids=["missing", "cut off", "a list", "another format"],
)
def test_a_folder_that_holds_no_shards_of_ours_is_one_clear_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Shards(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
