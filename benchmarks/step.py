"""Our training step beside a plain one and one of lightly's modules, from the same weights on the same pictures.

    python -m benchmarks.step [--quick] [--rounds 20] [--profile] [--compile] [--set KEY=VALUE ...]
    python -m benchmarks.step --device cuda --backbone resnet50 --crops 2x224,6x96 --rows 128

Steps take turns within one run. On the CPU each kind has a process of its own with one thread, whose processor time is taken;
on a GPU all are in this process and the device is waited for. Medians. Ours begins with bytes, as a run does, the others with
normalised float32 crops that are given to them. The bf16 ratio is ours against the plain float32 step. The last line is JSON,
with images a second, share of the peak (a large matrix product) and, on a GPU, memory of our bf16 step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import LightlyStep, PlainStep
from swav_ray.cli.app import overrides_of
from swav_ray.config import Config, load_config
from swav_ray.data.stream import Position
from swav_ray.evaluate.features import normalise
from swav_ray.train.bench import begin, count_flops, device_name, measure_peak, wait_for
from swav_ray.train.build import build_model
from swav_ray.train.prefetch import on_device
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World

GOALS = {"fp32_ratio": 0.8, "bf16_ratio": 0.45}
# From the same weights the first float32 losses must agree (on a GPU convolutions are TF32); later ones part by rounding.
SAME_STEPS = 3
SAME = {"cpu": 1e-5, "cuda": 1e-2}
KINDS = {
    "plain": "float32",
    "ours": "float32",
    "ours bf16": "bf16-mixed",
    "lightly": "float32",
    "plain bf16": "bf16-mixed",
    "ours compiled": "float32",
    "ours bf16 compiled": "bf16-mixed",
}
QUICK = ("plain", "ours", "ours bf16", "lightly")


class Ours:
    """A :class:`Training`'s own steps."""

    def __init__(self, config: Config, device: torch.device, folder: str) -> None:
        stream = SyntheticStream(config)
        self.training = begin(config, World(device=device), stream, folder)
        self.batches = on_device(stream, stream.local(Position()), device)

    def step(self) -> Tensor:
        self.training._train_step(next(self.batches))
        self.training._pending.clear()  # lines of metrics, which are read and written every tenth step
        return self.training._pending_losses.pop()


def config_of(options: argparse.Namespace, kind: str) -> Config:
    counts, sizes = zip(*(map(int, group.split("x")) for group in options.crops.split(",")), strict=True)
    values = {
        "backbone.arch": options.backbone,
        "crop_counts": list(counts),
        "crop_sizes": list(sizes),
        "crop_min_scales": [0.14, 0.05][: len(sizes)],
        "crop_max_scales": [1.0, 0.14][: len(sizes)],
        "global_batch_size": options.rows,
        "data.block_rows": 1,
        "num_prototypes": options.prototypes,
        "queue_length": 0,
        "freeze_prototypes_epochs": 0,
        "warmup_epochs": 0,
        "base_lr": 0.1,
        "final_lr": 0.1,  # a constant rate, so that all take the same steps
        "elastic.min": 1,
        "elastic.max": 1,
        "precision": KINDS[kind],
        "compute.compile": "default" if "compiled" in kind else "off",
        **overrides_of(options.set),
    }
    return load(values)


def load(values: dict[str, Any]) -> Config:
    # More prototypes than rows are refused, for some would stay empty: no matter for time.
    wanted = values["num_prototypes"]
    return load_config("imagenet-100ep", values | {"num_prototypes": 2}).model_copy(update={"num_prototypes": wanted})


def make(kind: str, options: argparse.Namespace, device: torch.device, folder: str) -> Callable[[], Tensor]:
    """A step of ``kind`` as a function, from the weights that a run of this seed begins with."""
    config = config_of(options, kind)
    if kind.startswith("ours"):
        return Ours(config, device, f"{folder}/{kind}").step
    torch.manual_seed(config.seed)
    weights = build_model(config).state_dict()
    plain = kind.startswith("plain")
    step = (PlainStep(config, weights, device, bf16="bf16" in kind) if plain else LightlyStep(config, device)).step
    inputs = _floats(config)
    return lambda: step(next(inputs))


def _floats(config: Config) -> Iterator[list[Tensor]]:
    """What a loader of the plain kind brings: normalised float32 crops, rows first. The stream has two batches."""
    cpu, stream = torch.device("cpu"), SyntheticStream(config).local(Position())
    made = [
        [
            normalise(pixels, config.augment.mean, config.augment.std, cpu).contiguous()
            for group in next(stream).crops
            for pixels in group
        ]
        for _ in range(2)
    ]
    while True:
        yield from made


