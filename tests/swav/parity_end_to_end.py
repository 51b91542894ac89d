"""Five whole training steps of our model, loss, queue and LARS, against the reference's recorded runs.

Shapes: R ranks, T steps, V crops, B rows of a rank, A assigned crops, K prototypes, D feature dimensions.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from swav_ray.swav import LARS, FeatureQueue, SwAV, swav_loss
from swav_ray.swav.resnet import BasicBlock, ResNet
from tests.gloo import run_ranks
from tests.swav.golden import (
    EXACT,
    FLOAT64,
    RUN_BIASES,
    RUN_LOSS,
    RUN_NOISE,
    RUN_QUEUE,
    RUN_STATISTICS,
    RUN_WEIGHTS,
    SCORES,
    Comparison,
    Golden,
    Tolerance,
)

GOLDEN = Golden("e2e_tiny")
RUNS = {"noq_w1": 1, "queue_w1": 1, "noq_w2": 2, "queue_w2": 2, "noq_w1_f64": 1, "queue_w1_f64": 1}  # and their world size
CASES = [f"{run}_r{rank}" for run, world_size in RUNS.items() for rank in range(world_size)]
NUM_CROPS, ROWS, DIM = 4, 8, 16
QUEUE_ROWS = 24  # of a rank; full after three steps
FREEZE_STEPS = 2
TOLERANCES = {
    "losses": RUN_LOSS,
    "prototypes": RUN_WEIGHTS,
    "emb_step0": SCORES,
    "scores_step0": SCORES,
    "queue_final": RUN_QUEUE,
}


def our_name(reference_name: str) -> str:
    """The reference's state_dict key -> ours."""
    if reference_name.startswith("projection_head."):
        return reference_name.replace("projection_head.", "projector.", 1)
    return reference_name if reference_name == "prototypes.weight" else f"backbone.{reference_name}"


def build_model(initial: dict[str, np.ndarray], dtype: torch.dtype) -> SwAV:
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), base_width=8)
    model = SwAV(backbone, num_features=backbone.num_features, hidden_dim=32, feature_dim=DIM, num_prototypes=24)
    model.load_state_dict({our_name(name): torch.from_numpy(value) for name, value in initial.items()}, strict=True)
    return model.to(dtype)


def train(
    rank: int, initial: dict[str, np.ndarray], crops: list[np.ndarray], lrs: np.ndarray, with_queue: bool, dtype: torch.dtype
) -> dict[str, Any]:
    """One rank's run; ``crops`` are (R, T, 2, B, 3, S, S), one array a size. In a world of several, under plain DDP."""
    group = dist.group.WORLD if dist.is_initialized() else None
    model = build_model(initial, dtype)
    module = DistributedDataParallel(model) if group is not None else model
    optimizer = LARS(model.parameters(), lr=0.0, weight_decay=1e-6)
    queue = new_queue(dtype) if with_queue else None
    record: dict[str, Any] = {"losses": [], "prototypes": []}
    for step, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = float(lr)
        images = [torch.from_numpy(size_RTVB[rank, step, v]).to(dtype) for size_RTVB in crops for v in range(2)]
        model.normalize_prototypes()
        embeddings, scores = module(images)
        loss = swav_loss(embeddings.view(NUM_CROPS, ROWS, DIM), model.prototypes.weight, queue=queue, group=group)
        optimizer.zero_grad()
        loss.backward()
        if step < FREEZE_STEPS:
            model.prototypes.weight.grad = None
        optimizer.step()
        record["losses"].append(loss.item())
        record["prototypes"].append(model.prototypes.weight.detach().numpy().copy())
        if step == 0:
            record["emb_step0"], record["scores_step0"] = embeddings.detach().numpy(), scores.detach().numpy()
    if queue is not None:
        record["queue_final"] = queue.rows().numpy()
    record["final"] = {name: value.numpy() for name, value in model.state_dict().items()}
    return record


def new_queue(dtype: torch.dtype) -> FeatureQueue:
    """A queue takes torch's default precision; a float64 run needs its queue in float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return FeatureQueue(QUEUE_ROWS, 2, DIM)
    finally:
        torch.set_default_dtype(before)


def comparisons() -> list[Comparison]:
    initial = {name.removeprefix("init."): GOLDEN.input(name) for name in GOLDEN.names if name.startswith("init.")}
    crops = [GOLDEN.input("big"), GOLDEN.input("small")]
    lrs = GOLDEN.input("lrs")
    found = []
    for run, world_size in RUNS.items():
        dtype = torch.float64 if run.endswith("f64") else torch.float32
        job = (initial, crops, lrs, run.startswith("queue"), dtype)
        records = run_ranks(world_size, train, *job) if world_size > 1 else [train(0, *job)]
        for rank, record in enumerate(records):
            found += compare_record(run, rank, record, dtype)
    return found


def final_tolerance(name: str) -> tuple[str, Tolerance]:
    """The kind of a state_dict entry, as the parity table names it, and how near ours must be."""
    if name.endswith("num_batches_tracked"):
        return "final counters", EXACT
    if name in ("projector.0.bias", "projector.1.running_mean"):  # the second is shifted by the first
        return "final bias without effect", RUN_NOISE
    if ".running_" in name:
        return "final statistics", RUN_STATISTICS
    return ("final biases", RUN_BIASES) if name.endswith("bias") else ("final weights", RUN_WEIGHTS)


def compare_record(run: str, rank: int, record: dict[str, Any], dtype: torch.dtype) -> list[Comparison]:
    """A comparison for each recorded array of this run and rank."""
    found = []
    for array in GOLDEN.names:
        what = re.sub(f"^{run}_r{rank}_", "", array)
        if what == array:
            continue
        if what.startswith("final."):
            name = our_name(what.removeprefix("final."))
            ours, (quantity, tolerance) = record["final"][name], final_tolerance(name)
        else:
            quantity, ours, tolerance = what, np.asarray(record[what]), TOLERANCES[what]
        if dtype == torch.float64:
            quantity, tolerance = f"{quantity}, float64", FLOAT64
        found.append(GOLDEN.compare(array, ours, tolerance, case=f"{run}_r{rank}", quantity=quantity))
    return found
