"""A store that fails at random, and for a minute: every row is streamed exactly once, and a run that gave up goes on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swav_ray.data import patience, storage
from swav_ray.data.shards import Shards
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch, Position, Stream
from swav_ray.errors import StorageAwayError, UserError
from tests.data.small import ROWS, small_config, write_small_shards
from tests.outage import FAULTS, Proxy, reply

READ_TIMEOUT = 1.0  # seconds: how long a stall lasts here


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder)
    return Storage(str(folder))


@pytest.fixture
def remote(s3: str, s3_proxy: Proxy, local: Storage, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same shards on S3, read by the client's own settings, but for how long it waits."""
    settings = {**storage.S3_OPTIONS["config_kwargs"], "read_timeout": READ_TIMEOUT}
    monkeypatch.setattr(storage, "S3_OPTIONS", {**storage.S3_OPTIONS, "config_kwargs": settings})
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.5)
    s3_proxy.restore()
    folder = Storage(s3) / "flaky"
    for name in local.list():
        folder.write(name, local.read(name))
    return folder.uri


def outage_at(step: int, seconds: float, batches: Iterator[Batch], proxy: Proxy) -> Iterator[Batch]:
    """``batches``, the store away for so long from batch ``step`` on; all of it is over when they are."""
    yield from itertools.islice(batches, step)
    with proxy.outage(seconds) as back:
        yield from batches
        assert back.is_set(), "the outage was longer than the stream"


@pytest.mark.parametrize(
    ("share", "epochs", "seconds"),
    [pytest.param(0.25, 6, 0.5, id="a quarter"), pytest.param(0.05, 60, 60.0, id="5 %", marks=pytest.mark.chaos)],
)
def test_every_row_comes_exactly_once_from_a_flaky_store(
    remote: str, local: Storage, s3_proxy: Proxy, share: float, epochs: int, seconds: float
) -> None:
    config = small_config(remote, epochs=epochs)
    expected = [batch.ids for batch in Stream(small_config(local.uri, epochs=epochs)).local(Position())]
    with s3_proxy.flaky(share, seed=31) as struck:
        batches = list(outage_at(9, seconds, Stream(config).local(Position()), s3_proxy))
    print(dict(struck))
    assert set(struck) == set(FAULTS), "not every fault struck"
    assert [batch.ids for batch in batches] == expected
    for epoch in range(epochs):
        ids = [identifier for batch in batches if batch.epoch == epoch for identifier in batch.ids]
        assert len(ids) == len(set(ids)) == ROWS
    assert not any(batch.bad for batch in batches)


def test_a_stream_that_gave_up_says_where_and_goes_on_from_there(
    remote: str, local: Storage, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(remote)
    seen: list[Batch] = []
    with monkeypatch.context() as patch:
        patch.setenv(patience.PATIENCE, "0.4")
        batches = Stream(config).local(Position())
        seen += itertools.islice(batches, 2)
        with s3_proxy.outage(60), pytest.raises(StorageAwayError) as caught:
            seen += batches
    message = r"s3://\S+/flaky/part-\w+.parquet: no answer in \d+ s and \d+ attempts; the last failed with Could not connect"
    assert re.match(message, str(caught.value)), caught.value
    assert 2 <= len(seen) < 18
    seen += Stream(config).local(seen[-1].next)
    assert [batch.ids for batch in seen] == [batch.ids for batch in Stream(small_config(local.uri)).local(Position())]


def test_part_of_a_row_group_that_calls_itself_whole_is_asked_for_again(remote: str, local: Storage, s3_proxy: Proxy) -> None:
    shards = Shards(remote)
    shards.read_group(0, ["id"])  # the file is open
    before = s3_proxy.answered
    s3_proxy.answer(b"GET ", reply(206, body=b"half of it"), reply(206, body=b"x"))
    assert shards.read_group(1).equals(Shards(local.uri).read_group(1))
    assert s3_proxy.answered == before + 2


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def torn_footer(content: bytes) -> bytes:
    return content[:-300] + bytes(200) + content[-100:]


def torn_pages(content: bytes) -> bytes:
    return content[:4] + bytes(2000) + content[2004:]


@pytest.mark.parametrize("damage", [cut_short, torn_footer, torn_pages])
@pytest.mark.parametrize("on_s3", [False, True], ids=["local", "s3"])
def test_a_damaged_file_is_one_line_at_once(
    local: Storage, remote: str, tmp_path: Path, damage: Callable[[bytes], bytes], on_s3: bool
) -> None:
    folder = Storage(remote) if on_s3 else Storage(str(tmp_path))
    for name in local.list():
        folder.write(name, damage(local.read(name)) if name == "part-00000_001.parquet" else local.read(name))
    with pytest.raises(UserError) as caught:
        list(Stream(small_config(folder.uri, epochs=1)).local(Position()))
    line = r"/part-00000_001.parquet: damaged \(.+\); make the shards again \(.* --check` finds all that are\)$"
    assert re.match(re.escape(folder.uri) + line, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_waits_grow_differ_and_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers that lost the store together do not come back together."""
    waits: list[list[float]] = []
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: waits[-1].append(seconds))

    def away() -> None:
        if len(waits[-1]) < 12:
            raise ConnectionResetError

    for _ in range(50):
        waits.append([])
        patience.patiently(away, "there")
    means = [sum(each) / len(each) for each in zip(*waits, strict=True)]
    assert means[0] < 0.2 and 0.4 < means[3] < 1.2 and all(1.5 < mean < 3.5 for mean in means[6:])
    assert all(0 <= wait <= patience.LONGEST_WAIT for each in waits for wait in each)
    assert len({each[0] for each in waits}) == len(waits)
