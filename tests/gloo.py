"""Run a function on W real gloo processes and hand back what each rank returned.

    codes = run_ranks(2, codes_of_rank, scores_2BK)    # codes_of_rank(rank, scores_2BK) -> anything picklable

The function lives at the top of a module, so that a fresh process can import it; on each rank the default process
group is up when it starts. Processes come from a fork server that has torch loaded: a world costs a tenth of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "swav_ray.train.checkpoint", "s3fs", "pytest"])


class RankError(RuntimeError):
    """A rank raised, died or did not answer in time; the message holds the rank's own traceback."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """``[function(rank, *args) for rank in range(world_size)]``, each in its own process of one gloo world.

    Raises:
        RankError: with the traceback of every rank that had failed by then; the other ranks are killed.
    """
    # Bytes, not objects: a tensor sent as an object shares memory with a process that may be gone when it is read.
    job = pickle.dumps((function, args))
    with tempfile.TemporaryDirectory() as folder:
        processes, rank_of = [], {}
        try:
            for rank in range(world_size):
                ours, theirs = PROCESSES.Pipe(duplex=False)
                process = PROCESSES.Process(
                    target=_run_rank, args=(rank, world_size, Path(folder) / "rendezvous", job, theirs, timeout), daemon=True
                )
                process.start()
                theirs.close()  # so that a dead rank reads as end of file
                processes.append(process)
                rank_of[ours] = rank
            return _collect(rank_of, deadline=time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()  # a rank that has answered has nothing left to do
                process.join()


def _collect(rank_of: dict[Connection, int], *, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while rank_of:
        ready = wait(list(rank_of), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"no answer in time from ranks {sorted(rank_of.values())}")
        failures = []
        for connection in ready:
            rank = rank_of.pop(connection)
            try:
                succeeded, answer = connection.recv()
            except EOFError:
                succeeded, answer = False, "the process died without a word"
            if succeeded:
                results[rank] = pickle.loads(answer)
            else:
                failures.append(f"rank {rank} failed:\n{answer}")
        if failures:
            raise RankError("\n".join(failures))
    return [results[rank] for rank in sorted(results)]


def _run_rank(rank: int, world_size: int, rendezvous: Path, job: bytes, parent: Connection, timeout: float) -> None:
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # needs no host name that resolves
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
        )
        function, args = pickle.loads(job)
        answer = pickle.dumps(function(rank, *args))
        dist.barrier()  # no rank leaves while another still talks to it
        parent.send((True, answer))
    except BaseException:
        parent.send((False, traceback.format_exc()))
