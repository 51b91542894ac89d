"""Several Ray nodes on this machine, and the hand that disturbs them by a schedule.

    with LocalCluster(nodes=3) as cluster:
        ray.init(address=cluster.address)
        with ClusterDriver(cluster, disturbances(seed, 900, kill_every=180, ...)) as driver:
            train()
        driver.log     # what was done, and when

A node is a raylet with its processes and one `slot`; the head has none. Killing one is what losing a machine looks like
from outside: all its processes at once, without a word.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from swav_ray.train.disturbances import Disturbance
from swav_ray.train.notice import drain

GRACE_S = 10.0  # a node's processes have so long to end by themselves before they are killed


class LocalCluster:
    """A head without slots and ``nodes`` nodes with one each; closing it ends exactly what it started.

    Args:
        nodes: how many at first.
        cpus: logical CPUs of a node; `head_cpus` those of the head, where controllers and data tasks find room.
        system_config: of Ray, such as ``{"health_check_period_ms": 1000}``.
    """

    def __init__(
        self, nodes: int = 0, *, cpus: float = 2, head_cpus: float = 2, system_config: dict[str, Any] | None = None
    ) -> None:
        from ray.cluster_utils import Cluster

        # Ray notes the newest cluster in its temporary folder, and whatever calls a bare ray.init() joins that one.
        self._folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # short: socket paths end at 107 characters
        self._environment = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "PYTHONDONTWRITEBYTECODE")}
        os.environ["RAY_TMPDIR"] = self._folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every worker compiles torch anew
        self._cpus = cpus
        self._family: dict[int, psutil.Process] = {}  # whatever was seen below the raylets
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": head_cpus, "_system_config": system_config, "include_dashboard": False},
        )
        self.nodes: list[Any] = []  # oldest first
        self.draining: set[str] = set()  # node ids
        for _ in range(nodes):
            self.add_node()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def usable(self) -> list[Any]:
        """Nodes without notice, oldest first."""
        return [node for node in self.nodes if node.node_id not in self.draining]

    def add_node(self) -> Any:
        # Ray's hooks for the end of this process can be set by its main thread only. A node without them ends with this
        # object, or, should this process be killed, a minute after its head.
        self._cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
        node = self._cluster.add_node(num_cpus=self._cpus, resources={"slot": 1})
        self.nodes.append(node)
        return node

    def drain_node(self, node: Any, seconds: float, message: str = "a drain by the benchmark") -> None:
        """Give ``node`` notice: it will be gone in so many seconds. Taking it away is the caller's, as it is the cloud's."""
        drain(self.address, node.node_id, seconds, message)
        self.draining.add(node.node_id)

    def remove_node(self, node: Any) -> None:
        """Take it away gently; Ray hears of it at once."""
        family = self.processes(node)
        self._forget(node, allow_graceful=True)
        _, alive = psutil.wait_procs(family, timeout=GRACE_S)
        _kill(alive)

    def kill_node(self, node: Any) -> None:
        """SIGKILL of the raylet and everything below it."""
        _kill(self.processes(node))
        self._forget(node, allow_graceful=False)

    def processes(self, node: Any) -> list[psutil.Process]:
        """The raylet of a node, then what it started."""
        try:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            family = [raylet, *raylet.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self._family.update((process.pid, process) for process in family)
        return family

    def worker_pids(self, name: str = "RayTrainWorker") -> list[int]:
        """Pids of actors of that class on all nodes."""
        found = []
        for node in self.nodes:
            for process in self.processes(node):
                try:
                    title = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                if title.startswith("ray::") and name in title:
                    found.append(process.pid)
        return sorted(found)

    def close(self) -> None:
        import ray

        if ray.is_initialized() and ray.get_runtime_context().gcs_address == self.address:
            ray.shutdown()
        for node in [*self.nodes, self._cluster.head_node]:
            self.processes(node)
        self._cluster.shutdown()
        _, alive = psutil.wait_procs(list(self._family.values()), timeout=GRACE_S)
        _kill(alive)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self, node: Any, *, allow_graceful: bool) -> None:
        self._cluster.remove_node(node, allow_graceful=allow_graceful)
        self.nodes.remove(node)
        self.draining.discard(node.node_id)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class ClusterDriver:
    """Applies a schedule to a cluster from a thread; stopping it is immediate and raises what went wrong in there.

    Args:
        cluster: with as many usable nodes as the schedule begins with.
        schedule: of :func:`swav_ray.train.disturbances.disturbances`.
        worker_pids: the live workers of the run; those of Ray Train unless given.

    Attributes:
        log: a row for everything done: ``planned`` and ``at`` (seconds since the start), ``monotonic`` and ``wall`` (the clocks
            at ``at``), ``kind``, ``target`` (node id or pid, None where there was nobody), ``nodes`` (usable ones after it).
    """

    def __init__(
        self, cluster: LocalCluster, schedule: Sequence[Disturbance], *, worker_pids: Callable[[], list[int]] | None = None
    ) -> None:
        self.cluster, self.log = cluster, list[dict[str, Any]]()
        self._worker_pids = worker_pids or cluster.worker_pids
        self._order = itertools.count()  # of what falls on the same time
        self._due: list[tuple[float, int, Callable[[], tuple[str, Any]]]] = []
        for disturbance in schedule:
            self._at(disturbance.at_seconds, lambda disturbance=disturbance: self._do(disturbance))
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="disturbances", daemon=True)

    def start(self) -> None:
        self._started = time.monotonic()
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Whether the whole schedule has been done within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> ClusterDriver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _at(self, seconds: float, action: Callable[[], tuple[str, Any]]) -> None:
        heapq.heappush(self._due, (seconds, next(self._order), action))

    def _run(self) -> None:
        try:
            while self._due:
                planned, _, action = self._due[0]
                if self._stopped.wait(max(0.0, self._started + planned - time.monotonic())):
                    return
                heapq.heappop(self._due)
                now, wall = time.monotonic(), time.time()
                kind, target = action()
                row = {"planned": planned, "at": now - self._started, "wall": wall, "monotonic": now}
                self.log.append(row | {"kind": kind, "target": target, "nodes": len(self.cluster.usable)})
        except BaseException as error:
            self._error = error

    def _do(self, disturbance: Disturbance) -> tuple[str, Any]:
        kind, cluster = disturbance.kind, self.cluster
        if kind == "add_node":
            return kind, cluster.add_node().node_id
        if kind == "kill_worker":
            pids = self._worker_pids()
            pid = disturbance.choose(pids)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            return kind, pid
        node = disturbance.choose(cluster.usable)
        if kind == "kill_node":
            cluster.kill_node(node)
            return kind, node.node_id
        cluster.drain_node(node, disturbance.notice_seconds)
        self._at(time.monotonic() - self._started + disturbance.notice_seconds, lambda: self._remove(node))
        return "drain_node", node.node_id

    def _remove(self, node: Any) -> tuple[str, Any]:
        self.cluster.remove_node(node)
        return "remove_node", node.node_id
