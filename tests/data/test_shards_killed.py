"""SIGKILL amid the making of shards, in this process's way and on Ray; what comes out does not depend on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from swav_ray.data import sharding
from swav_ray.data.chunk_task import READERS, Part, Task, Tell
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.ingest import Change
from swav_ray.data.sharding import here, on_ray, pays_on_ray, write_shards
from swav_ray.data.shards import MANIFEST, Shards, read_manifest, verify
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.data.pictures import encode, picture

ROWS, FILE_BYTES = 60, 6_000
# Says how many images are done after each of them, so that the one who kills knows where it is.
MAKE = """
import sys
from swav_ray.data import sharding
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
sharding.FILE_BYTES = {file_bytes}
done = 0
def tell(count):
    global done
    done += count
    print(done, flush=True)
    sys.stdin.readline()
sharding.write_shards(*find_chunks(sys.argv[1]), Storage(sys.argv[2]), tell=tell)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of every kind, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    for row in range(ROWS):
        image = picture(12 + row % 5, 10, row)
        content = encode(image, progressive=True) if row % 10 == 3 else encode(image, "PNG" if row % 10 == 7 else "JPEG")
        path = folder / f"{'ab'[row % 2]}/{row:03d}.img.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"broken" if row == 20 else content)
    with tarfile.open(folder.parent / "all.tar", "w") as tar:
        for path in sorted(folder.rglob("*.jpg")):
            tar.add(path, path.relative_to(folder))
    return folder


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FILE_BYTES", FILE_BYTES)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(source: str, dest: Path | str, **options: object) -> dict[str, bytes]:
    write_shards(*find_chunks(source), Storage(str(dest)), **options)  # type: ignore[arg-type]
    return contents(Path(str(dest)))


