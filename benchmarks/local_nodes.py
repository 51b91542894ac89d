"""Machines that a Ray autoscaler starts and ends, on this machine: a node is a `ray start` with its processes.

Ray ships a fake provider for its own tests; its wheel lacks the file it reads, and what starts it begins with a global
`ray stop --force` (Ray 2.60). This one is an *external* provider, as Ray documents them, and ends exactly what it started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD_TYPE, WORKER_TYPE = "head", "worker"
HEAD_ID = "f" * 51 + "00000"  # of the cloud's instance, and of the Ray node where Ray asks for one
GRACE_SECONDS = 5.0


class LocalNodes(NodeProvider):
    """The provider; lives in the autoscaler's process.

    Its section of the cluster's configuration has ``gcs_address``, ``folder`` for the nodes' output, and ``capacity_file``,
    which holds how many machines the "cloud" has at present; asked for more it refuses, as a cloud does.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._lock = threading.RLock()
        self._count = 0
        self._tags = {HEAD_ID: {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [name for name, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        with self._lock:
            return dict(self._tags[node_id])

    def external_ip(self, node_id: str) -> str:
        return node_id

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._lock:
            self._tags[node_id] |= tags

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        with self._lock:
            capacity = int(Path(self.provider_config["capacity_file"]).read_text())
            for _ in range(count):
                if len(self._processes) >= capacity:
                    raise RuntimeError(f"no capacity for another machine: {capacity} are all there are")
                self._start(tags, dict(resources))

    def _start(self, tags: dict[str, str], resources: dict[str, float]) -> None:
        self._count += 1
        name = "f" * 51 + f"{self._count:05d}"
        environment = {
            **os.environ,
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name,
            "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
        }
        cpus = resources.pop("CPU", 0)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *("--address", self.provider_config["gcs_address"]),
            *("--num-cpus", str(int(cpus)), "--resources", json.dumps(resources), "--object-store-memory", str(2**27)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--temp-dir", f"{self.provider_config['folder']}/{self._count}"),  # a machine has its own
        ]
        output = (Path(self.provider_config["folder"]) / f"node-{self._count}.out").open("w")
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        self._processes[name] = process
        self._tags[name] = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE, **tags}

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            self._tags.pop(node_id, None)
            process = self._processes.pop(node_id, None)
        if process is not None:
            end_family(process.pid)
            process.wait()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config


def end_family(pid: int) -> None:
    """End a process and all below it, gently first."""
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family = [parent, *parent.children(recursive=True)]
    parent.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
