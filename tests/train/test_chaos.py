"""One long run under many deaths and resizes: each row once an epoch in the lineage that survives.

pytest -m chaos tests/train/test_chaos.py     # 100 of them, about 25 minutes; without -m: a few
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from pathlib import Path

import pytest

from benchmarks.cluster import ClusterDriver, LocalCluster
from swav_ray.train.disturbances import disturbances
from swav_ray.train.loop import LOG_EVERY
from tests.train.small import ROWS, losses_of, small_config, small_shards, train_here
from tests.train.test_elastic import ELASTIC, ROOT, Run


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.chaos)])
def test_every_row_once_an_epoch_whatever_dies(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, nodes and the driver are killed, nodes join and leave; five in six befall the cluster, one the driver."""
    seed, every = 7, 10.0  # seconds between two of them
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    shards = small_shards(str(tmp_path / "shards"))
    config = small_config(shards, str(tmp_path), "chaos", **ELASTIC | {"epochs": 100_000})
    befalls = disturbances(
        seed,
        every * count,
        kill_every=2 * every * 6 / 5,
        resize_every=2 * every * 6 / 5,
        min_nodes=1,
        max_nodes=3,
        start_nodes=2,
    )
    draws = random.Random(seed)
    driver_deaths = list(itertools.accumulate(draws.uniform(2, 5 if not n else 10) * every for n in range(max(1, count // 6))))
    with LocalCluster(2, cpus=1, head_cpus=2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        run = Run(config, tmp_path)
        run.wait_for("first steps", lambda: len(losses_of(config)) > 5)
        with ClusterDriver(cluster, befalls, worker_pids=lambda: cluster.worker_pids("TrainWorker")) as hand:
            for pause in [b - a for a, b in itertools.pairwise([0.0, *driver_deaths])]:
                if hand.join(pause):
                    break
                run.process.kill()
                run.process.wait()
                run = Run(config, tmp_path)
            hand.join()
        before = len(losses_of(config))
        run.wait_for("steps after it all", lambda: len(losses_of(config)) > before + 20)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() and run.process.returncode == 130

    rows = losses_of(config)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for _, epoch in itertools.groupby(rows, key=lambda row: row["epoch"]):
        steps = list(epoch)
        ids = [identifier for row in steps for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) and (len(ids) == ROWS or steps[-1] is rows[-1])
    calm = small_config(shards, str(tmp_path), "calm", **ELASTIC | {"epochs": 100_000})
    reference = train_here(calm, steps=len(rows) + LOG_EVERY)[: len(rows)]
    assert [row["ids"] for row in rows] == [row["ids"] for row in reference]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(rows[:200], reference, strict=False)) < 1e-4
    told = [f"{row['kind']} at {row['at']:.0f} s" for row in hand.log]
    print(f"{len(told)} disturbances, {len(rows)} steps: {', '.join(told)}")
