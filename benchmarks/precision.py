"""Is accuracy unharmed? The demo's digits in float32 and in mixed precision, some seeds each, by their linear probe.

    python -m benchmarks.precision [--quick] [--epochs 25] [--seeds 3]

One process with one thread; runs take turns. The last line is JSON, with the mean difference and the standard error of a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile

import torch

from swav_ray.config import load_config
from swav_ray.train.loop import Training
from swav_ray.train.trainer import open_run, resolve
from swav_ray.train.world import World


def probe(precision: str, seed: int, epochs: int, folder: str) -> tuple[float, float]:
    """Top-1 on held-out training images after a run, and its standard error."""
    late = epochs > 6
    values = {
        "name": f"{precision}-{seed}",
        "storage": folder,
        "seed": seed,
        "epochs": epochs,
        "precision": precision,
        "warmup_epochs": 5 if late else 1,
        "queue_start_epoch": 5 if late else 2,
        "probe.every_epochs": 0,
        "checkpoint.every_seconds": 600,
    }
    config = resolve(load_config("demo-digits", values))
    training = Training(config, open_run(config), World())
    figures, _ = training.run_to_end(training.stream.local(training.position))
    return figures["probe/top1"], figures["probe/top1_stderr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    epochs, seeds = (1, 1) if options.quick else (options.epochs, options.seeds)
    if epochs == 1:
        epochs = 2  # the warm-up lasts one
    found: dict[str, list[float]] = {"float32": [], "bf16-mixed": []}
    error = 0.0
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        for seed in range(31, 31 + seeds):
            for precision, values in found.items():
                top1, error = probe(precision, seed, epochs, folder)
                values.append(top1)
                print(f"{precision}, seed {seed}: {top1:.4f} +- {error:.4f}", flush=True)
    difference = statistics.mean(found["bf16-mixed"]) - statistics.mean(found["float32"])
    print(json.dumps({"epochs": epochs, **found, "difference": round(difference, 4), "stderr": round(error, 4)}))


if __name__ == "__main__":
    main()
