"""The stream through a real Ray Data: the same rows, order and crops as in this process; from local files and from S3."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray

from swav_ray.data import stream as stream_module
from swav_ray.data.ray_tasks import stop, tables
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch, Position, Stream
from tests.data.small import small_config, write_small_shards
from tests.outage import Proxy

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 4 steps, which end amid windows; legs of 3 spans, which end amid epochs."""
    monkeypatch.setattr(stream_module, "WINDOWS_PER_SPAN", 1)
    monkeypatch.setattr(stream_module, "SPANS_PER_LEG", 3)


def on_ray(stream: Stream, start: Position, world_size: int, timeout: float = 120) -> list[list[Batch]]:
    """The batches of every worker, each in a thread of its own; all wait for each other at every step, as in training."""
    legs = list(stream.on_ray(start, world_size))
    step_done = threading.Barrier(world_size)

    def worker(rank: int) -> list[Batch]:
        batches = []
        for batch in stream.batches_of(start, (tables(leg[rank]) for leg in legs), rank, world_size):
            batches.append(batch)
            step_done.wait(timeout=timeout)
        return batches

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(worker, range(world_size)))


def claims() -> list[str]:
    """Who holds a part of the cluster in Ray Data's books."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

    coordinator = get_or_create_autoscaling_coordinator()
    return ray.get(coordinator.__ray_call__.remote(lambda self: list(self._ongoing_reqs)))


def test_a_stream_that_is_stopped_leaves_its_part_of_the_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "SPANS_PER_LEG", 1000)
    before = claims()
    ((iterator,),) = Stream(small_config(str(folder), epochs=200)).on_ray(Position(), 1)  # not over before it is stopped
    assert next(tables(iterator)).num_rows == 1
    (claim,) = set(claims()) - set(before)
    stop(iterator)
    assert claim not in claims()
    with pytest.raises(ray.exceptions.RayActorError):
        next(tables(iterator))
    stop(iterator)


def assert_same(got: list[Batch], expected: list[Batch]) -> None:
    assert [(b.epoch, b.step, b.next, b.ids, b.bad) for b in got] == [(b.epoch, b.step, b.next, b.ids, b.bad) for b in expected]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        for ours_group, theirs_group in zip(ours.crops, theirs.crops, strict=True):
            np.testing.assert_array_equal(ours_group, theirs_group)


def test_one_worker_from_the_middle_of_an_epoch(folder: Path) -> None:
    stream = Stream(small_config(str(folder)))
    start = Position(1, stream.steps.start(2))
    (got,) = on_ray(stream, start, 1)
    assert len(got) == 7
    assert_same(got, list(stream.local(start)))


def test_three_workers_over_several_legs_and_epochs(folder: Path) -> None:
    stream = Stream(small_config(str(folder)))
    start = Position(0, stream.steps.start(2))
    for rank, got in enumerate(on_ray(stream, start, 3)):
        assert len(got) == 16
        assert_same(got, list(stream.local(start, rank, 3)))


def test_two_workers_go_on_with_another_batch_where_three_stopped(folder: Path) -> None:
    stream = Stream(small_config(str(folder), elastic={"max": 3, "scale_lr_with_batch": True}))
    start = next(stream.local(Position(), 0, 3)).next
    for rank, got in enumerate(on_ray(stream, start, 2)):
        assert_same(got, list(stream.local(start, rank, 2)))


def test_two_workers_from_s3(folder: Path, s3: str) -> None:
    dest = Storage(s3) / "stream"
    for path in folder.iterdir():
        dest.put(path, path.name)
    remote = Stream(small_config(dest.uri))
    start = Position(1, remote.steps.start(4))
    here = Stream(small_config(str(folder)))
    for rank, got in enumerate(on_ray(remote, start, 2)):
        assert_same(got, list(here.local(start, rank, 2)))


@pytest.mark.chaos
def test_two_workers_from_a_flaky_s3(folder: Path, s3: str, s3_proxy: Proxy) -> None:
    """One request in twenty fails in some way, and for a minute all do; the tasks' processes have their usual settings."""
    dest = Storage(s3) / "flaky-stream"
    for path in folder.iterdir():
        dest.put(path, path.name)
    epochs = 12
    here = Stream(small_config(str(folder), epochs=epochs))
    with s3_proxy.flaky(0.05, seed=31) as struck, s3_proxy.outage(60) as back:
        for rank, got in enumerate(on_ray(Stream(small_config(dest.uri, epochs=epochs)), Position(), 2, timeout=400)):
            assert_same(got, list(here.local(Position(), rank, 2)))
        assert back.is_set()
    print(dict(struck))
    assert sum(struck.values()) > 5


def test_ray_s_own_settings_are_left_alone(folder: Path) -> None:
    import ray.data

    before = ray.data.DataContext.get_current().target_max_block_size
    list(Stream(small_config(str(folder), epochs=1)).on_ray(Position(), 1))
    assert ray.data.DataContext.get_current().target_max_block_size == before


def test_a_missing_file_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    write_small_shards(tmp_path)
    stream = Stream(small_config(str(tmp_path), epochs=1))
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    with pytest.raises(Exception, match="is in the manifest but not there"):
        on_ray(stream, Position(), 1)
