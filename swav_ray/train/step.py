"""One step's mathematics: from a batch of crops to the gradients of its mean loss.

Put the prototypes on the sphere, embed all crops (one backbone call a resolution), assign codes to the full-resolution
crops over the rows of all workers and the queue, ask every other crop to predict them.

A worker whose rows exceed `elastic.max_rows_per_device` goes over them twice. First every part is embedded without
gradient, and one Sinkhorn over all rows makes the codes; then every part is embedded again and its loss against those
codes is differentiated. Codes, loss and gradients are those of the undivided step, but for two things:
- Live batch norm takes its statistics over one part of all workers, not over the whole batch, and each running statistic
  moves once a part. On the demo's digits, 8 epochs with a batch of 64 in 4 parts of 16: last epoch's loss 2.40 for 2.23,
  probe 0.960 +- 0.007 for 0.964. The published runs took them over 512 of 4096 rows.
- A backbone that draws random numbers (dropout) draws anew on the second way, and predicts codes made from other draws.

Shapes: V crops, A assigned crops, C crops of one size S, B rows of this worker, P rows of one part, K prototypes,
D feature dimensions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from swav_ray.config import Config
from swav_ray.data.stream import Batch
from swav_ray.evaluate.features import normalise
from swav_ray.swav.feature_queue import FeatureQueue
from swav_ray.swav.loss import assign_codes, swapped_prediction
from swav_ray.swav.model import SwAV
from swav_ray.train.build import autocast
from swav_ray.train.world import World

Part = Callable[[str], contextlib.AbstractContextManager[Any]]  # a part of the step by its name, while it runs


@dataclass(frozen=True)
class Seen:
    """What a step saw of this worker's rows, without gradient.

    `loss` is this worker's part of the mean over the global batch: the workers' sum to it. Embeddings and scores are
    those the codes were made of.
    """

    loss: Tensor
    embeddings_ABD: Tensor
    scores_ABK: Tensor
    codes_ABK: Tensor


def num_parts(largest_share: int, max_rows: int) -> int:
    """Parts a step is divided into, by the worker with most rows: all must meet in the same collectives; 1 without a cap."""
    return -(-largest_share // max_rows) if max_rows else 1


def loss_and_gradients(
    config: Config,
    model: SwAV,
    forward: nn.Module,
    batch: Batch,
    world: World,
    queue: FeatureQueue | None = None,
    part_of_step: Part = record_function,
) -> Seen:
    """Add the gradients of the mean loss over the global batch to the parameters' ``grad``, the same on every worker.

    Args:
        forward: ``model`` itself, or it within DistributedDataParallel where there are several workers.
        batch: this worker's rows of the step, perhaps none.
        queue: joins the codes' population if it is full; nothing is pushed.
        part_of_step: entered around each part; by default it only has a name in profiles.
    """
    assigned = list(config.crops_for_assign)
    model.normalize_prototypes()

    def embed(module: nn.Module, part: slice) -> tuple[Tensor, Tensor]:
        """``(V, P, D)`` embeddings and ``(V, P, K)`` scores."""
        with part_of_step("crops"):
            crops = _crops(config, model, batch, part, world.device)
        with part_of_step("forward"), autocast(config, world.device):
            embeddings, scores = module(crops)
        shape = (config.num_crops, len(batch.positions[part]))
        return embeddings.unflatten(0, shape), scores.unflatten(0, shape)

    def codes_of(scores_ABK: Tensor) -> Tensor:
        # They wait for all crops: the projector's batch statistics, and so every embedding, are over all of them.
        with part_of_step("codes"):
            return assign_codes(
                scores_ABK,
                model.prototypes.weight,
                epsilon=config.epsilon,
                num_iterations=config.sinkhorn_iterations,
                queue=queue,
                group=world.group,
            )

    def differentiate(scores_VPK: Tensor, codes_APK: Tensor) -> Tensor:
        with part_of_step("loss"):
            loss = swapped_prediction(scores_VPK, codes_APK, crops_for_assign=assigned, temperature=config.temperature)
        # Workers and parts hold unequal shares of the rows and DDP averages over workers: weigh to get the global mean.
        share = scores_VPK.shape[1] / batch.global_rows
        with part_of_step("backward"):
            (loss * (share * world.size)).backward()
        return loss.detach() * share

    cap = config.elastic.max_rows_per_device
    if cap == "auto":
        raise ValueError("elastic.max_rows_per_device: auto is a number by now (train/fit.py)")
    count = num_parts(batch.largest_share, cap)
    if count == 1:
        embeddings_VBD, scores_VBK = embed(forward, slice(None))
        embeddings_ABD, scores_ABK = embeddings_VBD.detach()[assigned], scores_VBK.detach()[assigned]
        codes_ABK = codes_of(scores_ABK)
        return Seen(differentiate(scores_VBK, codes_ABK), embeddings_ABD, scores_ABK, codes_ABK)

    ends = [len(batch.positions) * part // count for part in range(count + 1)]  # of equal size to a row, some may be empty
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    found = []
    with torch.no_grad(), buffers_kept(model):
        for part in parts:
            embeddings_VPD, scores_VPK = embed(model, part)
            found.append((embeddings_VPD[assigned], scores_VPK[assigned]))
    embeddings_ABD, scores_ABK = (torch.cat(pieces, dim=1) for pieces in zip(*found, strict=True))
    codes_ABK = codes_of(scores_ABK)
    losses = []
    for part in parts:
        last = part is parts[-1]
        with contextlib.nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync():
            losses.append(differentiate(embed(forward, part)[1], codes_ABK[:, part]))
    return Seen(torch.stack(losses).sum(), embeddings_ABD, scores_ABK, codes_ABK)


def _crops(config: Config, model: SwAV, batch: Batch, part: slice, device: torch.device) -> list[Tensor]:
    """A normalised tensor ``(C * P, 3, S, S)`` for each size of crops; only the part's pixels are ever floats."""
    crops = []
    for group_CBSS3 in batch.crops:
        group_CPSS3 = group_CBSS3[:, part]
        pixels = normalise(group_CPSS3.reshape(-1, *group_CPSS3.shape[2:]), config.augment.mean, config.augment.std, device)
        crops.append(pixels.to(model.prototypes.weight.dtype))
    return crops


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back afterwards: running statistics, and whatever else a backbone counts."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
