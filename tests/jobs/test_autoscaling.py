"""Elastic jobs on a cluster that begins with no worker node: it grows with them, and is empty again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.autoscaling import IDLE_SECONDS, NODE, elastic_run, two_sweeps
from benchmarks.head import Head
from benchmarks.traced import TRACE
from tests.train.small import ROWS, small_shards


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Head]:
    """A head without processors, whose autoscaler may start up to four nodes."""
    with Head(cpus=0, nodes=NODE, idle_seconds=IDLE_SECONDS / 2, environment={TRACE: str(tmp_path / "trace")}) as head:
        yield head


def test_from_no_node_to_two_and_back(empty: Head, tmp_path: Path) -> None:
    """A job of 1:2 workers; the second machine is to be had only later."""
    found = elastic_run(empty, tmp_path, small_shards(str(tmp_path / "shards")), workers=2, at_first=1, epochs=16)
    assert found["nodes_before"] == 0
    assert found["images_an_epoch"] == [ROWS] and found["each_once"]
    assert found["losses"] == 0, "growing costs no step"
    assert next(row[2] for row in found["timeline"] if row[2]) == 1 and found["timeline"][-1][1] == 0


@pytest.mark.slow
def test_four_workers_and_two_sweeps_at_once(empty: Head, tmp_path: Path) -> None:
    shards = small_shards(str(tmp_path / "shards"))
    found = elastic_run(empty, tmp_path, shards, workers=4, at_first=2, epochs=40)
    assert found["images_an_epoch"] == [ROWS] and found["each_once"] and found["losses"] == 0
    empty.set_capacity(4)
    swept = two_sweeps(empty, tmp_path, shards, workers=4, trials=2)
    assert swept["trials_done"] == [2, 2] and 2 <= swept["most_nodes"] <= 4
