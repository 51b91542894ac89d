"""Why a process cannot join a cluster, each in one line: on a real one, as a command on its machine is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from benchmarks.cluster import LocalCluster

ROOT = Path(__file__).parents[2]
METADATA = (b"CLUSTER_METADATA", "cluster")  # where Ray keeps its versions: key and namespace


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as head:
        yield head


def refused(address: str, *before: str, **environment: str) -> str:
    """The one line of a command that cannot join."""
    command = [*before, sys.executable, "-m", "swav_ray", "doctor"]
    given = {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | given)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_an_address_that_is_none() -> None:
    line = refused("head")
    assert line.startswith("swav-ray: RAY_ADDRESS = head: Invalid address format") and "give HOST:6379" in line


def test_another_python_than_the_clusters(cluster: LocalCluster) -> None:
    control = GcsClient(address=cluster.address)
    key, namespace = METADATA
    before = control.internal_kv_get(key, namespace=namespace)
    other = json.loads(before) | {"python_version": "3.9.1"}
    control.internal_kv_put(key, json.dumps(other).encode(), overwrite=True, namespace=namespace)
    try:
        line = refused(cluster.address)
    finally:
        control.internal_kv_put(key, before, overwrite=True, namespace=namespace)
    assert f"RAY_ADDRESS = {cluster.address}: Version mismatch" in line and "Python: 3.9.1" in line
    assert "use the same Python and Ray as the cluster" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_machine_that_is_no_node(cluster: LocalCluster) -> None:
    """One that sees no process of the cluster, but reaches it."""
    elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"]
    line = refused(cluster.address, *elsewhere, RAY_gcs_server_request_timeout_seconds="3")
    assert "the cluster answers, but no node of it runs on this machine" in line and "swav-ray submit" in line
