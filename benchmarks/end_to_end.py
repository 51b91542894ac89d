"""Pictures a second from shards into training steps, and the share of the time that a step waits for its data.

    python -m benchmarks.end_to_end [--quick] [--cores 16] [--steps 60] [--crop-in worker|ray|both] [--set KEY=VALUE ...]

Shards of generated pictures (500 x 375, about 98 KB), the published crops (2 of 224 px, 6 of 96 px), a ResNet-50 on the GPU if
there is one, else (or with --quick) a small network on the CPU, which says only that the command works. One process trains; as
many threads, or tasks of Ray Data, crop as there are cores. The first steps are not counted. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Generator
from typing import Any

import torch

from benchmarks.input import pictures
from swav_ray.config import Config, load_config
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.multicrop import ready
from swav_ray.data.sharding import write_shards
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch, Position
from swav_ray.train.faults import Faults
from swav_ray.train.feed import batches
from swav_ray.train.loop import Training
from swav_ray.train.world import World

UNCOUNTED = 10  # steps while queues fill and libraries choose their kernels


class Clock:
    """Passes ``steps`` batches on and notes how long the training waited for each."""

    def __init__(self, source: Generator[Batch], steps: int, device: torch.device) -> None:
        self.source, self.steps, self.device = source, steps, device
        self.waited, self.rows, self.seconds = 0.0, 0, 0.0

    def __iter__(self) -> Generator[Batch]:
        began = 0.0
        for step in range(self.steps + UNCOUNTED):
            if step == UNCOUNTED:
                self._settle()
                began = time.perf_counter()
            before = time.perf_counter()
            batch = next(self.source)
            if step >= UNCOUNTED:
                self.waited += time.perf_counter() - before
                self.rows += batch.global_rows
            yield batch
        self._settle()
        self.seconds = time.perf_counter() - began

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(config: Config, steps: int, device: torch.device) -> dict[str, float]:
    run = Storage(tempfile.mkdtemp(prefix="swav-ray-"))
    training = Training(config, run, World(device=device), lambda row: None, Faults([]))
    stream = batches(training.stream, Position(), World(device=device))
    clock = Clock(stream, steps, device)
    training.run_to_end(iter(clock))
    stream.close()
    return {"images_per_s": clock.rows / clock.seconds, "data_wait_share": clock.waited / clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few steps")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--crop-in", choices=("worker", "ray", "both"), default="both")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not args.quick else "cpu")
    small: dict[str, Any] = {"backbone.arch": "resnet10", "backbone.base_width": 8, "global_batch_size": 64}
    steps = 10 if args.quick else args.steps
    given = dict(pair.split("=", 1) for pair in args.set)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"python {' '.join(sys.argv)}: {name}, {args.cores} cores to crop, load {os.getloadavg()[0]:.1f}")
    contents = pictures(100 if args.quick else 300)
    found: dict[str, Any] = {"device": name, "cores": args.cores}
    with tempfile.TemporaryDirectory() as folder:
        count = 1024 if args.quick else 8192
        sources = [Source(f"{n:06d}", -1, lambda n=n: contents[n % len(contents)]) for n in range(count)]
        write_shards([Listed(sources)], [], Storage(folder))
        for where in ("worker", "ray") if args.crop_in == "both" else (args.crop_in,):
            config = load_config(
                "imagenet-200ep-bs256",
                {
                    "data.train": folder,
                    "data.crop_in": where,
                    "data.bridge_seconds": 0,
                    "elastic.cpus_per_worker": args.cores,
                    "epochs": 1000,
                    "probe.every_epochs": 0,
                    "checkpoint.every_seconds": 1e9,
                    **({} if device.type == "cuda" else small),
                    **given,
                },
            )
            ready(config)
            if where == "ray":
                from swav_ray.train.session import connect

                connect(cpus=args.cores)
            found[where] = {key: round(value, 4) for key, value in measure(config, steps, device).items()}
            seen = found[where]
            print(f"{where}: {seen['images_per_s']:.0f} pictures/s, waits for data {seen['data_wait_share']:.1%} of the time")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
