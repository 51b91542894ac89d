"""What runs on every node. It is sent there as code, so it must work where swav-ray is missing or another version:
the standard library alone at the top (and what needs no more and goes along), plain values as answers, and of the
environment only the names listed here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from swav_ray.train.network import talk_over

# Whose values are told; none of them is a secret.
TOLD = (
    "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS",
    "RAY_JOB_STOP_WAIT_TIME_S",
    "RAY_AUTH_MODE",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
GPU_QUERY = "name,driver_version,memory.total"
# In a process of its own: Ray hides GPUs from whoever asked for none, and the answer costs an import of torch.
TORCH_QUERY = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({"usable": torch.cuda.device_count() if found else 0, "cuda": torch.version.cuda or ""}))
"""
SUBPROCESS_SECONDS = 60


def facts(packages: list[str], folders: list[str]) -> dict[str, Any]:
    """What this node is.

    Args:
        packages: whose versions are wanted.
        folders: whose room on disk is wanted; those that are not there stand for the nearest folder above that is.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "cpus": _cpus(),
        "memory": _memory(),
        "environment": {name: os.environ[name] for name in TOLD if os.environ.get(name)},
        "token": token(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "shared_memory": room("/dev/shm") if Path("/dev/shm").is_dir() else None,
        "container": any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        "short_lived_ports": _short_lived_ports(),
        "disks": {folder: room(folder) for folder in folders},
        "gpus": _gpus(),
    }


def ray_folder() -> str:
    """Where Ray keeps this node's logs and spilled objects."""
    import ray

    return str(ray.get_runtime_context().get_temp_dir())


def now() -> float:
    """Seconds since the epoch by this node's clock."""
    return time.time()


def load_torch() -> str:
    """So that what is measured next is not an import."""
    import torch.distributed

    return str(torch.__version__)


def free_address(host: str) -> str:
    """``HOST:PORT`` of a port that is free on this node."""
    with socket.socket() as place:
        place.bind(("", 0))
        return f"{host}:{place.getsockname()[1]}"


def all_reduce(rank: int, size: int, address: str, backend: str, seconds: float) -> float:
    """Sum ones over all ranks, as training does; seconds that it took once all were connected."""
    import datetime

    import ray
    import torch
    import torch.distributed as dist

    talk_over(ray.util.get_node_ip_address())
    limit = datetime.timedelta(seconds=seconds)
    try:
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=limit)
        values = torch.ones(2**16, device="cuda" if backend == "nccl" else "cpu")
        started = time.monotonic()
        dist.all_reduce(values)
        total = float(values[-1])
        if total != size:
            raise RuntimeError(f"the sum over {size} ranks is {total:g}")
        return time.monotonic() - started
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpus() -> float:
    """Those that this process may use: fewer than the machine's in a container."""
    count: float = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, int(quota) / int(period))  # ValueError: `max`, no limit
    return count


def _memory() -> int:
    """Bytes of the machine, or of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total


def token() -> dict[str, Any]:
    """Where Ray would find its authentication token, in the order Ray looks; never the token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"source": "RAY_AUTH_TOKEN"}
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    source = "RAY_AUTH_TOKEN_PATH" if named else "~/.ray/auth_token"
    try:
        mode = path.stat().st_mode
    except OSError:
        return {"source": "", "missing": source if named else ""}
    return {"source": source, "open_to_others": bool(mode & (stat.S_IRGRP | stat.S_IROTH))}


def room(folder: str) -> dict[str, int] | None:
    """Bytes of the disk on which a folder lies, or would if it were made; None where that is not known."""
    path = Path(folder)
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  Path's raises where one may not enter
        path = path.parent
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return {"total": usage.total, "free": usage.free}


def _short_lived_ports() -> list[int]:
    try:
        return [int(port) for port in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()]
    except (OSError, ValueError):
        return []


def _gpus() -> dict[str, Any]:
    """Of the driver: `devices` (memory 0: the machine's own), and `odd`, what else it said; of torch, asked only where there
    are any: `usable` and `cuda`, or `problem`."""
    found: dict[str, Any] = {"devices": [], "odd": ""}
    try:
        query = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=SUBPROCESS_SECONDS)
    except FileNotFoundError:
        return found
    except (OSError, subprocess.SubprocessError) as error:
        return found | {"driver_problem": f"nvidia-smi: {type(error).__name__}"}
    if said.returncode:
        lines = (said.stderr or said.stdout).strip().splitlines()
        if "No devices were found" in said.stderr + said.stdout:
            return found
        return found | {"driver_problem": f"nvidia-smi: {lines[0][:200] if lines else f'exit code {said.returncode}'}"}
    for line in said.stdout.strip().splitlines():
        try:
            name, driver, memory = (part.strip() for part in line.rsplit(",", 2))
            mebibytes = 0 if memory == "[N/A]" else int(float(memory))  # as of GPUs that share the machine's
        except ValueError:
            found["odd"] = line[:200]
            continue
        found["devices"].append({"name": name, "driver": driver, "memory": mebibytes * 2**20})
    if not found["devices"]:
        return found | {"driver_problem": f"nvidia-smi: {found['odd']}"} if found["odd"] else found
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        said = subprocess.run(
            [sys.executable, "-c", TORCH_QUERY], capture_output=True, text=True, timeout=SUBPROCESS_SECONDS, env=environment
        )
        found |= json.loads(said.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return found | {"problem": f"torch does not answer: {type(error).__name__}"}
    why = [line for line in said.stderr.splitlines() if "CUDA" in line or "NVIDIA" in line]
    return found | {"why": why[0].strip()[:300] if why else ""}
