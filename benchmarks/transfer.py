"""Detection and segmentation on a backbone that SwAV pretrained, beside the same network untrained, learning or frozen.

    python -m benchmarks.transfer [--quick] [--task TASK] [--seeds 3] [--run RUN] [--folder DIR]

Everything is rendered (`benchmarks/scenes.py`): pictures of one shape each to pretrain on without labels, and a few
annotated pictures of several. Pretrained here, in this process, unless a run is named. Average precision and mIoU are
those of the last step, mean and range over seeds of the heads and of the order of pictures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenes import scenes, write_coco, write_shapes
from swav_ray.config import Config, load_config
from swav_ray.data.sharding import write_shards
from swav_ray.data.sources import find_chunks
from swav_ray.data.storage import Storage
from swav_ray.evaluate.dense_protocol import Dense, load_dense
from swav_ray.train.backbones import load
from swav_ray.train.dense import DenseTraining
from swav_ray.train.dense_rows import DenseRows, read_annotated
from swav_ray.train.loop import Training
from swav_ray.train.trainer import open_run
from swav_ray.train.world import World

# Shape must be all that two views of a picture share: strong colours, any turn, crops that hold most of it.
PRETRAINING: dict[str, Any] = {
    "epochs": 30,
    "warmup_epochs": 3,
    "base_lr": 0.002,
    "backbone.stem": "imagenet",
    "crop_sizes": [64, 48],
    "crop_min_scales": [0.5, 0.3],
    "crop_max_scales": [1.0, 0.7],
    "num_prototypes": 30,
    "prototype_init": "samples",
    "epsilon": 0.02,
    "queue_length": 0,
    "augment.rotation": 180,
    "augment.flip": 0.5,
    "augment.brightness": 0.6,
    "augment.contrast": 0.6,
    "augment.saturation": 0.6,
    "augment.hue": 0.5,
    "augment.grey": 0.3,
    "probe.every_epochs": 0,
    "probe.resize": 64,
}
# The shipped protocols, at the size of these pictures and with heads that a processor can train.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "detection": {
        "sizes": [96],
        "max_size": 128,
        "channels": 64,
        "box_head": 128,
        "box_samples": 64,
        "anchor_sizes": [8, 16, 32, 48, 64],
        "batch_size": 8,
        "steps": 200,
        "warmup_steps": 20,
        "step_at": [160],
        "score_every": 0,
    },
    "segmentation": {
        "size": 96,
        "crop": 96,
        "min_scale": 0.8,
        "max_scale": 1.25,
        "batch_size": 8,
        "steps": 600,
        "lr": 0.05,
        "score_every": 0,
    },
}
FIGURES = {"detection": "AP50", "segmentation": "mIoU"}
ARMS = ("pretrained", "untrained", "pretrained, frozen", "untrained, frozen")


def pretrained(folder: Path, pictures: int = 3000, **changes: Any) -> Config:
    """A run on pictures of one shape each, trained in this process; a finished one is taken as it is."""
    shards = folder / "shards"
    if not shards.exists():
        chunks, names = find_chunks(
            write_shapes(folder / "shapes", pictures), image="", label="", classes="", without=str(shards)
        )
        write_shards(chunks, names, Storage(str(shards)))
    where = {"name": "run", "storage": str(folder), "data.train": str(shards)}
    config = load_config("demo-digits", {**where, **PRETRAINING, "queue_start_epoch": 0, **changes})
    training = Training(config, open_run(config), World.join(torch.device("cpu")))
    training.run_to_end(training.stream.local(training.position, 0, 1))
    return config


def figures(run: str, arm: str, protocol: Dense, train: str, test: str) -> dict[str, float]:
    """What the test pictures say after the last step."""
    loaded = load(run)
    torch.manual_seed(protocol.seed)
    backbone = loaded.backbone if arm.startswith("pretrained") else loaded.untrained()
    if arm.endswith("frozen"):
        protocol = protocol.model_copy(update={"frozen": "all"})
    learnt = read_annotated(train, None, protocol, "--train")
    scored = read_annotated(test, None, protocol, "--test").numbered_as(learnt.classes, train)
    shown = DenseRows(learnt, protocol, loaded.view, learns=True)
    held = DenseRows(scored, protocol, loaded.view, learns=False)
    return list(DenseTraining(backbone, loaded.view, protocol, shown, held).run())[-1].figures


def compare(
    run: str, folder: Path, tasks: list[str], seeds: int, pictures: tuple[int, int], **changes: Any
) -> dict[str, dict[str, list[float]]]:
    """By task and arm the figure of every seed; printed as it comes."""
    train, test = (
        write_coco(folder / "coco", name, list(scenes(count, seed=seed)))
        for name, count, seed in zip(("train", "test"), pictures, (1, 2), strict=True)
    )
    found: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        found[task] = {arm: [] for arm in ARMS}
        for seed in range(31, 31 + seeds):
            for arm in ARMS:
                began = time.process_time()
                protocol = load_dense(task, None, {**PROTOCOLS[task], **changes, "seed": seed})
                row = figures(run, arm, protocol, train, test)
                found[task][arm].append(row[FIGURES[task]])
                shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
                print(f"{task:<13} {arm:<19} seed {seed}  {shown}  {time.process_time() - began:.0f} CPU s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(PROTOCOLS), help="one of them alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", help="a pretrained run, instead of pretraining here")
    parser.add_argument("--folder", help="of pictures and the run, kept")
    parser.add_argument("--quick", action="store_true", help="few pictures and steps: to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="swav-ray-"))
    began = time.process_time()
    short: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0} if options.quick else {}
    run = options.run
    if run is None:
        config = pretrained(folder, 200 if options.quick else 3000, **short)
        run = f"{config.storage}/{config.name}"
        print(f"pretrained: {run}, {time.process_time() - began:.0f} CPU s", flush=True)
    few = {"steps": 4, "step_at": [], "warmup_steps": 0} if options.quick else {}
    seeds, pictures = (1, (16, 8)) if options.quick else (options.seeds, (200, 100))
    found = compare(run, folder, [options.task] if options.task else list(PROTOCOLS), seeds, pictures, **few)
    for task, arms in found.items():
        for arm, values in arms.items():
            print(f"{task} {FIGURES[task]} {arm}: {statistics.mean(values):.4f} [{min(values):.4f}, {max(values):.4f}]")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
