"""A measurement on several workers of this machine, without Ray: a process each, NCCL where each has a GPU, else gloo."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

from swav_ray.config import Config
from swav_ray.data.stream import Stream
from swav_ray.errors import UserError
from swav_ray.train.bench import Report, measure
from swav_ray.train.world import World


def measure_on(config: Config, workers: int, steps: int, *, synthetic: bool) -> Report:
    """:func:`~swav_ray.train.bench.measure` on so many processes; on one, in this very process.

    Raises:
        UserError: a process failed; its own words stand above.
    """
    if workers == 1:
        return measure(config, World(device=_device(0, 1)), steps, None if synthetic else Stream(config))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        job = (workers, folder, config.model_dump_json(), steps, synthetic)
        processes = [context.Process(target=_rank, args=(rank, *job), daemon=True) for rank in range(workers)]
        try:
            for process in processes:
                process.start()
            running = list(processes)
            while running:  # the first to fail ends all: the others would wait for it
                wait([process.sentinel for process in running])
                failed = [process.exitcode for process in running if process.exitcode]
                if failed:
                    raise UserError(f"--workers {workers}: a worker ended with code {failed[0]}; try --workers 1")
                running = [process for process in running if process.is_alive()]
        finally:
            for process in processes:
                process.kill()
        return Report(**json.loads((Path(folder) / "report.json").read_text()))


def _device(rank: int, workers: int) -> torch.device:
    """A GPU for each worker, or the CPU for all."""
    return torch.device("cuda", rank) if torch.cuda.device_count() >= workers else torch.device("cpu")


def _rank(rank: int, workers: int, folder: str, config: str, steps: int, synthetic: bool) -> None:
    device = _device(rank, workers)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    checked = Config.model_validate_json(config)
    report = measure(checked, World.join(device), steps, None if synthetic else Stream(checked))
    if rank == 0:
        (Path(folder) / "report.json").write_text(json.dumps(dataclasses.asdict(report)))
    dist.barrier()
    dist.destroy_process_group()
