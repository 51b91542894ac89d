"""The store is away for a while: nothing notices but the clock. The store answers no: that is told at once."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileType

from swav_ray.data import patience, storage
from swav_ray.data.shards import SCHEMA, Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError
from tests.outage import Proxy, reply
from tests.train.small import small_shards

SECONDS = pytest.mark.parametrize("seconds", [0.7, pytest.param(60.0, marks=pytest.mark.chaos)])


@pytest.fixture
def folder(s3: str, s3_proxy: Proxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A folder on S3 with `a` and `b/c` in it, and a client that tries nothing again by itself."""
    options = {**storage.S3_OPTIONS, "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 2, "read_timeout": 2}}
    monkeypatch.setattr(storage, "S3_OPTIONS", options)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.3)
    s3_proxy.restore()
    here = Storage(s3) / f"outage/{abs(hash(request.node.name))}"
    here.write("a", b"content of a")
    here.write("b/c", b"content of c")
    return here


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "read": lambda folder: folder.read("a") == b"content of a",
    "write": lambda folder: folder.write("new", b"new") or folder.read("new") == b"new",
    "put": lambda folder: folder.put(Path(__file__), "new") or folder.read("new") == Path(__file__).read_bytes(),
    "exists": lambda folder: folder.exists("a") and folder.exists("b") and not folder.exists("nothing"),
    "bucket exists": lambda folder: Storage(f"s3://{folder.root.split('/')[0]}").exists(),
    "list": lambda folder: folder.list() == ["a", "b"] and folder.list("b") == ["c"],
    "find": lambda folder: sorted(folder.find()) == ["a", "b/c"],
    "delete": lambda folder: folder.delete("b") or folder.list() == ["a"],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_outage_is_waited_for(folder: Storage, s3_proxy: Proxy, operation: str) -> None:
    with s3_proxy.outage(0.5) as back:
        assert OPERATIONS[operation](folder)
        assert back.is_set(), "it was answered before the store was back"


FAULTS = {
    "reset": None,
    "500": reply(500, "InternalError"),
    "502 of a gateway": reply(502, body=b"<html>bad gateway</html>"),
    "503 slow down": reply(503, "SlowDown"),
    "429": reply(429, "TooManyRequests"),
    "request timeout": reply(400, "RequestTimeout"),
    "answer cut short": reply(200, body=b"content", length=1000),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("request_line", ["GET ", "PUT ", "HEAD "])
def test_a_fault_that_passes_is_tried_again(folder: Storage, s3_proxy: Proxy, fault: str, request_line: str) -> None:
    content = reply(503) if request_line == "HEAD " and fault == "answer cut short" else FAULTS[fault]
    before = s3_proxy.answered
    s3_proxy.answer(request_line.encode(), content, content, content)
    folder.write("a", b"second")
    assert folder.read("a") == b"second"
    assert s3_proxy.answered == before + 3


def test_a_silent_store_is_left(folder: Storage, s3_proxy: Proxy) -> None:
    """Neither reset nor refused: packets lost on the way."""
    s3_proxy.hold(0, lambda: threading.Timer(0.1, s3_proxy.restore).start())
    assert folder.read("a") == b"content of a"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(403, "AccessDenied"), PermissionError),
        (reply(404, "NoSuchKey"), FileNotFoundError),
        (reply(404, "NoSuchBucket"), FileNotFoundError),
        (reply(400, "InvalidArgument"), OSError),
        (reply(501, "NotImplemented"), OSError),
    ],
)
def test_an_answer_is_not_tried_again(folder: Storage, s3_proxy: Proxy, answer: bytes, kind: type[Exception], caplog) -> None:
    before = s3_proxy.answered
    s3_proxy.answer(b"PUT ", answer)
    with pytest.raises(kind):
        folder.write("a", b"x")
    assert s3_proxy.answered == before + 1
    assert "trying again" not in caplog.text


def test_no_such_bucket_and_no_credentials_are_answers(
    folder: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError):
        Storage("s3://no-such-bucket-here").read("a")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(storage, "S3_OPTIONS", {**storage.S3_OPTIONS, "use_ssl": False})  # a client of its own
    with pytest.raises(Exception, match="credentials"):
        folder.read("a")
    assert "trying again" not in caplog.text


def test_the_end_of_patience_is_one_clear_error(folder: Storage, s3_proxy: Proxy, monkeypatch, caplog) -> None:
    monkeypatch.setenv(patience.PATIENCE, "0.4")
    with s3_proxy.outage(60), caplog.at_level(logging.WARNING), pytest.raises(StorageAwayError) as caught:
        folder.read("a")
    message = str(caught.value)
    assert re.match(rf"{re.escape(folder.uri)}/a: no answer in \d+ s and \d+ attempts; ", message), message
    assert "attempts; the last failed with Could not connect to the endpoint URL" in message
    assert "\n" not in message
    assert caplog.text.count("trying again for up to 0 s") == 1
    assert folder.read("a") == b"content of a", "it is back, and so are we"


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_patience_is_a_number_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(patience.PATIENCE, text)
    with pytest.raises(UserError, match=rf"SWAV_RAY_STORAGE_PATIENCE = '{text}': must be a number of seconds, 0 or more"):
        Storage(str(tmp_path)).exists()


@SECONDS
def test_an_outage_in_the_middle_of_an_upload(folder: Storage, s3_proxy: Proxy, monkeypatch, seconds: float) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 2**20)  # the least S3 takes
    content = os.urandom(12 * 2**20)
    folder.write("big", b"old")
    cut = threading.Event()

    def away() -> None:
        s3_proxy.cut()
        cut.set()
        threading.Timer(seconds, s3_proxy.restore).start()

    s3_proxy.hold(7 * 2**20, away)
    folder.write("big", content)
    assert cut.is_set(), "the upload was over before the store went away"
    assert folder.read("big") == content


