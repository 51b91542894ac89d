"""A Ray head as `ray start` makes one, dashboard and token authentication on, and its autoscaler if it has one.

    with Head(cpus=2) as head:
        subprocess.run(["ray", "job", "submit", ...], env=head.client_environment())

Every port is a free one, so that several heads stand beside each other; closing it ends exactly what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import requests
from ray.util import get_node_ip_address

from benchmarks.local_nodes import HEAD_ID, HEAD_TYPE, WORKER_TYPE, end_family

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
_RAY_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONDONTWRITEBYTECODE")


class Head:
    """The head of a cluster, alone; with ``nodes``, one whose autoscaler starts and ends worker nodes.

    Args:
        cpus: of the head.
        nodes: of each worker node what it has, as ``{"CPU": 1, "slot": 1}``; None: no autoscaler.
        max_nodes: how many the autoscaler may have; `capacity` how many there are to be had (:meth:`set_capacity`).
        idle_seconds: before a node without work is ended.
        environment: variables of the head and its nodes.
    """

    def __init__(
        self,
        *,
        cpus: int = 2,
        nodes: dict[str, float] | None = None,
        max_nodes: int = 4,
        capacity: int | None = None,
        idle_seconds: float = 60.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: socket paths end at 107 characters
        self.token = secrets.token_hex(32)
        self.token_file = self.folder / "token"
        self.token_file.write_text(self.token)
        ports = _free_ports(6)
        self.address, self.dashboard = f"{get_node_ip_address()}:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self.metrics_port = ports[4]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--port", str(ports[0]), "--num-cpus", str(cpus)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports[1])),
            *("--dashboard-agent-listen-port", str(ports[2]), "--ray-client-server-port", str(ports[3])),
            *("--metrics-export-port", str(ports[4]), "--runtime-env-agent-port", str(ports[5])),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--object-store-memory", str(2**28), "--temp-dir", str(self.folder / "ray")),
        ]
        kept = {name: value for name, value in os.environ.items() if name not in _RAY_VARIABLES}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])  # where jobs find `python`
        self._environment = {
            **kept,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),  # there is one, so `ray start` asks everybody for it
            **(environment or {}),
        }
        if nodes is not None:
            self.set_capacity(max_nodes if capacity is None else capacity)
            config = self._autoscaling(nodes, max_nodes, idle_seconds)
            (self.folder / "cluster.json").write_text(json.dumps(config))
            command += ["--autoscaling-config", str(self.folder / "cluster.json")]
            self._environment |= {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "RAY_NODE_TYPE_NAME": HEAD_TYPE,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        self._output = (self.folder / "head.out").open("w")
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _autoscaling(self, nodes: dict[str, float], max_nodes: int, idle_seconds: float) -> dict[str, Any]:
        return {
            "cluster_name": "local",
            "max_workers": max_nodes,
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                "type": "external",
                "module": "benchmarks.local_nodes.LocalNodes",
                "gcs_address": self.address,
                "folder": str(self.folder),
                "capacity_file": str(self.folder / "capacity"),
                "disable_node_updaters": True,
            },
            "head_node_type": HEAD_TYPE,
            **{f"{name}_commands": [] for name in COMMANDS},  # of machines reached by ssh; Ray insists on them
            "cluster_synced_files": [],
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                WORKER_TYPE: {"resources": nodes, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
            },
        }

    def set_capacity(self, machines: int) -> None:
        """From now on the "cloud" has so many."""
        (self.folder / "capacity").write_text(str(machines))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"no head: {(self.folder / 'head.out').read_text()[-2000:]}")
            with contextlib.suppress(requests.RequestException, ValueError):
                if "ray_version" in self.get("/api/version").json() and self.get("/api/jobs/").ok:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no dashboard within {START_SECONDS:.0f} s")

    def get(self, path: str) -> requests.Response:
        """An answer of the dashboard."""
        return requests.get(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=10)

    def nodes(self) -> int:
        """Worker nodes that are alive, as the dashboard counts them."""
        rows = self.get("/nodes?view=summary").json()["data"]["summary"]
        return max(0, sum(row["raylet"]["state"] == "ALIVE" for row in rows) - 1)

    def client_environment(self, **more: str) -> dict[str, str]:
        """Of a process on a laptop that knows where the cluster is and has its token."""
        kept = {name: value for name, value in os.environ.items() if name not in _RAY_VARIABLES}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        return {**kept, "PYTHONPATH": str(ROOT), "RAY_API_SERVER_ADDRESS": self.dashboard, **token, **more}

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            end_family(self._process.pid)
            _, alive = psutil.wait_procs(family, timeout=5)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; what the system picks lies above those that Ray gives its workers."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