class Here:
    """A kind of step in this process; `take()` makes one: its loss, and its seconds."""

    def __init__(self, kind: str, options: argparse.Namespace, device: torch.device, folder: str) -> None:
        self.device, self.step = device, make(kind, options, device, folder)

    def take(self) -> tuple[float, float]:
        # On the CPU one thread works, whoever else is there; the processor's time is the step's.
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        wait_for(self.device)
        began = clock()
        loss = self.step()
        wait_for(self.device)
        return float(loss), clock() - began


class Apart:
    """The same in a process of its own, with its own memory and caches of compiled kernels."""

    def __init__(self, kind: str, options: argparse.Namespace, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, options, folder, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def take(self) -> tuple[float, float]:
        self.pipe.send("step")
        loss, seconds = self.pipe.recv()
        return loss, seconds


def _serve(kind: str, options: argparse.Namespace, folder: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    here = Here(kind, options, torch.device("cpu"), folder)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(here.take())


def compare(options: argparse.Namespace, device: torch.device, folder: str) -> None:
    apart = device.type == "cpu"
    wanted = [kind for kind in KINDS if (kind in QUICK or not options.quick) and (options.compile or "compiled" not in kind)]
    turns = {kind: Apart(kind, options, folder) if apart else Here(kind, options, device, folder) for kind in wanted}
    first: dict[str, list[float]] = {}
    for kind, turn in turns.items():
        began = time.perf_counter()
        first[kind] = [turn.take()[0] for _ in range(SAME_STEPS)]
        if kind != "lightly":  # whose weights are its own
            print(f"{kind:20} first losses {first[kind]}, {time.perf_counter() - began:.1f} s with its start", flush=True)
    differences = [abs(a / b - 1) for a, b in zip(first["ours"], first["plain"], strict=True)]
    assert differences[0] < SAME[device.type], f"not the same step: losses differ by {differences[0]:.1e}"

    seconds: dict[str, list[float]] = {kind: [] for kind in turns}
    for _ in range(3 if options.quick else options.rounds):
        for kind, turn in turns.items():
            seconds[kind].append(turn.take()[1])
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    print(f"\n{device_name(device)}: {options.backbone}, {options.crops}, {options.rows} rows, K {options.prototypes}")
    for kind, median in medians.items():
        spread = sorted(seconds[kind])
        between = f"({1e3 * spread[len(spread) // 4]:.1f} to {1e3 * spread[-1 - len(spread) // 4]:.1f})"
        print(f"{kind:20} {1e3 * median:8.1f} ms {between:20} {median / medians['plain']:.3f} of plain")
    mixed = config_of(options, "ours bf16")
    peak = measure_peak(mixed, device, time.process_time if apart else time.perf_counter)
    rate = options.rows / medians["ours bf16"]
    found: dict[str, Any] = {
        "fp32_ratio": round(medians["ours"] / medians["plain"], 3),
        "bf16_ratio": round(medians["ours bf16"] / medians["plain"], 3),
        "lightly_ratio": round(medians["ours"] / medians["lightly"], 3),
        "lightly_bf16_ratio": round(medians["ours bf16"] / medians["lightly"], 3),
        "loss_difference": max(differences),
        "images_per_second": round(rate, 1),
        "peak_share": round(count_flops(mixed, options.rows) / options.rows * rate / peak, 3),
        "peak_tflops": round(peak / 1e12, 3),
        "goals": GOALS,
    }
    if device.type == "cuda":
        ours = turns["ours bf16"]
        turns.clear()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        ours.take()
        found["step_memory_gib"] = round((torch.cuda.max_memory_allocated() - held) / 2**30, 2)
    if options.profile:
        for kind in ("ours", "ours bf16"):
            profile(kind, options, device, f"{folder}/profile")
    print(json.dumps(found))


def profile(kind: str, options: argparse.Namespace, device: torch.device, folder: str) -> None:
    """Print where our step's time goes, operator by operator."""
    step = make(kind, options, device, folder)
    step()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            step()
        wait_for(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(f"\n{kind}\n{seen.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=50)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--crops", default="2x96,4x48")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=3000)
    parser.add_argument("--compile", action="store_true", help="also with the backbone compiled, and what that takes")
    parser.add_argument("--profile", action="store_true", help="also print where our steps' time goes, operator by operator")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of ours on top")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.benchmark = True  # for all of them alike
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        compare(options, device, folder)


if __name__ == "__main__":
    main()
