"""`swav-ray doctor --cluster` on real Ray nodes: first healthy ones, then each fault planted in a node of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.cluster import LocalCluster
from swav_ray.config_sections import Elastic
from swav_ray.data.storage import Storage
from swav_ray.doctor.check import State
from swav_ray.doctor.nodes import Cluster
from swav_ray.doctor.workers import check_workers
from tests.train.small import small_shards

ROOT = Path(__file__).parents[2]
SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret-key-of-the-test", "RAY_AUTH_TOKEN": "token-of-the-test-0123456789abcdef"}
CLEARED = ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


def an_hour_ahead() -> dict[str, str]:
    """What makes every clock of the day that a process reads show another time; the monotonic one stays."""
    libfaketime = pytest.importorskip("libfaketime")
    return libfaketime.get_reload_information()[1] | {"FAKETIME": "+3600s", "RAY_LD_PRELOAD_ON_WORKERS": "1"}


class Guest:
    """Of another run."""

    def ready(self) -> bool:
        return True


class Seen:
    """What `swav-ray doctor --cluster ARGS --json` said."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "swav_ray", "doctor", "--cluster", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        self.code, self.text = done.returncode, done.stdout + done.stderr
        assert done.stdout, done.stderr
        self.checks: dict[str, dict[str, Any]] = {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    def state(self, name: str) -> str:
        return str(self.checks[name]["state"])

    def found(self, name: str) -> str:
        return str(self.checks[name]["found"])

    def mend(self, name: str) -> str:
        return str(self.checks[name]["mend"])


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[LocalCluster]:
    """A head and one node with a token and time to stop, as a cluster should be."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CLEARED:
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        reset_auth_token_state()  # this process has read the environment when it imported Ray
        with LocalCluster(1) as nodes:
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield nodes
    reset_auth_token_state()


@pytest.fixture(scope="module")
def healthy(cluster: LocalCluster, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    shards = small_shards(str(tmp_path_factory.mktemp("shards")))
    return Seen("--config", "demo-digits", "--data", shards, "--storage", f"{s3}/doctor-runs", "--workers", "1:4")


@pytest.fixture(scope="module")
def sick(cluster: LocalCluster, healthy: Seen, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seen, str]]:
    """The same cluster with two more nodes, full of faults."""
    older = tmp_path_factory.mktemp("older") / "numpy-1.26.0.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.0\n")
    place = tmp_path_factory.mktemp("runs")
    faults = an_hour_ahead() | {
        "PYTHONPATH": f"{older.parent}{os.pathsep}{os.environ['PYTHONPATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "512",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",  # which goes before the AWS_ENDPOINT_URL that we carry there
        "RAY_NODE_MARKET_TYPE": "spot",
        "GLOO_SOCKET_IFNAME": "nowhere0",
    }
    with pytest.MonkeyPatch.context() as patch:  # a node keeps the environment it is started in
        for name, value in faults.items():
            patch.setenv(name, value)
        old = cluster.add_node()
    leaving = cluster.add_node()
    ray.init(address=cluster.address, log_to_driver=False)
    there = NodeAffinitySchedulingStrategy(leaving.node_id, soft=False)
    guest = ray.remote(Guest).options(num_cpus=1, scheduling_strategy=there).remote()  # an idle node would leave at once
    ray.get(guest.ready.remote())
    cluster.drain_node(leaving, 600)
    yield Seen("--storage", f"{s3}/doctor-runs", "--data", f"{place}/nothing", "--workers", "80"), old.node_id[:8]
    ray.shutdown()


def test_a_healthy_cluster_raises_no_alarm(healthy: Seen) -> None:
    alarms = {name: check for name, check in healthy.checks.items() if check["state"] != "ok"}
    # What the machine of the test itself may lack, whatever runs on it.
    for name in ("shared memory", "object store", "open files", "disk", "gpus", "system ports"):
        if name in alarms:
            assert alarms.pop(name)["state"] == "warning"
    assert alarms == {} and healthy.code == 0
    assert {"agreement", "clocks", "gloo", "storage", "data files", "workers", "spot nodes", "authentication"} <= set(
        healthy.checks
    )
    assert "an all-reduce over 2 nodes" in healthy.found("gloo")
    assert "1:4" in healthy.found("workers") and "places for 4" in healthy.found("workers")


def test_it_leaves_nothing_behind(sick: tuple[Seen, str], s3: str) -> None:
    assert [name for name in Storage(s3).find() if name.startswith("doctor-runs/")] == []


def test_no_secret_is_printed(healthy: Seen, sick: tuple[Seen, str]) -> None:
    for value in SECRETS.values():
        assert value not in healthy.text and value not in sick[0].text
    assert "RAY_AUTH_TOKEN" in healthy.found("authentication") and "from env" in healthy.found("credentials")


@pytest.mark.parametrize(
    ("name", "state", "words", "mend"),
    [
        ("packages", "failure", "numpy 1.26.0, needed >=2.1", "pip install 'numpy>=2.1'"),
        ("agreement", "failure", "numpy: ", "same versions on all nodes"),
        ("byte code", "warning", "PYTHONDONTWRITEBYTECODE is set", "unset it"),
        ("threads", "warning", "OMP_NUM_THREADS=512", "unset OMP_NUM_THREADS"),
        ("S3 endpoint", "failure", "http://127.0.0.1:9", "AWS_ENDPOINT_URL"),
        ("storage", "failure", "cannot write", "AWS_ENDPOINT_URL"),
        ("clocks", "failure", "3600.0 s ahead", "NTP"),
        ("gloo", "failure", "nowhere0", "GLOO_SOCKET_IFNAME"),
    ],
)
def test_a_fault_of_one_node_is_named_with_the_node_and_its_mend(
    sick: tuple[Seen, str], name: str, state: str, words: str, mend: str
) -> None:
    seen, node = sick
    assert seen.state(name) == state, seen.checks[name]
    assert words in seen.found(name) and node in seen.found(name) and mend in seen.mend(name)
    assert seen.code == 1


def test_faults_of_the_cluster(sick: tuple[Seen, str], cluster: LocalCluster) -> None:
    seen, _ = sick
    assert seen.state("workers") == "failure"
    # Head 2, node 2, the old one 2; the one that leaves counts for nothing.
    assert "--workers 80: the cluster has places for 6" in seen.found("workers") and "ask for 1:6" in seen.mend("workers")
    assert seen.state("leaving nodes") == "warning" and cluster.nodes[-1].node_id[:8] in seen.found("leaving nodes")
    assert seen.state("data") == "failure" and "no manifest.json" in seen.found("data")
    assert seen.state("spot nodes") == "ok" and "1 of 4" in seen.found("spot nodes")


def test_another_token(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token-0123456789abcdef0123")
    seen = Seen()
    assert seen.code == 1 and list(seen.checks) == ["authentication"] and "another-token" not in seen.text
    assert "refuses the token in RAY_AUTH_TOKEN" in seen.found("authentication")
    assert "ray get-auth-token" in seen.mend("authentication")


def test_the_autoscalers_maxima_count(cluster: LocalCluster, sick: tuple[Seen, str]) -> None:
    group = NodeGroupConfig(name="workers", resources={"CPU": 4}, max_count=3)
    GcsClient(address=cluster.address).report_cluster_config(ClusterConfig(node_group_configs=[group]).SerializeToString())
    with Cluster.connected() as seen:
        can = {low: check_workers(Elastic(min=low, max=20), {"CPU": 1}, seen.about, seen.groups) for low in (6, 12, 13)}
    assert seen.groups == {"workers": ({"CPU": 4}, 3)}
    assert [can[6].state, can[12].state, can[13].state] == [State.WARNING, State.WARNING, State.FAILURE]
    assert "the autoscaler up to 12" in can[13].found and "ask for 1:12" in can[13].mend
