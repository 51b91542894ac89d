"""What the workers of a step say to each other: how often, how much, and what it costs when every word takes a millisecond.

    python -m benchmarks.collectives [--quick] [--workers 1,2,4,8] [--latency 0.001]

A tiny model on gloo processes of one machine, the global batch growing with them. Counted on every worker: all-reduces of
codes, of batch norm and of all else, buckets of gradients, and their bytes. Then a ResNet-18's step on two processes with
every all-reduce delayed by the simulated latency (one after the other, as on a network, while gradients' buckets are not):
the share of the step that codes take, against codes made crop by crop as in the reference. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step import load
from swav_ray.config import Config
from swav_ray.data.stream import Position
from swav_ray.swav.sinkhorn import sinkhorn
from swav_ray.train.bench import Stopwatch, begin
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World

TINY = {
    "backbone.arch": "resnet10",
    "backbone.base_width": 8,
    "backbone.stem": "small",
    "crop_sizes": [16, 12],
    "crop_counts": [2, 2],
    "hidden_dim": 32,
    "feature_dim": 16,
    "num_prototypes": 50,
}
RESNET18 = {"backbone.arch": "resnet18", "crop_sizes": [96, 48], "crop_counts": [2, 4], "num_prototypes": 3000}
ROWS = 16  # of a worker


class Ear:
    """Hears every all-reduce of this process: counts it under the part of the step it belongs to, and may delay it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.latency, self.part = 0.0, "other"
        self._plain: Any = dist.all_reduce

    def all_reduce(self, tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
        # Batch norm's happen within the forward and backward pass, under no name of their own.
        part = {"codes": "codes", "forward": "batch norm", "backward": "batch norm"}.get(self.part, "other")
        self.calls[part] += 1
        self.bytes[part] += tensor.numel() * tensor.element_size()
        if self.latency:
            time.sleep(self.latency)
        return self._plain(tensor, *args, **named)

    def bucket(self, _: object, bucket: Any) -> Any:
        self.calls["gradients"] += 1
        self.bytes["gradients"] += bucket.buffer().numel() * bucket.buffer().element_size()
        return default_hooks.allreduce_hook(None, bucket)


def _named_hook(state, bucket):  # DDP refuses annotations in quotes
    return state.bucket(None, bucket)


class Parts(Stopwatch):
    """Tells the ear which part of the step runs."""

    def __init__(self, training: Any, ear: Ear) -> None:
        super().__init__(training)
        self.ear = ear

    def __call__(self, name: str) -> Any:
        self.ear.part = name
        return super().__call__(name)


def rank(number: int, workers: int, folder: str, values: dict[str, Any], steps: int, latency: float, answers: Any) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=workers)
    ear = Ear()
    dist.all_reduce = ear.all_reduce
    config = config_of(values, workers)
    training = begin(config, World.join(torch.device("cpu")), SyntheticStream(config), f"{folder}/{number}")
    training.part_of_step = Parts(training, ear)
    if isinstance(training._forward, DistributedDataParallel):
        training._forward.register_comm_hook(ear, _named_hook)
    batches = training.stream.local(Position(), number, workers)
    for _ in range(2):  # DDP makes its buckets anew after the first
        training._train_step(next(batches))
    ear.calls.clear(), ear.bytes.clear(), training.part_of_step.seconds.clear()
    ear.latency = latency
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        training._train_step(next(batches))
        took.append(time.perf_counter() - began)
    calls, sizes = dict(ear.calls), dict(ear.bytes)
    codes = training.part_of_step.seconds["codes"] / steps
    # The reference's way: each assigned crop by itself.
    scores, one_by_one = torch.randn(2, ROWS, config.num_prototypes).clamp(-1, 1), []
    for _ in range(steps):
        began = time.perf_counter()
        for crop in scores:
            sinkhorn(crop, group=training.world.group)
        one_by_one.append(time.perf_counter() - began)
    answers.put(
        {
            "rank": number,
            "calls": {part: count / steps for part, count in calls.items()},
            "bytes": {part: size / steps for part, size in sizes.items()},
            "step": statistics.median(took),
            "codes": codes,
            "one_by_one": statistics.median(one_by_one),
        }
    )
    dist.barrier()


def config_of(values: dict[str, Any], workers: int) -> Config:
    return load(
        {
            "global_batch_size": ROWS * workers,
            "data.block_rows": ROWS,
            "elastic.min": workers,
            "elastic.max": workers,
            "queue_length": 0,
            "freeze_prototypes_epochs": 0,
            "warmup_epochs": 0,
            **values,
        }
    )


def heard(workers: int, values: dict[str, Any], steps: int, latency: float = 0.0) -> list[dict[str, Any]]:
    """What each worker heard and took, by rank."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        job = (workers, folder, values, steps, latency, answers)
        processes = [context.Process(target=rank, args=(number, *job), daemon=True) for number in range(workers)]
        for process in processes:
            process.start()
        found = [answers.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
    return sorted(found, key=lambda answer: answer["rank"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8")
    parser.add_argument("--latency", type=float, default=0.001, help="seconds, simulated")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="1, 2 and 4 workers, few steps")
    options = parser.parse_args()
    counts = [1, 2, 4] if options.quick else [int(count) for count in options.workers.split(",")]
    steps = 3 if options.quick else options.steps
    table: dict[int, dict[str, Any]] = {}
    for workers in counts:
        answers = heard(workers, TINY, steps)
        table[workers] = answers[0]
        assert all(answer["calls"] == answers[0]["calls"] for answer in answers), "workers differ"
        print(f"{workers} workers: a step and worker: calls {answers[0]['calls']}, bytes {answers[0]['bytes']}", flush=True)
    several = [table[workers] for workers in counts if workers > 1]
    constant = all(one["calls"] == several[0]["calls"] and one["bytes"] == several[0]["bytes"] for one in several)
    slow = heard(2, RESNET18, steps, options.latency)[0]
    share, other = slow["codes"] / slow["step"], slow["one_by_one"] / slow["step"]
    print(
        f"ResNet-18, 2 workers of {ROWS} rows, {1e3 * options.latency:g} ms a word: step {1e3 * slow['step']:.0f} ms, codes "
        f"{1e3 * slow['codes']:.1f} ms ({share:.1%}); crop by crop {1e3 * slow['one_by_one']:.1f} ms ({other:.1%})"
    )
    print(
        json.dumps(
            {
                "constant": constant,
                "codes_all_reduces": several[0]["calls"]["codes"],
                "calls": several[0]["calls"],
                "bytes": several[0]["bytes"],
                "codes_share": round(share, 4),
                "codes_share_crop_by_crop": round(other, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
