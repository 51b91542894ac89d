"""Parquet files with images in a column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.data import sharding
from swav_ray.data.labels import Labels
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.data.tables import table_chunks
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture

JPEG = encode(picture(12, 10))


def parquet(path: Path, rows: list[dict[str, Any]], *, group: int = 4, names: list[str] | None = None) -> None:
    table = pa.Table.from_pylist(rows)
    if names is not None:  # as the datasets library writes them
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=group)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """As the Hugging Face hub has them."""
    return [
        {"image": {"bytes": encode(picture(12, 10, seed + row)), "path": f"{row}.jpg"}, "label": row % 3}
        for row in range(count)
    ]


def told(uri: str, **options: str) -> list[tuple[str, int]]:
    return [(source.id, source.label) for chunk in find_chunks(uri, **options)[0] for source in chunk]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_parquet_files_become_shards(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    parquet(tmp_path / "in/a.parquet", rows(10), names=["cat", "dog", "eel"])
    parquet(tmp_path / "in/b.parquet", rows(3, seed=50), names=["cat", "dog", "eel"])
    source, dest = Storage(str(tmp_path / "in")), str(tmp_path / "out")
    if where == "s3":
        remote = Storage(f"{request.getfixturevalue('s3')}/tables")
        for name in source.list():
            remote.write(name, source.read(name))
        source, dest = remote, f"{request.getfixturevalue('s3')}/of-tables"
    chunks, classes = find_chunks(source.uri)
    assert sum(chunk.count for chunk in chunks) == 13
    manifest = write_shards(chunks, classes, Storage(dest))
    assert manifest.classes == classes == ["cat", "dog", "eel"]
    read = [row for table in Shards(dest).iter_groups(["id", "label", "jpeg"]) for row in table.to_pylist()]
    assert [row["id"] for row in read] == [f"a.parquet/{row}" for row in range(10)] + [f"b.parquet/{row}" for row in range(3)]
    assert [row["label"] for row in read] == [row["label"] for row in rows(10) + rows(3)]
    assert [row["jpeg"] for row in read] == [row["image"]["bytes"] for row in rows(10) + rows(3, seed=50)]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"jpg": JPEG, "thumb": b"other", "cls": 1, "breed": 5}])
    (source,) = find_chunks(f"{tmp_path}/a.parquet", image="jpg")[0][0]
    assert (source.label, source.read()) == (1, JPEG)
    (source,) = find_chunks(f"{tmp_path}/a.parquet", image="thumb", label="breed")[0][0]
    assert (source.label, source.read()) == (5, b"other")


def test_without_a_label_column_there_are_no_labels(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"image": JPEG}] * 3)
    manifest = write_shards(*find_chunks(f"{tmp_path}/a.parquet"), Storage(str(tmp_path / "out")))
    assert (manifest.num_rows, manifest.classes) == (3, [])


def test_words_are_named_in_sorted_order_over_all_files(tmp_path: Path) -> None:
    parquet(tmp_path / "in/a.parquet", [{"image": JPEG, "label": word} for word in ("eel", "cat", None)])
    parquet(tmp_path / "in/b.parquet", [{"image": JPEG, "label": "dog"}])
    assert [label for _, label in told(str(tmp_path / "in"))] == [2, 0, -1, 1]
    assert find_chunks(str(tmp_path / "in"))[1] == ["cat", "dog", "eel"]


def test_rows_without_an_image_are_skipped_and_named(tmp_path: Path) -> None:
    cells = [{"bytes": JPEG, "path": ""}, {"bytes": None, "path": "elsewhere.jpg"}]
    parquet(tmp_path / "a.parquet", [{"image": cell} for cell in cells])
    manifest = write_shards(*find_chunks(f"{tmp_path}/a.parquet"), Storage(str(tmp_path / "out")))
    assert manifest.skipped == [{"id": "a.parquet/1", "reason": "no image in this row"}]


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ([{"a": JPEG, "b": JPEG}], {}, "columns a and b hold bytes; say which with --image COLUMN"),
        ([{"words": "x"}], {}, "no column holds bytes of images; there are words"),
        ([{"image": JPEG}], {"image": "imag"}, "has no 'imag' (did you mean 'image'?); there are image"),
        ([{"image": JPEG, "lable": 1}], {"label": "label"}, "has no 'label' (did you mean 'lable'?); there are image, lable"),
        ([{"image": JPEG, "label": 1.5}], {}, "a.parquet, row 0: label 1.5 is no number"),
        ([{"image": JPEG, "label": -3}], {}, "a.parquet, row 0: label -3 is out of range"),
    ],
    ids=["two of bytes", "none", "no image column", "no label column", "a fraction", "negative"],
)
def test_a_mistake_is_one_clear_line(table: list[dict[str, Any]], options: dict[str, Any], said: str, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", table)
    with pytest.raises(UserError) as caught:
        told(f"{tmp_path}/a.parquet", **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "in/a.parquet", [{"image": JPEG, "label": 1}])
    parquet(tmp_path / "in/b.parquet", [{"image": JPEG}])
    with pytest.raises(UserError, match=r"/b\.parquet: has no 'label'"):
        find_chunks(str(tmp_path / "in"))


@pytest.mark.parametrize("damage", ["no Parquet", "cut off", "a page damaged"])
def test_a_broken_file_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, rows(40))
    content = bytearray(path.read_bytes())
    if damage == "a page damaged":
        content[4:40] = b"\xff" * 36
    path.write_bytes({"no Parquet": b"words" * 50, "cut off": content[:-50]}.get(damage, content))
    with pytest.raises(UserError, match=r"^.*/a\.parquet: no readable Parquet file \(.+\); fetch it again or leave it out$"):
        [source.read() for chunk in find_chunks(str(path))[0] for source in chunk]


@settings(deadline=None, max_examples=30)
@given(
    files=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    group=st.integers(1, 12),
    most=st.integers(1, 20_000),
)
def test_chunks_hold_every_row_once_in_order(
    files: list[int], group: int, most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    for number, count in enumerate(files):
        parquet(folder / f"{number}.parquet", [{"image": JPEG}] * count, group=group)
    chunks, _ = table_chunks(Storage(str(folder)), {f"{n}.parquet": 1 for n in range(len(files))}, most, Labels())
    ids = [source.id for chunk in chunks for source in chunk]
    assert ids == [f"{number}.parquet/{row}" for number, count in enumerate(files) for row in range(count)]
    assert [chunk.count for chunk in chunks] == [len(list(chunk)) for chunk in chunks]
    assert all(chunk.size >= most for chunk in chunks[:-1])
    assert len({chunk.signature() for chunk in chunks}) == len(chunks)


def test_several_chunks_give_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FILE_BYTES", 6_000)
    parquet(tmp_path / "a.parquet", rows(40))
    chunks, classes = find_chunks(f"{tmp_path}/a.parquet")
    manifest = write_shards(chunks, classes, Storage(str(tmp_path / "out")))
    assert len(manifest.files) >= len(chunks) > 2
    assert manifest.num_rows == 40 and manifest.classes == ["0", "1", "2"]
