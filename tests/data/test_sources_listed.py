"""Text files that name images, and what the order of a listing may not change."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav_ray.data import sharding
from swav_ray.data.chunks import cut
from swav_ray.data.ingest import Change
from swav_ray.data.sharding import source_digest, write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture


def told(uri: str, **options: str) -> list[tuple[str, int]]:
    return sorted((source.id, source.label) for chunk in find_chunks(uri, **options)[0] for source in chunk)


@pytest.fixture
def images(tmp_path: Path) -> Storage:
    folder = Storage(str(tmp_path / "images"))
    for row in range(6):
        folder.write(f"{row}.jpg", encode(picture(12, 10, row)))
    return folder


def test_addresses_of_all_kinds_become_rows(images: Storage, s3: str, tmp_path: Path) -> None:
    Storage(s3).write("listed/9.jpg", encode(picture(12, 10, 9)))
    lines = ["images/1.jpg\tdog", f"{images.uri}/2.jpg\tcat", f"file://{images.uri}/3.jpg", "", f"{s3}/listed/9.jpg\tdog\r"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    manifest = write_shards(*find_chunks(str(tmp_path / "list.txt")), Storage(f"{s3}/of-list"))
    rows = [row for table in Shards(f"{s3}/of-list").iter_groups(["id", "label", "jpeg"]) for row in table.to_pylist()]
    assert manifest.classes == ["cat", "dog"]
    assert {row["id"]: row["label"] for row in rows} == {
        "images/1.jpg": 1, f"{images.uri}/2.jpg": 0, f"file://{images.uri}/3.jpg": -1, f"{s3}/listed/9.jpg": 1
    }  # fmt: skip
    assert {row["id"]: row["jpeg"] for row in rows}[f"{s3}/listed/9.jpg"] == encode(picture(12, 10, 9))


def test_a_list_on_s3_names_what_is_beside_it(s3: str) -> None:
    folder = Storage(s3) / "beside"
    folder.write("a/1.jpg", encode(picture(12, 10)))
    folder.write("list.tsv", b"a/1.jpg\t3\n")
    (source,) = find_chunks(f"{folder.uri}/list.tsv")[0][0]
    assert (source.id, source.label, source.read()) == ("a/1.jpg", 3, folder.read("a/1.jpg"))


def test_numbers_stay_numbers_unless_they_are_named(images: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/1.jpg\t4\nimages/2.jpg\t0\n")
    assert told(str(tmp_path / "list.txt")) == [("images/1.jpg", 4), ("images/2.jpg", 0)]
    assert write_shards(*find_chunks(f"{tmp_path}/list.txt"), Storage(f"{tmp_path}/out")).classes == list("01234")
    (tmp_path / "names.txt").write_text("\n".join("abcde") + "\n")
    assert find_chunks(str(tmp_path / "list.txt"), classes=str(tmp_path / "names.txt"))[1] == list("abcde")


def test_what_a_list_names_in_vain_is_skipped_with_its_reason(images: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/1.jpg\nimages/none.jpg\nlist.txt\n")
    manifest = write_shards(*find_chunks(str(tmp_path / "list.txt")), Storage(str(tmp_path / "out")))
    assert manifest.num_rows == 1
    reasons = {entry["id"]: entry["reason"] for entry in manifest.skipped}
    assert reasons.keys() == {"images/none.jpg", "list.txt"}
    assert "No such file" in reasons["images/none.jpg"] and reasons["list.txt"] == "not an image"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "list.txt: names no image"),
        ("\n \n", "list.txt: names no image"),
        ("a.jpg\nb.jpg\na.jpg\n", "list.txt, line 3: a.jpg is there already, in line 1"),
        ("a.jpg\nx-000.tar\n", "list.txt, line 2: x-000.tar is no image; give tar and Parquet files as a folder or a pattern"),
        ("gs://bucket/a.jpg\n", "list.txt, line 1: gs://bucket/: only local folders and s3:// are supported, not gs://"),
        ("s3://a.jpg\n", "list.txt, line 1: s3://a.jpg: names no file"),
        ("a.jpg\t-7\n", "list.txt, line 1: label -7 is out of range"),
    ],
    ids=["empty", "blank", "twice", "a tar", "another store", "a bucket", "negative"],
)
def test_a_mistake_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        find_chunks(str(tmp_path / "list.txt"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt: no such file$"):
        find_chunks(str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_bytes(encode(picture(12, 10)))
    with pytest.raises(UserError, match=r"list\.txt: no text file; a list has an address a line$"):
        find_chunks(str(tmp_path / "list.txt"))


@pytest.mark.parametrize(("text", "said"), [("a\n\nb\n", "line 2: no name"), ("a\nb\na\n", "line 3: 'a' is there twice")])
def test_a_mistake_in_class_names_is_one_clear_line(text: str, said: str, images: Storage, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=f"^--classes .*names.txt, {said}$"):
        find_chunks(images.uri, classes=str(tmp_path / "names.txt"))
    with pytest.raises(UserError, match=r"^--classes none\.txt: no such text file$"):
        find_chunks(images.uri, classes="none.txt")


def test_columns_are_for_files_that_have_some(images: Storage) -> None:
    with pytest.raises(UserError, match=r"^--label: is for tar and Parquet files, and .* holds images$"):
        find_chunks(images.uri, label="breed")


# --- the same input gives the same ids


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_the_order_of_a_listing_changes_nothing(
    kind: str, images: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "FILE_BYTES", 1500)
    seen = set()
    real = Storage.find
    for seed in range(5):
        shuffled = random.Random(seed)

        def find(self: Storage, shuffled: random.Random = shuffled) -> dict[str, int]:
            found = list(real(self).items())
            shuffled.shuffle(found)
            return dict(found)

        monkeypatch.setattr(Storage, "find", find)
        lines = [f"images/{name}\n" for name in find(images)]
        (tmp_path / "list.txt").write_text("".join(lines))
        chunks, classes = find_chunks(images.uri if kind == "folder" else str(tmp_path / "list.txt"))
        assert len(chunks) > 1
        seen.add((source_digest(chunks, classes, Change()), *(source.id for chunk in chunks for source in chunk)))
    assert len(seen) == 1


def test_shards_made_inside_the_source_are_no_part_of_it(images: Storage) -> None:
    dest = images / "shards"
    first = write_shards(*find_chunks(images.uri, without=dest.uri), dest)
    assert write_shards(*find_chunks(images.uri, without=dest.uri), dest) == first
    with pytest.raises(UserError, match="6 images and 1 Parquet files"):
        find_chunks(images.uri)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=60), most=st.integers(1, 100))
def test_runs_hold_everything_once_in_order_and_are_as_large_as_asked(sizes: list[int], most: int) -> None:
    names = {f"{place:02d}": size for place, size in enumerate(sizes)}
    runs = cut(sorted(names), names, most)
    assert [name for run in runs for name in run] == sorted(names)
    for run in runs:
        assert run
        assert sum(names[name] for name in run[:-1]) < most
    assert all(sum(names[name] for name in run) >= most for run in runs[:-1])
