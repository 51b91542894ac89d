"""Shards made from S3 to S3 while the store misbehaves: the same bytes, only later."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_ray.data import sharding
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import MANIFEST
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError
from tests.data.pictures import encode, picture
from tests.outage import Proxy

SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CUT_SHORT = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5000\r\nConnection: close\r\n\r\na part"
KINDS = {"folder": "images", "tars": "all.tar", "Parquet": "all.parquet", "list": "list.txt"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a folder, a tar, a Parquet file and a list."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "images").mkdir()
    rows = []
    for row in range(40):
        content = encode(picture(30, 20, row))
        (folder / f"images/{row:03d}.jpg").write_bytes(content)
        rows.append({"image": content, "label": row % 3})
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet", row_group_size=8)
    with tarfile.open(folder / "all.tar", "w") as tar:
        for path in sorted((folder / "images").iterdir()):
            tar.add(path, path.name)
    (folder / "list.txt").write_text("".join(f"images/{row:03d}.jpg\t{row % 3}\n" for row in range(40)))
    return folder


def everything(folder: Storage) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.list()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_fails_now_and_then_costs_only_time(
    kind: str, source: Path, s3: str, s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "FILE_BYTES", 15_000)
    write_shards(*find_chunks(f"{source}/{KINDS[kind]}"), Storage(str(tmp_path)))
    remote, dest = Storage(s3) / f"faults-{kind}", Storage(s3) / f"faults-{kind}-shards"
    for name in Storage(str(source)).find():
        remote.write(name, (source / name).read_bytes())
    chunks, classes = find_chunks(f"{remote.uri}/{KINDS[kind]}")
    with s3_proxy.outage(0.5) as back:
        write_shards(chunks, classes, dest / "after-an-outage")
        assert back.is_set()
    before = s3_proxy.answered
    s3_proxy.answer(b"GET ", CUT_SHORT, None, SLOW_DOWN)
    s3_proxy.answer(b"PUT ", SLOW_DOWN, None)
    write_shards(chunks, classes, dest / "after-faults")
    assert s3_proxy.answered == before + 5
    expected = everything(Storage(str(tmp_path)))
    assert everything(dest / "after-an-outage") == expected
    assert everything(dest / "after-faults") == expected
    assert len(expected) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_stays_away_stops_the_job_and_loses_nothing(
    kind: str, source: Path, s3: str, s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not: the images are unreadable, and skipped."""
    remote, dest = Storage(s3) / f"away-{kind}", Storage(str(tmp_path))
    for name in Storage(str(source)).find():
        remote.write(name, (source / name).read_bytes())
    chunks, classes = find_chunks(f"{remote.uri}/{KINDS[kind]}")
    with monkeypatch.context() as patch:
        patch.setenv("SWAV_RAY_STORAGE_PATIENCE", "0")
        with s3_proxy.outage(60), pytest.raises(StorageAwayError, match="no answer"):
            write_shards(chunks, classes, dest)
    assert not dest.exists(MANIFEST)
    assert write_shards(chunks, classes, dest).num_rows == 40
