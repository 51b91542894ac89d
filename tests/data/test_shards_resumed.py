"""Writing shards: killed anywhere, it goes on; there is a data set only when all of it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_ray.data import sharding
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import MANIFEST, Shards, read_manifest
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture
from tests.data.small import Counting, small_sources

CLASSES = ["a", "b", "c"]
ROWS, BAD = 60, 17


class Killed(BaseException):
    """Stands for SIGKILL: nothing in between may handle it."""


class Mortal(Storage):
    """A folder in which the n-th write never happens."""

    def __init__(self, uri: str, dies_at: int) -> None:
        super().__init__(uri)
        self.dies_at, self.written = dies_at, []

    def write(self, name: str, content: bytes) -> None:
        if len(self.written) == self.dies_at:
            raise Killed
        self.written.append(name)
        super().write(name, content)


def sources() -> list[Source]:
    """One of them is broken and one is transcoded, so that both counts must survive."""
    made = small_sources(ROWS)
    made[BAD] = Source(made[BAD].id, 0, Counting(b"broken"))
    made[BAD + 1] = Source(made[BAD + 1].id, 0, Counting(encode(picture(12, 10), "PNG")))
    return made


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FILE_BYTES", 9_000)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "FILE_BYTES", 9_000)
        write_shards([Listed(sources())], CLASSES, Storage(str(folder)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NUM_FILES = 5


def test_the_undisturbed_job_has_some_files(undisturbed: Path) -> None:
    assert len(list(undisturbed.glob("*.parquet"))) == NUM_FILES
    assert not (undisturbed / "parts").exists()


@pytest.mark.parametrize("dies_at", range(2 * NUM_FILES + 1))
def test_killed_before_any_write_it_goes_on_to_the_same_bytes(dies_at: int, undisturbed: Path, tmp_path: Path) -> None:
    mortal = Mortal(str(tmp_path), dies_at)
    with pytest.raises(Killed):
        write_shards([Listed(sources())], CLASSES, mortal)
    with pytest.raises(UserError, match="no finished shards"):
        read_manifest(Storage(str(tmp_path)))

    again, finished = sources(), sum(name.startswith("parts/") for name in mortal.written)
    manifest = write_shards([Listed(again)], CLASSES, Storage(str(tmp_path)))
    assert contents(tmp_path) == contents(undisturbed)
    assert manifest == read_manifest(Storage(str(tmp_path)))
    # Not one image of a finished file is read again, and every other one once.
    done = sum(file["num_rows"] for file in manifest.files[:finished])
    done += done > BAD
    assert [source.read.calls for source in again] == [0] * done + [1] * (ROWS - done)


def test_killed_twice_it_still_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    for dies_at in (3, 2, 0):
        with pytest.raises(Killed):
            write_shards([Listed(sources())], CLASSES, Mortal(str(tmp_path), dies_at))
    write_shards([Listed(sources())], CLASSES, Storage(str(tmp_path)))
    assert contents(tmp_path) == contents(undisturbed)


def test_a_write_killed_halfway_does_not_count(undisturbed: Path, tmp_path: Path) -> None:
    """What SIGKILL leaves in the middle of a local write: the temporary file, cut off or complete."""
    with pytest.raises(Killed):
        write_shards([Listed(sources())], CLASSES, Mortal(str(tmp_path), 4))
    part = tmp_path / "parts/00000-000.json"
    part.with_name(f".{part.name}.0123abcd").write_bytes(part.read_bytes()[:50])
    part.with_name(f".{part.name}.4567abcd").write_bytes(part.read_bytes())
    write_shards([Listed(sources())], CLASSES, Storage(str(tmp_path)))
    assert contents(tmp_path) == contents(undisturbed)


def test_finished_shards_are_not_made_again(undisturbed: Path) -> None:
    before = contents(undisturbed)
    again = sources()
    manifest = write_shards([Listed(again)], CLASSES, Storage(str(undisturbed)))
    assert manifest == read_manifest(Storage(str(undisturbed)))
    assert sum(source.read.calls for source in again) == 0
    assert contents(undisturbed) == before


@pytest.mark.parametrize("change", ["ids", "labels", "classes", "fewer"])
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_another_source_is_refused_and_nothing_touched(state: str, change: str, tmp_path: Path) -> None:
    try:
        write_shards([Listed(sources())], CLASSES, Mortal(str(tmp_path), 4 if state == "unfinished" else 1000))
    except Killed:
        assert state == "unfinished"
    before, other, classes = contents(tmp_path), sources(), CLASSES
    if change == "ids":
        other[0] = Source("another", other[0].label, other[0].read)
    elif change == "labels":
        other[0] = Source(other[0].id, 2, other[0].read)
    elif change == "classes":
        classes = ["a", "b", "d"]
    else:
        other.pop()
    with pytest.raises(UserError, match="another source") as caught:
        write_shards([Listed(other)], classes, Storage(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_only_broken_images_are_one_clear_line(tmp_path: Path) -> None:
    broken = [Source(f"{row}.jpg", 0, Counting(b"broken")) for row in range(5)]
    with pytest.raises(UserError, match=r"^none of 5 images is readable; the first is 0\.jpg: not an image$"):
        write_shards([Listed(broken)], ["a"], Storage(str(tmp_path)))
    assert MANIFEST not in contents(tmp_path)


def test_a_job_of_many_files_keeps_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file an image: more than ten, so that a sorting by name without zeros would mix them up."""
    monkeypatch.setattr(sharding, "FILE_BYTES", 1)
    with pytest.raises(Killed):
        write_shards([Listed(small_sources(14))], CLASSES, Mortal(str(tmp_path), 24))
    manifest = write_shards([Listed(small_sources(14))], CLASSES, Storage(str(tmp_path)))
    names = ["part-00000.parquet", *(f"part-00000_{index:03d}.parquet" for index in range(1, 14))]
    assert [file["name"] for file in manifest.files] == names
    ids = [i for table in Shards(str(tmp_path)).iter_groups(["id"]) for i in table.column("id").to_pylist()]
    assert ids == [source.id for source in small_sources(14)]


def test_progress_counts_the_images_done(tmp_path: Path) -> None:
    seen: list[int] = []
    write_shards([Listed(sources())], CLASSES, Storage(str(tmp_path)), tell=seen.append)
    assert sum(seen) == ROWS


def test_shards_on_s3_are_the_same(s3: str, undisturbed: Path) -> None:
    dest = Storage(s3) / "resumed"
    with pytest.raises(Killed):
        write_shards([Listed(sources())], CLASSES, Mortal(dest.uri, 3))
    assert dest.list() == ["part-00000.parquet", "part-00000_001.parquet", "parts"]
    write_shards([Listed(sources())], CLASSES, dest)
    assert {name: dest.read(name) for name in dest.list()} == contents(undisturbed)
    assert MANIFEST in dest.list()
