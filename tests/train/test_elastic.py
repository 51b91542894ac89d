"""Elastic runs on several real Ray nodes: what a growth, a drain, a death, a stuck rank and a stop leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.cluster import LocalCluster
from benchmarks.traced import TRACE, read_trace
from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.events import read_events
from swav_ray.train.metrics import read_metrics
from swav_ray.train.notice import this_node
from tests.commands import run_command
from tests.train.small import ROWS, losses_of, small_config, small_shards, train_here
from tests.train.test_notice import Metadata, served, taken_in

ROOT = Path(__file__).parents[2]
EPOCHS = 12  # of 9 steps, each at least 0.2 s long on one worker
SECONDS = 120.0  # patience for anything that is waited for
ELASTIC = {
    "backbone.arch": "benchmarks.traced:backbone",
    "epochs": EPOCHS,
    "elastic.min": 1,
    "elastic.max": 3,
    "elastic.resources": {"slot": 1},
    "elastic.cooldown_seconds": 0.5,
    "elastic.patience_seconds": 0.5,
}


class Run:
    """`swav-ray pretrain` as a process of its own, and what its folder says meanwhile."""

    def __init__(self, config: Config, place: Path, **environment: str) -> None:
        path = place / f"{config.name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        self.folder = Storage(config.storage) / config.name
        self.output = path.with_suffix(".out")
        command = [sys.executable, "-m", "swav_ray", "pretrain", str(path)]
        with self.output.open("w") as file:
            self.process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT)

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (answer := condition()):
            assert self.process.poll() is None, f"ended while waiting for {what}: {self.output.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {what} in {SECONDS:.0f} s: {self.events()}"
            time.sleep(0.05)
        return answer

    def wait_for_steps(self, count: int, workers: int) -> None:
        """Until so many more steps were written down by a group of that size."""
        self.wait_for(f"{count} steps with {workers} workers", lambda: self.tail(count) == [workers] * count)

    def tail(self, count: int) -> list[int]:
        return [row["workers"] for row in read_metrics(self.folder) if "loss" in row][-count:]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder) if not kinds or event["event"] in kinds]

    def end(self) -> str:
        """Its output, once it has ended by itself."""
        self.process.wait(2 * SECONDS)  # a whole run
        return self.output.read_text()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trace") / "steps"


@pytest.fixture(scope="module")
def cluster(trace) -> Iterator[LocalCluster]:
    """One node with a place for a worker; its processes write their steps down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACE, str(trace))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with LocalCluster(1, cpus=1, head_cpus=2) as nodes:
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield nodes


@pytest.fixture
def one_node(cluster) -> Iterator[LocalCluster]:
    yield cluster
    while len(cluster.nodes) > 1:
        cluster.kill_node(cluster.nodes[-1])
    if not cluster.nodes:
        cluster.add_node()


def assert_same_history(config: Config, calm: Config) -> None:
    """Every image once an epoch, the losses, the weights and the queue of the undisturbed run of one worker."""
    rows, reference = losses_of(config), losses_of(calm)
    for epoch in range(config.epochs):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    assert [row["ids"] for row in rows] == [row["ids"] for row in reference]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, reference, strict=True)) < 1e-4
    ours, theirs = (Checkpoints(Storage(f"{c.storage}/{c.name}/checkpoints")).latest()[0] for c in (config, calm))
    assert ours["queue"]["key"].tolist() == theirs["queue"]["key"].tolist()
    torch.testing.assert_close(ours["queue"]["rows"], theirs["queue"]["rows"], rtol=1e-3, atol=1e-6)
    for name, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_nodes_come_and_go_and_the_loss_curve_does_not_notice(one_node, shards, trace, tmp_path, monkeypatch):
    """1 -> 3 workers (or 2 on the way), a drain, a killed node; nothing is done again but after the death."""
    config = small_config(shards, str(tmp_path), "elastic", **ELASTIC)
    run = Run(config, tmp_path)
    run.wait_for_steps(3, 1)
    one_node.add_node()
    one_node.add_node()
    run.wait_for_steps(4, 3)
    one_node.drain_node(one_node.nodes[1], 20)
    run.wait_for_steps(4, 2)
    one_node.kill_node(one_node.nodes[1])  # it was given notice, and all had moved away
    one_node.kill_node(one_node.nodes[1])
    run.wait_for_steps(2, 1)
    output = run.end()

    assert run.process.returncode == 0, output
    kinds = Counter(event["event"] for event in run.events())
    assert kinds["grow"] >= 1 and kinds["drain"] == 1 and kinds["lost"] == 1 and kinds["restart"] == 1, run.events()
    assert "2 workers, a node is leaving" in output and "1 worker, going on with these" in output
    # With notice no step is done twice; after the death at most the interval between checkpoints.
    executed = Counter(step.done for step in read_trace(trace))
    lost_at = run.events("lost")[0]["step"]
    again = sorted(step for step, count in executed.items() if count > 1)
    assert all(lost_at - config.checkpoint.every_steps <= step <= lost_at + 1 for step in again), (again, lost_at)
    monkeypatch.delenv(TRACE)
    calm = small_config(shards, str(tmp_path), "calm", **ELASTIC)
    train_here(calm)
    assert_same_history(config, calm)


