"""Peak memory of a training step by backbone, rows and switch, each in a fresh process.

    python -m benchmarks.memory [--quick] [--device cuda] [--backbones resnet50:64] [--rows 16,32] [--crops 2x224,6x96]

On the CPU it is the largest resident size of the process over that after a step of two rows, when everything is imported
and the weights, their gradients and momentum are there; on a GPU what the allocator held at most, over what it holds
between steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from typing import Any

SWITCHES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "float32, recompute": {"compute.recompute_activations": True},
    "bf16-mixed, recompute": {"precision": "bf16-mixed", "compute.recompute_activations": True},
    "bf16-mixed, 4 passes": {"precision": "bf16-mixed", "passes": 4},
}


def one(values: dict[str, Any], device_name: str) -> float:
    """Bytes of one step of ``values`` in this process, over what the run holds anyway."""
    import torch

    from benchmarks.step import load
    from swav_ray.data.stream import Position
    from swav_ray.train.bench import begin
    from swav_ray.train.fit import capped
    from swav_ray.train.prefetch import on_device
    from swav_ray.train.synthetic import SyntheticStream
    from swav_ray.train.world import World

    torch.set_num_threads(1)
    passes = values.pop("passes", 1)
    config = load(values)
    config = capped(config, -(-config.global_batch_size // passes) if passes > 1 else 0)
    device = torch.device(device_name)
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        # A step of few rows first: gradients, the optimiser's state and libraries are there afterwards.
        training = begin(config, World(device=device), SyntheticStream(config), folder)

        def step(rows: int) -> None:
            stream = SyntheticStream(config.model_copy(update={"global_batch_size": rows}))
            batches = on_device(stream, stream.local(Position()), device)
            training._train_step(next(batches))

        step(2)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            step(config.global_batch_size)
            torch.cuda.synchronize()
            return float(torch.cuda.max_memory_allocated() - held)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(config.global_batch_size)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbones", default="resnet18:64,resnet50:64,resnet50:128", help="ARCH:WIDTH, ...")
    parser.add_argument("--rows", default="16,32")
    parser.add_argument("--crops", default="2x96,4x48")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(json.loads(options.one), options.device))
        return
    backbones = "resnet18:16" if options.quick else options.backbones
    counts, sizes = zip(*(map(int, group.split("x")) for group in options.crops.split(",")), strict=True)
    found: dict[str, float] = {}
    for backbone in backbones.split(","):
        arch, width = backbone.split(":")
        for rows in (16,) if options.quick else map(int, options.rows.split(",")):
            for switch, changes in SWITCHES.items():
                values: dict[str, Any] = {
                    "backbone.arch": arch,
                    "backbone.base_width": int(width),
                    "crop_counts": counts,
                    "crop_sizes": sizes,
                    "crop_min_scales": [0.14, 0.05][: len(sizes)],
                    "crop_max_scales": [1.0, 0.14][: len(sizes)],
                    "global_batch_size": rows,
                    "data.block_rows": 1,
                    "num_prototypes": 3000,
                    "queue_length": 0,
                    "freeze_prototypes_epochs": 0,
                    "warmup_epochs": 0,
                    "elastic.min": 1,
                    "elastic.max": 1,
                    **changes,
                }
                command = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(values), "--device", options.device]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                name = f"{backbone} {rows} rows {switch}"
                found[name] = round(float(done.stdout.split()[-1]) / 2**20, 1)
                print(f"{name:45} {found[name]:10,.1f} MiB", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
