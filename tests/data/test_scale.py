"""Nothing grows with the rows: not what planning holds, not what a resume reads, not what a task that crops loads."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from swav_ray.data import Plan
from swav_ray.data.shards import GROUP_ROWS, Manifest, Shards
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Position, Span, Stream
from tests.data.small import small_config, write_small_shards


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder)
    return str(folder)


def test_nothing_is_held_for_each_row_of_an_epoch(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = 200_000
    stream = Stream(small_config(uri))
    stream.plan = Plan(np.full(groups, 64), seed=31, window_groups=2, block_rows=5)
    monkeypatch.setattr(stream.shards, "read_group", lambda group, columns: pa.table({"id": ["x"] * 64, "jpeg": [b""] * 64}))
    tracemalloc.start()
    assert len(next(stream.read(next(stream.spans_from(Position(), 1)))).ids) == 5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 8 * groups < stream.plan.num_rows, "numbers of a row group at most"


def test_a_resume_waits_for_one_window_and_reads_nothing_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_shards(tmp_path, rows=64 * 20)
    config = small_config(str(tmp_path), data={"window_groups": 4, "block_rows": 5})
    for percent in range(3, 100, 12):
        stream = Stream(config)
        start = Position(1, stream.steps.start(stream.steps.per_epoch * percent // 100))
        read, real = [], stream.shards.read_group
        monkeypatch.setattr(stream.shards, "read_group", lambda *a, read=read, real=real: (read.append(a[0]), real(*a))[1])
        next(stream.read(next(stream.spans_from(start, 1))))
        # A block that reaches into the next window needs that one too.
        windows = list(stream.plan.windows(1, start.row))
        needed = sum(w.start < start.row + config.data.block_rows for w in windows)
        groups = [set(np.unique(w.pairs[:, 0])) for w in windows]
        assert len(groups[0]) <= 4
        assert set().union(*groups[:needed]) <= set(read) <= set().union(*groups[: needed + 1])  # the next one meanwhile


def test_a_process_that_only_crops_reads_no_manifest(tmp_path: Path) -> None:
    """On Ray each task that crops a block unpickles the stream; the manifest of a large data set is 100 MB."""
    write_small_shards(tmp_path, rows=70)
    stream = Stream(small_config(str(tmp_path)))
    block = next(stream.read(Span(0, stream.steps, 0, 1)))
    content = pickle.dumps(stream)
    (tmp_path / "manifest.json").unlink()
    assert next(pickle.loads(content).crop([[block]])).ids == block.ids


@pytest.mark.parametrize("rows", [[1], [64], [65], [64, 1, 128, 63, 200]], ids=str)
def test_row_groups_follow_from_the_files_lengths(tmp_path: Path, rows: list[int]) -> None:
    files = [{"name": f"part-{n:05d}.parquet", "num_rows": count, "bytes": 1, "sha256": ""} for n, count in enumerate(rows)]
    Storage(str(tmp_path)).write("manifest.json", Manifest(num_rows=sum(rows), files=files).to_json())
    groups = [min(GROUP_ROWS, count - first) for count in rows for first in range(0, count, GROUP_ROWS)]
    assert Shards(str(tmp_path)).rows_per_group.tolist() == groups
