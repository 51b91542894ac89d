"""Our training step beside a plain one and one of lightly's modules, from the same weights on the same pictures.

    python -m benchmarks.step [--quick] [--rounds 20] [--profile] [--compile] [--set KEY=VALUE ...]
    python -m benchmarks.step --device cuda --backbone resnet50 --crops 2x224,6x96 --rows 256

Steps take turns within one run; each time is of one step, on the CPU in processor time, on a GPU waited for; medians. Ours begins with bytes, as a run
does, the others with normalised float32 crops that are given to them. The bf16 ratio is ours against the plain float32 step.
The last line is JSON. On the CPU one thread; on a GPU also images a second, share of the peak and memory of the bf16 step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import LightlyStep, PlainStep
from swav_ray.cli.app import overrides_of
from swav_ray.config import Config, load_config
from swav_ray.data.stream import Batch, Position
from swav_ray.evaluate.features import normalise
from swav_ray.train.bench import begin, count_flops, device_name, measure_peak, wait_for
from swav_ray.train.prefetch import on_device
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World

GOALS = {"fp32_ratio": 0.8, "bf16_ratio": 0.45}
SAME_STEPS, SAME = 3, 1e-3  # steps from the same weights, whose losses must agree so well in float32


class Ours:
    """A :class:`Training`'s own steps."""

    def __init__(self, config: Config, device: torch.device, folder: str) -> None:
        world = World(device=device)
        stream = SyntheticStream(config)
        self.training = begin(config, world, stream, folder)
        self.batches = on_device(stream, stream.local(Position()), device)
        self.loss = torch.zeros(())

    def step(self) -> Tensor:
        self.training._train_step(next(self.batches))
        self.training._pending.clear()  # lines of metrics, which are read and written every tenth step
        return self.training._pending_losses.pop()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    counts, sizes = zip(*(map(int, group.split("x")) for group in options.crops.split(",")), strict=True)
    return {
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
        **overrides_of(options.set),
    }


def load(values: dict[str, Any]) -> Config:
    # More prototypes than rows are refused, for some would stay empty: no matter for time.
    wanted = values["num_prototypes"]
    return load_config("imagenet-100ep", values | {"num_prototypes": 2}).model_copy(update={"num_prototypes": wanted})


def floats_of(config: Config, batch: Batch) -> list[Tensor]:
    """What a loader of the plain kind brings: normalised float32 crops, rows first."""
    crops = []
    for group in batch.crops:
        for pixels in group:
            crops.append(normalise(pixels, config.augment.mean, config.augment.std, torch.device("cpu")).contiguous())
    return crops


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


def compare(options: argparse.Namespace, device: torch.device, folder: str) -> None:
    values = settings(options)
    config = load(values | {"precision": "float32"})
    mixed = load(values | {"precision": "bf16-mixed"})
    stream = SyntheticStream(config).local(Position())
    inputs = [floats_of(config, batch) for batch in (next(stream), next(stream))]
    ours, ours_bf16 = Ours(config, device, folder + "/a"), Ours(mixed, device, folder + "/b")
    weights = {name: value.detach().cpu().clone() for name, value in ours.training.model.state_dict().items()}
    plain = PlainStep(config, weights, device)
    plain_bf16 = PlainStep(config, weights, device, bf16=True)
    lightly = LightlyStep(config, device)
    taken = {"plain": 0, "plain bf16": 0, "lightly": 0}

    def fed(name: str, step: Callable[[list[Tensor]], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            taken[name] += 1
            return step(inputs[(taken[name] - 1) % len(inputs)])

        return run

    steps: dict[str, Callable[[], Tensor]] = {
        "plain": fed("plain", plain.step),
        "ours": ours.step,
        "ours bf16": ours_bf16.step,
        "lightly": fed("lightly", lightly.step),
    }
    if not options.quick:
        steps["plain bf16"] = fed("plain bf16", plain_bf16.step)
    if options.compile:
        for name, kind in (("ours compiled", "float32"), ("ours bf16 compiled", "bf16-mixed")):
            compiled = load(values | {"precision": kind, "compute.compile": "default"})
            steps[name] = Ours(compiled, device, f"{folder}/{name}").step

    same = {name: [float(steps[name]()) for _ in range(SAME_STEPS)] for name in ("plain", "ours", "ours bf16")}
    print("losses of the first steps: " + "; ".join(f"{name} {' '.join(f'{x:.6f}' for x in v)}" for name, v in same.items()))
    difference = max(abs(a / b - 1) for a, b in zip(same["ours"], same["plain"], strict=True))
    assert difference < SAME, f"not the same step: losses differ by {difference:.1e}"
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        wait_for(device)
        if "compiled" in name:
            print(f"{name}: the first step took {time.perf_counter() - began:.1f} s")

    clock = time.perf_counter if device.type == "cuda" else time.process_time  # one thread works, whoever else is there
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3 if options.quick else options.rounds):
        for name, step in steps.items():
            wait_for(device)
            began = clock()
            step()
            wait_for(device)
            seconds[name].append(clock() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{device_name(device)}: {options.backbone}, {options.crops}, {options.rows} rows, K {options.prototypes}")
    for name, median in medians.items():
        spread = sorted(seconds[name])
        low, high = spread[len(spread) // 4], spread[-1 - len(spread) // 4]
        print(
            f"{name:20} {1e3 * median:8.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})  {median / medians['plain']:.3f} of plain"
        )
    if options.profile:
        profile(ours_bf16 if device.type == "cuda" else ours, device)
    found: dict[str, Any] = {
        "fp32_ratio": round(medians["ours"] / medians["plain"], 3),
        "bf16_ratio": round(medians["ours bf16"] / medians["plain"], 3),
        "lightly_ratio": round(medians["ours"] / medians["lightly"], 3),
        "lightly_bf16_ratio": round(medians["ours bf16"] / medians["lightly"], 3),
        "loss_difference": difference,
        "goals": GOALS,
    }
    if device.type == "cuda" or not options.quick:
        flops, peak = count_flops(mixed, options.rows), measure_peak(mixed, device)
        found |= {
            "images_per_second": round(options.rows / medians["ours bf16"], 1),
            "peak_share": round(flops / medians["ours bf16"] / peak, 3),
            "peak_tflops": round(peak / 1e12, 2),
        }
    if device.type == "cuda":
        del plain, plain_bf16, lightly, steps, ours
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ours_bf16.step()
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(found))


def profile(ours: Ours, device: torch.device) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            ours.step()
        wait_for(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=50))


if __name__ == "__main__":
    main()