def test_an_upload_given_up_leaves_what_was_there(folder: Storage, s3_proxy: Proxy, monkeypatch) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 2**20)
    monkeypatch.setenv(patience.PATIENCE, "0.2")
    folder.write("old", b"old")
    for name in ("old", "new"):
        s3_proxy.hold(7 * 2**20, s3_proxy.cut)
        with pytest.raises(StorageAwayError):
            folder.write(name, os.urandom(12 * 2**20))
        s3_proxy.restore()
    assert folder.read("old") == b"old"
    assert folder.list() == ["a", "b", "old"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(small_shards(str(tmp_path_factory.mktemp("shards"))))


@SECONDS
def test_shards_are_read_through_an_outage(
    folder: Storage, s3_proxy: Proxy, shards: Storage, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [table.to_pydict() for table in Shards(shards.uri).iter_groups(SCHEMA.names)]
    for name in shards.list():
        folder.write(name, shards.read(name))
    with s3_proxy.outage(seconds) as back:  # from the manifest on
        remote = Shards(folder.uri)
        assert back.is_set()
    with s3_proxy.outage(seconds) as back:  # from the opening of the file on
        assert remote.read_group(2).to_pydict() == expected[2]
        assert back.is_set()
    with s3_proxy.outage(seconds) as back:  # of an open file
        assert remote.read_group(1).to_pydict() == expected[1]
        assert back.is_set()
    s3_proxy.answer(b"GET ", reply(206, body=b"part of a row group", length=5000), None, reply(503, "SlowDown"))
    before = s3_proxy.answered
    windows = [np.array([[3, 1], [0, 2]])]
    assert list(remote.read_windows(windows, ["id"])) == [{"id": [expected[3]["id"][1], expected[0]["id"][2]]}]
    assert s3_proxy.answered == before + 3
    monkeypatch.setenv(patience.PATIENCE, "0")
    with s3_proxy.outage(60), pytest.raises(StorageAwayError, match="no answer"):  # not: the shard is missing
        Shards.read_group(pickle.loads(pickle.dumps(remote)), 0)


def test_what_ray_writes_goes_through_an_outage(folder: Storage, s3_proxy: Proxy) -> None:
    """Ray's own snapshots and checkpoints go through the pyarrow file system, pickled."""
    arrow = pickle.loads(pickle.dumps(folder.arrow))
    with s3_proxy.outage(0.5) as back:
        with arrow.open_output_stream(folder.path("ray/snapshot.json")) as stream:
            stream.write(b"{}")
        assert back.is_set()
    with s3_proxy.outage(0.5):
        info = arrow.get_file_info([folder.path("ray/snapshot.json"), folder.path("nothing")])
        assert [entry.type for entry in info] == [FileType.File, FileType.NotFound]
    with s3_proxy.outage(0.5), arrow.open_input_stream(folder.path("ray/snapshot.json")) as stream:
        assert stream.read() == b"{}"
    for opened in (arrow.open_input_stream, arrow.open_input_file):
        with opened(folder.path("ray/snapshot.json")) as stream, s3_proxy.outage(0.5):
            assert stream.read() == b"{}"
    with s3_proxy.outage(0.5):
        assert [entry.base_name for entry in arrow.get_file_info(FileSelector(folder.path("ray")))] == ["snapshot.json"]
    with s3_proxy.outage(0.5):
        arrow.delete_dir(folder.path("ray"))
    assert folder.list() == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        arrow.open_input_file(folder.path("ray"))


def test_a_row_group_costs_its_own_bytes(folder: Storage, s3_proxy: Proxy, shards: Storage) -> None:
    """s3fs's own file would read 50 MB ahead of every row group."""
    folder.write("part-00000.parquet", shards.read("part-00000.parquet"))
    file = pq.ParquetFile(folder.path("part-00000.parquet"), filesystem=folder.arrow, pre_buffer=True)
    before = s3_proxy.received
    file.read_row_group(1, columns=["label"])
    assert s3_proxy.received - before < 3000


@pytest.fixture
def sick_file(tmp_path: Path) -> Path:
    """Reading address 0 of a process's memory is a real EIO."""
    path = tmp_path / "file"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    return path


def test_a_sick_network_file_system_is_waited_for(sick_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Nurse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "trying again" in record.getMessage():
                sick_file.unlink()
                sick_file.write_bytes(b"well")

    logging.getLogger("swav_ray").addHandler(nurse := Nurse())
    try:
        assert Storage(str(sick_file.parent)).read("file") == b"well"
    finally:
        logging.getLogger("swav_ray").removeHandler(nurse)
    assert "answers again" in caplog.text


def test_a_full_disk_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Storage(str(tmp_path)).write("file", b"x")
    assert len(calls) == 1


def test_a_stale_handle_of_a_shard_is_opened_anew(shards: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Shards(shards.uri)
    expected = local.read_group(0).to_pydict()
    real, opened = local.folder.open, []

    class Stale(io.FileIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.ESTALE, "Stale file handle")

    def stale_at_first(*args: Any) -> pa.NativeFile:
        opened.append(args)
        return pa.PythonFile(Stale(local.folder.path(args[0])), mode="r") if len(opened) == 1 else real(*args)

    monkeypatch.setattr(local.folder, "open", stale_at_first)
    assert local.read_group(0).to_pydict() == expected
    assert len(opened) == 2
