"""Tar files in WebDataset form, and the patterns that name them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from swav_ray.data import sharding
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, errors="surrogateescape") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def shard(number: int, rows: int = 3) -> dict[str, bytes]:
    """Members of one tar: pictures, their labels, and words that nobody asked for."""
    members = {}
    for row in range(rows):
        members[f"{number}{row:03d}.jpg"] = encode(picture(12, 10, 100 * number + row))
        members[f"{number}{row:03d}.cls"] = f"{row}\n".encode()
        members[f"{number}{row:03d}.txt"] = b"a caption"
    return members


def told(uri: str, **options: str) -> list[tuple[str, int]]:
    return [(source.id, source.label) for chunk in find_chunks(uri, **options)[0] for source in chunk]


IDS = [f"t-{number:03d}.tar/{number}{row:03d}" for number in range(3) for row in range(3)]


@pytest.fixture
def tars(tmp_path: Path) -> Storage:
    folder = Storage(str(tmp_path / "tars"))
    for number in range(3):
        folder.write(f"t-{number:03d}.tar", tar(shard(number)))
    return folder


@pytest.mark.parametrize("where", ["local", "s3"])
def test_tars_become_shards(where: str, tars: Storage, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if where == "s3":
        source, local = Storage(f"{request.getfixturevalue('s3')}/tars"), tars
        for name in local.list():
            source.write(name, local.read(name))
        dest = f"{request.getfixturevalue('s3')}/of-tars"
    else:
        source, dest = tars, str(tmp_path / "shards")
    chunks, classes = find_chunks(source.uri)
    manifest = write_shards(chunks, classes, Storage(dest))
    rows = [row for table in Shards(dest).iter_groups(["id", "label", "jpeg"]) for row in table.to_pylist()]
    assert [row["id"] for row in rows] == IDS
    assert [row["label"] for row in rows] == [0, 1, 2] * 3
    assert rows[4]["jpeg"] == shard(1)["1001.jpg"]
    assert manifest.classes == ["0", "1", "2"]  # nobody named them
    for pattern in ("t-{000..002}.tar", "*.tar", "t-00?.tar", "t-{000,00[12]}.tar"):
        assert told(f"{source.uri}/{pattern}") == [(id, row % 3) for row, id in enumerate(IDS)]
    assert told(f"{source.uri}/t-001.tar") == [(id, row) for row, id in enumerate(IDS[3:6])]


def test_patterns_reach_into_folders(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    for name in ("train/a.tar", "train/deep/b.tar", "test/c.tar"):
        folder.write(name, tar(shard(0, 1)))
    assert told(f"{tmp_path}/train/*.tar") == [("a.tar/0000", 0)]
    assert told(f"{tmp_path}/train/**/*.tar") == [("a.tar/0000", 0), ("deep/b.tar/0000", 0)]
    assert told(f"{tmp_path}/{{train,test}}/*.tar") == [("test/c.tar/0000", 0), ("train/a.tar/0000", 0)]


def test_a_name_with_brackets_is_itself(tmp_path: Path) -> None:
    Storage(str(tmp_path)).write("a[1].tar", tar(shard(0, 1)))
    assert told(f"{tmp_path}/a[1].tar") == [("a[1].tar/0000", 0)]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_read(mode: str, tmp_path: Path) -> None:
    Storage(str(tmp_path)).write("a.tar.gz", tar(shard(0), mode))
    assert [label for _, label in told(str(tmp_path))] == [0, 1, 2]


def test_small_tars_share_a_chunk_and_large_ones_do_not(tars: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    size = tars.size("t-000.tar")
    monkeypatch.setattr(sharding, "FILE_BYTES", 2 * size)
    assert [chunk.names for chunk in find_chunks(tars.uri)[0]] == [("t-000.tar", "t-001.tar"), ("t-002.tar",)]
    monkeypatch.setattr(sharding, "FILE_BYTES", size)
    assert len(find_chunks(tars.uri)[0]) == 3


def one(tmp_path: Path, members: dict[str, bytes], **options: str) -> list[tuple[str, int]]:
    Storage(str(tmp_path)).write("a.tar", tar(members))
    return told(f"{tmp_path}/a.tar", **options)


JPEG = encode(picture(12, 10))


def test_what_webdataset_allows_in_a_tar(tmp_path: Path) -> None:
    members = {
        "./n01/x.JPEG": JPEG,
        "./n01/x.cls": b"4",
        "__info.json": b"not a sample",
        ".hidden.jpg": JPEG,
        "n02/x.seg.png": JPEG,
        "n02/x.json": json.dumps({"label": 2, "text": "words"}).encode(),
        "y.jpg": JPEG,
        "z.jpg": JPEG,
        "z.json": b'{"cls": "3"}',
    }
    assert one(tmp_path, members) == [("a.tar/n01/x", 4), ("a.tar/n02/x", 2), ("a.tar/y", -1), ("a.tar/z", 3)]


def test_a_name_in_no_known_letters_is_an_id_nevertheless(tmp_path: Path) -> None:
    assert one(tmp_path, {"a\udcff.jpg": JPEG}) == [("a.tar/a\\xff", -1)]


def test_options_say_which_image_and_which_label(tmp_path: Path) -> None:
    members = {"x.left.jpg": JPEG, "x.right.jpg": b"other", "x.cls": b"1", "x.json": b'{"breed": 7}'}
    Storage(str(tmp_path)).write("a.tar", tar(members))
    (source,) = find_chunks(f"{tmp_path}/a.tar", image="left.jpg", label="breed")[0][0]
    assert (source.label, source.read()) == (7, JPEG)


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    members = {"x.jpg": JPEG, "x.cls": b"1", "y.jpg": JPEG, "y.json": b'{"label": "cat"}'}
    assert one(tmp_path, members, classes=str(tmp_path / "names.txt")) == [("a.tar/x", 1), ("a.tar/y", 0)]
    assert find_chunks(f"{tmp_path}/a.tar", classes=str(tmp_path / "names.txt"))[1] == ["cat", "dog"]


def test_samples_without_an_image_are_skipped_and_named(tmp_path: Path) -> None:
    Storage(str(tmp_path)).write("a.tar", tar({"x.jpg": JPEG, "y.txt": b"words", "y.cls": b"1", "z.jpg": b"broken"}))
    manifest = write_shards(*find_chunks(f"{tmp_path}/a.tar"), Storage(str(tmp_path / "shards")))
    assert manifest.num_rows == 1
    assert manifest.skipped == [
        {"id": "a.tar/y", "reason": "no image among cls, txt"},
        {"id": "a.tar/z", "reason": "not an image"},
    ]


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        (
            {"x.jpg": JPEG, "x.cls": b"cat"},
            {},
            "x: label 'cat' is no number; give the names in order with --classes FILE",
        ),
        ({"x.jpg": JPEG, "x.cls": b"-2"}, {}, "a.tar/x: label -2 is out of range; labels go from 0 up, and -1 is none"),
        ({"x.jpg": JPEG, "x.json": b"{"}, {}, "a.tar/x.json: not valid JSON"),
        (
            {"x.jpg": JPEG, "x.json": b'{"clas": 1}'},
            {"label": "class"},
            "has no 'class' (did you mean 'clas'?); there are clas",
        ),
        ({"x.jpg": JPEG, "x.png": JPEG}, {}, "a.tar/x: holds jpg and png; say which is the image, as in --image jpg"),
        ({"x.jpg": JPEG, "x.cls": b"2"}, {"classes": "names.txt"}, "a.tar/x: label 2 is out of range; labels go from 0 to 1"),
        ({"x.jpg": JPEG, "x.cls": b"cot"}, {"classes": "names.txt"}, "a.tar/x: no class 'cot' (did you mean 'cat'?)"),
    ],
    ids=["a word", "negative", "no JSON", "no such key", "two images", "beyond the names", "unknown name"],
)
def test_a_mistake_is_one_clear_line(
    members: dict[str, bytes], options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError) as caught:
        one(tmp_path, members, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(kind: str) -> bytes:
    content = tar(shard(0))
    second = 512 + -(-len(shard(0)["0000.jpg"]) // 512) * 512  # where its header begins
    if kind == "cut in a picture":
        return content[:700]
    if kind == "cut in a header":
        return content[: second + 100]
    if kind == "cut between members":
        return content[:second]
    if kind == "a header damaged":
        return content[:second] + b"garbage" + content[second + 7 :]
    if kind == "no tar":
        return b"words" * 500
    if kind == "compressed and cut":
        return gzip.compress(content)[:-100]
    return b""


@pytest.mark.parametrize(
    "kind",
    ["cut in a picture", "cut in a header", "cut between members", "a header damaged", "no tar", "compressed and cut", "empty"],
)
def test_a_broken_tar_is_one_clear_line_and_never_the_end_of_the_data(kind: str, tmp_path: Path) -> None:
    Storage(str(tmp_path)).write("a.tar", damaged(kind))
    with pytest.raises(UserError, match=r"^.*/a\.tar: broken after \d+ members \(.+\); fetch it again or leave it out$"):
        told(f"{tmp_path}/a.tar")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("t-{000..003}.tar", "t-003.tar: no such file"),
        ("u-*.tar", "u-*.tar: no such file"),
        ("t-{000.tar", "a brace is not closed"),
        ("none/*.tar", "none: no such folder"),
        ("none.tar", "none.tar: no such file or folder"),
    ],
)
def test_patterns_that_match_nothing_are_one_clear_line(pattern: str, said: str, tars: Storage) -> None:
    with pytest.raises(UserError) as caught:
        find_chunks(f"{tars.uri}/{pattern}")
    assert said in str(caught.value)


def test_files_of_several_kinds_are_one_clear_line(tars: Storage) -> None:
    tars.write("a.jpg", JPEG)
    with pytest.raises(UserError, match=r"holds 1 images and 3 tar files; say which with a pattern, as in '.*/\*\*/\*\.tar'$"):
        find_chunks(tars.uri)
    assert len(told(f"{tars.uri}/**/*.tar")) == 9
    assert told(f"{tars.uri}/*.jpg") == [("a.jpg", -1)]