def make_and_kill(source: str, dest: Path, after: int) -> None:
    """Run the job in a process that is killed when ``after`` images are done."""
    command = [sys.executable, "-c", MAKE.format(file_bytes=FILE_BYTES), source, str(dest)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as job:
        assert job.stdin is not None and job.stdout is not None
        for line in job.stdout:
            if int(line) >= after:
                break
            job.stdin.write("\n")
            job.stdin.flush()
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait(60) == -signal.SIGKILL
    assert not (dest / MANIFEST).exists()


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_killed_again_and_again_it_goes_on_to_the_same_bytes(
    kind: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(images) if kind == "folder" else str(images.parent / "all.tar")
    expected = make(source, tmp_path / "undisturbed")
    make_and_kill(source, tmp_path / "killed", 25)
    made = set(contents(tmp_path / "killed"))
    finished = {name for name in made if name.endswith(".parquet")}
    assert finished and all(contents(tmp_path / "killed")[name] == expected[name] for name in finished)
    make_and_kill(source, tmp_path / "killed", 45)
    written = []
    monkeypatch.setattr(
        Storage, "write", lambda self, name, content, real=Storage.write: (written.append(name), real(self, name, content))[1]
    )
    assert make(source, tmp_path / "killed") == expected
    assert not finished & set(written)  # what was finished is not made again
    assert list(verify(Storage(str(tmp_path / "killed")))) == []


def test_finished_files_are_not_even_read_again(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_and_kill(str(images), tmp_path, 25)
    read: list[str] = []
    real = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, name: (read.append(name), real(self, name))[1])
    told: list[int] = []
    begun: list[tuple[int, int]] = []

    def watched(tasks: Iterable[Task], tell: Tell) -> Iterator[list[Part]]:
        for task in tasks:
            begun.append((task.index, task.done))
            yield task.run(tell)

    notes = [json.loads(path.read_bytes()) for path in (tmp_path / "parts").iterdir()]
    write_shards(*find_chunks(str(images)), Storage(str(tmp_path)), run=watched, tell=told.append)
    assert not {note["chunk"] for note in notes if note["end"]} & {index for index, _ in begun}
    pictures = [name for name in read if name.endswith(".jpg")]
    assert len(pictures) == ROWS - told[0] and told[0] >= 15
    assert sum(told) == ROWS


def test_other_options_are_another_job(images: Path, tmp_path: Path) -> None:
    make_and_kill(str(images), tmp_path, 25)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds unfinished shards of another source, or made with other options"):
        make(str(images), tmp_path, change=Change(quality=50))
    assert contents(tmp_path) == before
    make(str(images), tmp_path)
    with pytest.raises(UserError, match="already holds shards of another source, or made with other options"):
        make(str(images), tmp_path, change=Change(max_side=8))


def test_changes_are_named_and_kept_by_a_resumed_job(images: Path, tmp_path: Path) -> None:
    change = Change(max_side=12, quality=50)
    make(str(images), tmp_path, change=change)
    manifest = read_manifest(Storage(str(tmp_path)))
    assert manifest.changed == {"max_side": 12, "quality": 50}
    assert manifest.transcoded == manifest.num_rows == ROWS - 1
    assert manifest.transcoded_why == {"PNG": 6, "encoded anew": 11, "progressive": 6, "shrunk": 36}
    assert read_manifest(Storage(str(tmp_path))) == write_shards(
        *find_chunks(str(images)), Storage(str(tmp_path)), change=change
    )


@pytest.mark.parametrize(
    ("chunks", "gib", "cluster", "cores", "pays"),
    [
        (9, 7.9, False, 64, False),
        (9, 8, False, 64, True),
        (9, 8, False, 4, False),
        (9, 1, True, 1, True),
        (9, 0.9, True, 64, False),
        (1, 2, True, 64, False),  # one large tar is one task's work
    ],
)
def test_ray_is_used_where_its_start_is_worth_it(
    chunks: int, gib: float, cluster: bool, cores: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("RAY_ADDRESS", "auto" if cluster else "")
    assert pays_on_ray([Listed([], int(gib * 2**30 / chunks) + 1)] * chunks) == pays


class Meeting:
    """Images that can only be read together: each waits until two more are being read."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(3, timeout=60)

    def __call__(self) -> bytes:
        self.barrier.wait()
        return encode(picture(12, 10))


def test_images_are_read_ahead_at_once_and_stay_in_order(tmp_path: Path) -> None:
    """A store answers late: one image at a time, a task would wait for most of its life."""
    meeting = Meeting()
    chunk = Listed([Source(f"{row:03d}", row, meeting) for row in range(99)])
    write_shards([chunk], [], Storage(str(tmp_path)), run=lambda tasks, tell: (task.run(tell) for task in tasks))
    ids = [row["id"] for table in Shards(str(tmp_path)).iter_groups(["id"]) for row in table.to_pylist()]
    assert ids == [f"{row:03d}" for row in range(99)]


def test_no_more_is_read_ahead_than_a_little(tmp_path: Path) -> None:
    """However many images a chunk has, few of them are held."""
    read: list[int] = []

    def reader(row: int) -> Callable[[], bytes]:
        return lambda: (read.append(row), encode(picture(12, 10)))[1]

    ahead: list[int] = []
    chunk = Listed([Source(str(row), 0, reader(row)) for row in range(300)])
    write_shards([chunk], [], Storage(str(tmp_path)), tell=lambda _: ahead.append(len(read) - len(ahead)))
    assert max(ahead) <= 2 * READERS + 1


def broken_label() -> bytes:
    raise UserError("a.txt: a mistake")


@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_tasks_write_the_same_bytes(self, images: Path, tmp_path: Path) -> None:
        told: list[int] = []
        assert make(str(images), tmp_path / "ray", run=on_ray, tell=told.append) == make(
            str(images), tmp_path / "here", run=here
        )
        assert len(told) > 4 and sum(told) == ROWS

    def test_half_of_it_here_and_the_rest_on_ray_to_s3(self, images: Path, tmp_path: Path, s3: str) -> None:
        dest, done = Storage(s3) / "of-ray", []

        def stop_after_three(tasks: object, tell: object) -> object:
            for parts in here(tasks, tell):  # type: ignore[arg-type]
                yield parts
                done.append(parts)
                if len(done) == 3:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_shards(*find_chunks(str(images)), dest, run=stop_after_three)  # type: ignore[arg-type]
        assert not dest.exists(MANIFEST)
        write_shards(*find_chunks(str(images)), dest, run=on_ray)
        assert {name: dest.read(name) for name in dest.list()} == make(str(images), tmp_path)

    def test_a_mistake_found_in_a_task_stays_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^a\.txt: a mistake$"):
            write_shards([Listed([Source("x", 0, broken_label)])], [], Storage(str(tmp_path)), run=on_ray)
