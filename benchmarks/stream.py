"""Batches of crops through Ray Data, through the worker's own threads, and through a plain DataLoader.

    python -m benchmarks.stream [--quick] [--only local|s3] [--cores 2]

The same shards (pictures of 500 x 375, about 98 KB), the same `make_crops` (2 of 224 px, 6 of 96 px), the same batch, as many
processes or threads that crop as there are cores. They take turns; the first batches of a turn, in which queues fill, are
not counted.
  DataLoader   torch's, a process a core, each with its own row groups in random order, batches through shared memory
  worker       `data.crop_in: worker`: threads of the training process
  ray          `data.crop_in: ray`: read and cropped by tasks of Ray Data on a warm local cluster
Processor time is of all processes together (Ray's own included, the S3 server's not). The first batch is counted from asking
for the stream; `bridged` is what a training worker sees (`data.bridge_seconds`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.checkpoint import s3_server
from benchmarks.input import pictures
from swav_ray.config import Config, load_config
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.multicrop import make_crops, ready
from swav_ray.data.ray_tasks import stop, tables
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Position, Stream
from swav_ray.train.feed import batches
from swav_ray.train.world import World

GOAL, FIRST_GOAL = 0.95, 5.0
BATCH = 256
UNCOUNTED = 16  # batches while queues fill and processes start
LOOKS = 8  # at the memory, in a turn


@dataclass
class Turn:
    """One candidate's turn: pictures a second, processor milliseconds a picture, seconds to the first batch, MB over time."""

    rate: float
    cpu_ms: float
    first: float
    memory: list[float]

    @property
    def growth(self) -> float:
        """Memory of the second half of the turn over that of the first, at their most."""
        half = len(self.memory) // 2
        return max(self.memory[half:]) / max(self.memory[:half])


