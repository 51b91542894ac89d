"""One way to files: the same behaviour for a local folder and for S3, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.errors import UserError


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder, not yet there; both kinds must behave alike."""
    if request.param == "local":
        return Storage(str(tmp_path / "folder"))
    return Storage(request.getfixturevalue("s3")) / f"storage/{request.node.name}"


def test_what_is_written_is_read(folder: Storage) -> None:
    folder.write("a/b.bin", b"first")
    folder.write("a/b.bin", b"second")
    folder.write("empty", b"")
    assert folder.read("a/b.bin") == b"second"
    assert folder.read("empty") == b""
    assert (folder / "a").read("b.bin") == b"second"


def test_exists_and_list_are_never_stale(folder: Storage) -> None:
    assert not folder.exists()
    assert folder.list() == folder.list("a") == []
    for name in ("b", "a/2", "a/1", "a/deep/3"):
        folder.write(name, b"x")
    assert folder.exists()
    assert folder.exists("a")
    assert folder.exists("a/1")
    assert not folder.exists("a/3")
    assert folder.list() == ["a", "b"]
    assert folder.list("a") == ["1", "2", "deep"]


def test_delete_takes_files_and_folders_and_does_not_mind_their_absence(folder: Storage) -> None:
    for name in ("kept", "a/1", "a/deep/2"):
        folder.write(name, b"x")
    folder.delete("a")
    folder.delete("nothing")
    assert folder.list() == ["kept"]
    folder.delete("kept")
    assert not folder.exists("kept")


def test_names_are_never_patterns(folder: Storage) -> None:
    names = ["run[1]", "run*", "run?", "run1", "runs"]
    for name in names:
        folder.write(f"{name}/file", name.encode())
    assert folder.list() == sorted(names)
    for name in ("run[1]", "run*", "run?"):
        assert folder.read(f"{name}/file") == name.encode()
        assert folder.list(name) == ["file"]
        folder.delete(name)
        assert not folder.exists(name)
    assert folder.list() == ["run1", "runs"]


def test_a_missing_file_is_file_not_found(folder: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read("nothing")


def test_a_local_file_is_put(folder: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"content")
    folder.put(local, "a/b")
    assert folder.read("a/b") == b"content"
    assert local.exists()


def test_a_pickled_storage_works_also_through_arrow(folder: Storage) -> None:
    folder.write("x", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy.uri, copy.read("x")) == (folder.uri, b"1")
    table = pa.table({"column": [1, 2]})
    pq.write_table(table, folder.path("t.parquet"), filesystem=folder.arrow)
    arrow = pickle.loads(pickle.dumps(folder.arrow))
    assert pq.read_table(folder.path("t.parquet"), filesystem=arrow).equals(table)


def test_an_s3_console_s_folder_marker_is_no_entry(s3: str) -> None:
    folder = Storage(s3) / "marked"
    folder.fs.pipe_file(f"{folder.root}/", b"")
    folder.write("a", b"x")
    assert folder.list() == ["a"]


def test_what_another_process_wrote_to_s3_is_seen(s3: str) -> None:
    folder = Storage(s3) / "shared"
    folder.write("a", b"x")
    assert folder.list() == ["a"]
    elsewhere = s3fs.S3FileSystem(skip_instance_cache=True)
    elsewhere.pipe_file(f"{folder.root}/b", b"x")
    elsewhere.rm_file(f"{folder.root}/a")
    assert folder.list() == ["b"]
    assert not folder.exists("a")


def test_s3_leaves_patience_to_us(s3: str) -> None:
    """Tries within tries would multiply: a silent store would take ten minutes to be noticed."""
    pickled = pickle.dumps(Storage(s3).arrow)
    Storage(s3).fs.clear_instance_cache()
    arrow = pickle.loads(pickled)  # as in a process that has made no file system yet
    assert arrow.handler.fs.retries == 1
    assert arrow.handler.fs.retries == Storage(s3).fs.retries == 1
    Storage(s3).exists("x")  # connects
    assert Storage(s3).fs.s3.meta.config.retries == {"total_max_attempts": 3, "mode": "standard"}


def test_a_process_has_one_s3_connection_pool(s3: str) -> None:
    first = Storage(s3)
    first.exists("x")
    assert Storage(s3).fs is first.fs


@contextmanager
def failing(step: str) -> Iterator[None]:
    """A disc on which a write, its fsync or the rename fails."""
    if step == "write":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # bytes; the write itself fails halfway
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync", full), "rename": (Path, "replace", full)}[step])
        yield


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_failed_local_write_leaves_the_old_file_and_nothing_else(step: str, tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    folder.write("file", b"old")
    with pytest.raises(OSError, match=r"No space left|File too large"), failing(step):
        folder.write("file", b"the disc is full before this word")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert folder.read("file") == b"old"


def test_a_local_write_is_on_the_disc_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between rename and write-back would otherwise leave an empty file under the final name."""
    done = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), real_fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append("rename"), real_replace(path, target))[1])
    Storage(str(tmp_path)).write("file", b"x")
    assert done[:2] == ["sync", "rename"]


def test_what_a_killed_write_left_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Storage(str(tmp_path))
    folder.write("file", b"old")
    with monkeypatch.context() as patch:  # killed: neither renamed nor cleaned up
        patch.setattr(Path, "replace", lambda *_: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        folder.write("file", b"new")
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.list() == ["file"]
    assert folder.read("file") == b"old"


def test_local_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Storage("runs/").uri == Storage(f"file://{tmp_path}/runs").uri == str(tmp_path / "runs")
    assert Storage("~/runs").uri == str(tmp_path / "home/runs")
    assert not Storage("runs").is_s3


def test_absolute_uri_changes_local_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("runs") == str(tmp_path / "runs")
    for uri in ("/data", "s3://bucket/runs", "demo:digits"):
        assert absolute_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/x", "gs://bucket/x: only local folders and s3:// are supported, not gs://"),
        ("https://host/x", "https://host/x: only local folders and s3:// are supported, not https://"),
        ("s3://", "s3://: an s3:// address needs a bucket, as in s3://bucket/folder"),
        ("s3:///folder", "s3:///folder: an s3:// address needs a bucket, as in s3://bucket/folder"),
    ],
)
def test_addresses_of_other_kinds_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Storage(uri)
    assert str(caught.value) == message