def test_rank_0_itself_is_given_notice(one_node, shards, trace, tmp_path):
    """The writer of checkpoints leaves: its last one is complete before it goes, and no step is done twice."""
    one_node.add_node()
    trace.unlink(missing_ok=True)
    config = small_config(shards, str(tmp_path), "notice", **ELASTIC | {"epochs": 4, "checkpoint.every_steps": 1000})
    run = Run(config, tmp_path, SWAV_RAY_FAULTS='[{"rank": 0, "step": 12, "kind": "drain", "seconds": 30}]')
    output = run.end()
    while one_node.nodes:  # one of them is marked for good
        one_node.kill_node(one_node.nodes[-1])
    assert run.process.returncode == 0, output
    (drain,) = run.events("drain")
    assert drain["workers_before"] == 2 and drain["workers"] == 1 and 12 < drain["step"] < 20
    assert [step.done for step in read_trace(trace)] == list(range(36)), "each step once"
    assert [row["step"] for row in losses_of(config)] == list(range(1, 37))


def test_a_cloud_that_takes_a_node_is_heard(one_node, monkeypatch, capsys):
    """`drain` waits for the cloud's word, and the node goes by it: an idle one at once. A machine knows its own node."""
    from ray._raylet import GcsClient

    gcs, node, head = GcsClient(address=one_node.address), one_node.nodes[0].node_id, one_node._cluster.head_node.node_id
    with pytest.raises(UserError, match=r"has \d living nodes on .*; choose with --node-id"):
        this_node()
    with served(Metadata((404, ""), taken_in(60))) as place:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}")
        done = run_command(monkeypatch, capsys, "drain", "--on-notice", "aws", "--node-id", node)
    assert done.code == 0 and f"node {node} leaves in" in done.out, done
    deadline = time.monotonic() + SECONDS
    alive = {head, node}
    while alive != {head}:
        assert time.monotonic() < deadline, "the node did not hear of it"
        time.sleep(0.05)
        nodes = {key.hex(): info for key, info in gcs.get_all_node_info().items()}
        alive = {name for name, info in nodes.items() if info.state == info.ALIVE}
    why = nodes[node].death_info
    assert why.reason == why.AUTOSCALER_DRAIN_PREEMPTED and "a notice of aws" in why.reason_message, why
    assert this_node() == (one_node.address, head)
    one_node.kill_node(one_node.nodes[0])


@pytest.mark.slow
def test_a_whole_cluster_that_ends_leaves_all_saved(one_node, shards, trace, tmp_path):
    """`swav-ray drain` on every node, as the pods of clusters/ do when their cluster is deleted: no step is done twice."""
    trace.unlink(missing_ok=True)
    config = small_config(shards, str(tmp_path), "ended", **ELASTIC | {"epochs": 4, "checkpoint.every_steps": 1000})
    run = Run(config, tmp_path)
    run.wait_for_steps(3, 1)
    node = one_node.nodes[0]
    drain = [sys.executable, "-m", "swav_ray", "drain", "--seconds", "60", "--node-id", node.node_id]
    with subprocess.Popen(drain) as leaving:
        run.wait_for("a checkpoint", Checkpoints(run.folder / "checkpoints").newest)
        run.process.kill()  # the head
        one_node.kill_node(node)
        leaving.kill()
    one_node.add_node()

    again = Run(config, tmp_path)
    assert again.end() and again.process.returncode == 0
    assert [row["step"] for row in losses_of(config)] == list(range(1, 37))
    assert [step.done for step in read_trace(trace)] == list(range(36)), "each step once"


def test_a_stop_is_graceful_and_the_same_command_goes_on(one_node, shards, tmp_path):
    """SIGTERM, as `ray job stop` sends it: the step is finished, all is saved, and nothing is done again."""
    config = small_config(shards, str(tmp_path), "stopped", **ELASTIC | {"checkpoint.every_steps": 1000, "epochs": 4})
    run = Run(config, tmp_path)
    run.wait_for_steps(3, 1)
    run.process.send_signal(signal.SIGTERM)
    output = run.end()
    saved = Checkpoints(run.folder / "checkpoints").newest()[0]
    assert run.process.returncode == 130
    assert f"run 'stopped' stopped at step {int(saved.removeprefix('step-'))}; the same command goes on from there" in output
    before = len(losses_of(config))
    assert 3 <= before < 36 and saved == f"step-{before:09d}"

    again = Run(config, tmp_path)
    assert again.end() and again.process.returncode == 0
    assert [row["step"] for row in losses_of(config)] == list(range(1, 37))


def test_a_stuck_rank_is_found_named_and_replaced(one_node, shards, tmp_path):
    one_node.add_node()
    settings = ELASTIC | {"epochs": 4, "elastic.stuck_seconds": 6.0, "elastic.min": 2, "elastic.max": 2}
    config = small_config(shards, str(tmp_path), "stuck", **settings)
    run = Run(config, tmp_path, SWAV_RAY_FAULTS='[{"rank": 1, "step": 10, "kind": "hang"}]')
    output = run.end()
    assert run.process.returncode == 0, output
    (stuck,) = run.events("stuck")
    assert (stuck["rank"], stuck["step"], stuck["phase"]) == (1, 10, "step") and "faults.py" in stuck["where"]
    assert "rank 1 on node" in output
    rows = losses_of(config)
    assert [row["step"] for row in rows] == list(range(1, 37)) and {row["workers"] for row in rows} == {2}


def test_a_worker_that_cannot_start_is_one_line(one_node, shards, tmp_path):
    config = small_config(shards, str(tmp_path), "broken", **ELASTIC | {"backbone.arch": "no_such_package:backbone"})
    run = Run(config, tmp_path)
    output = run.end()
    assert run.process.returncode == 2
    last = output.strip().splitlines()[-1]
    assert last.startswith("swav-ray: run 'broken' stopped: ") and "no_such_package" in last, output