class Rows(IterableDataset[list[torch.Tensor]]):
    """Each process its share of the row groups, shuffled; whole batches."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        info = get_worker_info()
        shards, draws = Shards(self.config.data.train), np.random.default_rng(info.id)
        ids: list[str] = []
        jpegs: list[bytes] = []
        for epoch in range(self.config.epochs):
            for group in draws.permutation(np.arange(info.id, len(shards.rows_per_group), info.num_workers)):
                table = shards.read_group(int(group), ["id", "jpeg"])
                ids += table["id"].to_pylist()
                jpegs += table["jpeg"].to_pylist()
                while len(ids) >= BATCH:
                    crops = make_crops(self.config, epoch, ids[:BATCH], jpegs[:BATCH]).crops
                    yield [torch.from_numpy(group) for group in crops]
                    del ids[:BATCH], jpegs[:BATCH]


def dataloader(config: Config, cores: int) -> Iterator[Any]:
    yield from DataLoader(Rows(config), batch_size=None, num_workers=cores, prefetch_factor=2, multiprocessing_context="spawn")


def worker(config: Config, cores: int) -> Iterator[Any]:
    config = config.model_copy(update={"elastic": config.elastic.model_copy(update={"cpus_per_worker": cores})})
    return Stream(config).local(Position())


def on_ray(config: Config, _cores: int) -> Iterator[Any]:
    stream = Stream(config)
    legs = stream.on_ray(Position(), 1)
    mine = None

    def read() -> Iterator[Any]:
        nonlocal mine
        for (mine,) in legs:
            yield tables(mine)

    try:
        yield from stream.batches_of(Position(), read(), 0, 1)
    finally:
        if mine is not None:
            stop(mine)


def bridged(config: Config, _cores: int) -> Iterator[Any]:
    return batches(Stream(config), Position(), World())


CANDIDATES: dict[str, Callable[[Config, int], Iterator[Any]]] = {"DataLoader": dataloader, "worker": worker, "ray": on_ray}


def tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *(each for each in me.children(recursive=True) if "moto" not in " ".join(each.cmdline()))]


def processor_seconds() -> dict[int, float]:
    """Of each process; one that has ended in between is missing from the later look."""
    found = {}
    for process in tree():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def megabytes() -> float:
    """Memory of all processes, what they share by way of /dev/shm counted once; their code is not counted."""
    total = psutil.disk_usage("/dev/shm").used
    for process in tree():
        with contextlib.suppress(psutil.Error):
            info = process.memory_info()  # not smaps_rollup: the kernel would walk Ray's store for a fifth of a second
            total += info.rss - info.shared
    return total / 2**20


def turn(make: Callable[[Config, int], Iterator[Any]], config: Config, cores: int, seconds: float) -> Turn:
    """Batches for about ``seconds``, each touched as a training step would."""
    began = time.perf_counter()
    source = make(config, cores)
    first, memory, count = 0.0, [], 0
    start = now = 0.0
    before: dict[int, float] = {}
    for number, batch in enumerate(source, 1):
        now = time.perf_counter()
        if number == 1:
            first = now - began
        if number == UNCOUNTED:
            start, before = now, processor_seconds()
        if number > UNCOUNTED:
            count += 1
            crops = batch.crops if hasattr(batch, "crops") else batch
            assert sum(int(group[0, 0, 0, 0, 0]) for group in crops) >= 0
            if now - start > seconds * len(memory) / LOOKS:
                memory.append(megabytes())
            if len(memory) > LOOKS:
                break
    rows = count * BATCH
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in processor_seconds().items())
    figures = Turn(rows / (now - start), used * 1e3 / rows, first, memory)
    source.close()  # type: ignore[attr-defined]
    return figures


def measure(uri: str, cores: int, seconds: float, rounds: int) -> dict[str, Any]:
    overrides = {"data.train": uri, "global_batch_size": BATCH, "data.crop_in": "ray", "epochs": 1000}
    config = load_config("imagenet-200ep-bs256", overrides)
    turns: dict[str, list[Turn]] = {name: [] for name in CANDIDATES}
    for _ in range(rounds):
        for name, make in CANDIDATES.items():
            turns[name].append(turn(make, config, cores, seconds))
    began = time.perf_counter()
    source = bridged(config, cores)
    next(source)
    seen_first = time.perf_counter() - began
    source.close()  # type: ignore[attr-defined]
    where = "S3 on loopback" if uri.startswith("s3") else "local folder"
    columns = ("pictures/s", "of peer", "CPU ms each", "of peer", "first batch s", "MB", "growth")
    print(f"{where:16}" + "".join(f"{name:>15}" for name in columns))
    found: dict[str, Any] = {}
    for name, mine in turns.items():
        share = statistics.median(m.rate / p.rate for m, p in zip(mine, turns["DataLoader"], strict=True))
        cost = statistics.median(m.cpu_ms / p.cpu_ms for m, p in zip(mine, turns["DataLoader"], strict=True))
        rate, cpu, first = (statistics.median(getattr(m, key) for m in mine) for key in ("rate", "cpu_ms", "first"))
        memory, growth = (statistics.median(values) for values in ([max(m.memory) for m in mine], [m.growth for m in mine]))
        row = (f"{rate:.0f}", f"{share:.2f}", f"{cpu:.2f}", f"{cost:.2f}", f"{first:.1f}", f"{memory:.0f}", f"{growth:.2f}")
        print(f"{name:16}" + "".join(f"{value:>15}" for value in row))
        for key, value in (("of_dataloader", share), ("first", first), ("growth", growth)):
            found[f"{name}_{key}"] = round(value, 3)
    print(f"bridged: the first batch of a training worker after {seen_first:.1f} s")
    return {**found, "bridged_first": round(seen_first, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: one short round, the local folder")
    parser.add_argument("--only", choices=("local", "s3"))
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds, rounds = (5.0, 1) if args.quick else (args.seconds, args.rounds)
    torch.set_num_threads(1)
    ready(load_config("imagenet-200ep-bs256"))
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - by default 15: no match for a DataLoader beside other load
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that reads ahead would start a cluster of its own at the end
    from swav_ray.train.session import connect

    count = 2048 if args.quick else 8192
    contents = pictures(100 if args.quick else 300)
    load = os.getloadavg()[0]
    print(f"python {' '.join(sys.argv)}: {count} pictures, batches of {BATCH}, load {load:.1f} on {os.cpu_count()} cores")
    sources = [Source(f"{n:06d}", -1, lambda n=n: contents[n % len(contents)]) for n in range(count)]
    places = [args.only] if args.only else ["local"] if args.quick else ["local", "s3"]
    line: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        connect(cpus=args.cores)
        for place in places:
            dest = Storage(folder if place == "local" else f"{bucket}/shards")
            write_shards([Listed(sources)], [], dest)
            line[place] = measure(dest.uri, args.cores, seconds, rounds)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
