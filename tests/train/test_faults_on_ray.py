"""What needs several Ray nodes: a drain notice, claims over nodes, and a schedule applied to a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import state

from benchmarks.cluster import ClusterDriver, LocalCluster
from swav_ray.data.storage import Storage
from swav_ray.train.disturbances import Disturbance
from swav_ray.train.faults import Faults
from tests.train.test_faults import until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        with LocalCluster(nodes=2) as cluster:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster


@ray.remote(num_cpus=0, resources={"slot": 1})
class RayTrainWorker:
    """Called as Ray Train's, so that it is found as one."""

    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def before_step(self, faults: str, run: str, rank: int, step: int) -> None:
        Faults.from_json(faults).of_run(Storage(run)).before_step(rank, step)


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and "slot" in node["Resources"]}


def test_drain_gives_notice_for_the_node_of_its_rank_once(cluster: LocalCluster, tmp_path: Path) -> None:
    worker, run = RayTrainWorker.remote(), str(tmp_path / "run")
    node, _ = ray.get(worker.where.remote())
    faults = Faults().fail_at(1, 2, "drain", seconds=300).to_json()
    for rank, step in ((1, 1), (0, 2)):
        ray.get(worker.before_step.remote(faults, run, rank, step))
        assert state.get_draining_nodes() == {}
    before = ray.get(ray.remote(num_cpus=0)(_now_ms).remote())
    ray.get(worker.before_step.remote(faults, run, 1, 2))
    until(lambda: node in state.get_draining_nodes())
    deadline = state.get_draining_nodes()[node]
    assert 300_000 <= deadline - before < 360_000
    ray.get(worker.before_step.remote(faults, run, 1, 2))
    assert state.get_draining_nodes() == {node: deadline}
    ray.kill(worker)
    (drained,) = (one for one in cluster.nodes if one.node_id == node)
    cluster.remove_node(drained)
    cluster.add_node()


def _now_ms() -> float:
    import time

    return time.time() * 1000


def test_a_schedule_is_applied_and_noted(cluster: LocalCluster) -> None:
    first, second = (node.node_id for node in cluster.nodes)
    workers = [RayTrainWorker.remote() for _ in range(2)]
    pids = sorted(pid for _, pid in ray.get([worker.where.remote() for worker in workers]))
    until(lambda: cluster.worker_pids() == pids)
    schedule = [
        Disturbance(0.1, "kill_worker", 2, pick=0.9),
        Disturbance(0.2, "kill_node", 1, pick=0.0),
        Disturbance(0.3, "add_node", 2, pick=0.0),
        Disturbance(0.4, "remove_node", 1, pick=0.0, notice_seconds=0.5),
        Disturbance(1e9, "kill_node", 0, pick=0.0),  # never: it is stopped before
    ]
    raylet = cluster.processes(cluster.nodes[0])
    with ClusterDriver(cluster, schedule) as driver:
        until(lambda: len(driver.log) == 5)
    log = driver.log
    assert [row["kind"] for row in log] == ["kill_worker", "kill_node", "add_node", "drain_node", "remove_node"]
    added = cluster.nodes[0].node_id
    assert [row["target"] for row in log] == [pids[1], first, added, second, second]
    assert [row["nodes"] for row in log] == [2, 1, 2, 1, 1]
    assert all(row["at"] >= row["planned"] for row in log)
    assert log[4]["planned"] >= log[3]["at"] + 0.5
    assert not psutil.pid_exists(pids[1])
    assert psutil.wait_procs(raylet, timeout=30)[1] == []
    until(lambda: _alive() == {added})  # Ray notices a killed node late
    for worker in workers:
        ray.kill(worker)


def test_what_goes_wrong_in_the_thread_is_raised(cluster: LocalCluster) -> None:
    def no_pids() -> list[int]:
        raise RuntimeError("no run")

    driver = ClusterDriver(cluster, [Disturbance(0.0, "kill_worker", 1, 0.0)], worker_pids=no_pids)
    driver.start()
    assert driver.join(60)
    with pytest.raises(RuntimeError, match="no run"):
        driver.stop()


def test_a_cluster_ends_what_it_started_and_nothing_else(tmp_path: Path) -> None:
    """In a driver of its own, beside the module's cluster."""
    import subprocess
    import sys

    script = """
import logging, os, psutil, ray
from benchmarks.cluster import LocalCluster
with LocalCluster(nodes=1) as cluster:
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    ray.get(ray.remote(resources={"slot": 1})(lambda: os.getpid()).remote())
    family = psutil.Process().children(recursive=True)
    folder = os.environ["RAY_TMPDIR"]
    names = [process.name() for process in family]
    assert names.count("raylet") == 2, names
print(sum(process.is_running() for process in family), os.path.exists(folder), "RAY_TMPDIR" in os.environ)
"""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_TMPDIR"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert done.stdout.split() == ["0", "False", "False"], done.stderr[-2000:]
    assert any(_alive())
