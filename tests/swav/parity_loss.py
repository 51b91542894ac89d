"""Our loss, gradients, queue and codes of every recorded training iteration on given embeddings.

Shapes: R ranks, V crops, A assigned crops, B rows of a rank, K prototypes, D feature dimensions, L queue rows of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from swav_ray.swav import FeatureQueue, SwAV, sinkhorn, swav_loss
from tests.gloo import run_ranks
from tests.swav.golden import CODES, FLOAT64, GRADIENT, LOSS, SCORES, Comparison, Golden, Tolerance

GOLDEN = Golden("swapped_loss")


@dataclass(frozen=True)
class Case:
    """What one recorded iteration differs in from `plain`."""

    embeddings: str = "emb"
    queue: str | None = None
    num_crops: int = 8
    crops_for_assign: tuple[int, ...] = (0, 1)
    epsilon: float = 0.05
    normalise: bool = False  # the embeddings are raw; the gradient is with respect to the raw ones
    frozen: bool = False  # the prototypes' gradient is dropped
    dtype: torch.dtype = torch.float32


CASES = {
    "plain": Case(),
    "eps03": Case(epsilon=0.03),
    "rawl2": Case(embeddings="emb_raw", normalise=True),
    "fullqueue": Case(queue="queue_full"),
    "partqueue": Case(queue="queue_part"),
    "assignall": Case(crops_for_assign=tuple(range(8))),
    "twocrops": Case(num_crops=2),
    "frozen": Case(frozen=True),
    "plain_f64": Case(dtype=torch.float64),
    "fullqueue_f64": Case(queue="queue_full", dtype=torch.float64),
}
RUNS = [f"{name}_w{world}r{rank}" for name in CASES for world, rank in [(1, 0), (2, 0), (2, 1)]]


def normalized_prototypes(prototypes_KD: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The prototypes as the loss sees them: put on the sphere by the model, in the model's precision."""
    num_prototypes, dim = prototypes_KD.shape
    model = SwAV(nn.Identity(), num_features=dim, hidden_dim=0, feature_dim=dim, num_prototypes=num_prototypes).to(dtype)
    model.prototypes.weight.data.copy_(torch.from_numpy(prototypes_KD))
    model.normalize_prototypes()
    return model.prototypes.weight.detach().clone().requires_grad_()


def filled_queue(rows_ALD: np.ndarray) -> FeatureQueue:
    """A rank's queue holding the recorded rows, newest first; the rows that are zero have not been pushed yet."""
    views, length, dim = rows_ALD.shape
    queue = FeatureQueue(length, views, dim)
    filled = int((np.abs(rows_ALD).sum(axis=(0, 2)) > 0).sum())
    queue.push(torch.from_numpy(rows_ALD[:, :filled]))
    return queue


def run_case(
    case: Case, rank: int, inputs: dict[str, np.ndarray], recorded_scores: np.ndarray, group: dist.ProcessGroup | None
) -> dict[str, np.ndarray]:
    """One iteration of one rank; ``recorded_scores`` are the reference's own, to check the codes by themselves."""
    raw_VBD = torch.from_numpy(inputs[case.embeddings][rank, : case.num_crops]).to(case.dtype).requires_grad_()
    embeddings_VBD = nn.functional.normalize(raw_VBD, dim=-1) if case.normalise else raw_VBD
    prototypes_KD = normalized_prototypes(inputs["prototypes"], case.dtype)
    queue = filled_queue(inputs[case.queue][rank]) if case.queue else None
    with mock.patch("swav_ray.swav.loss.sinkhorn", wraps=sinkhorn) as spied:
        loss = swav_loss(
            embeddings_VBD,
            prototypes_KD,
            crops_for_assign=case.crops_for_assign,
            temperature=0.1,
            epsilon=case.epsilon,
            num_iterations=3,
            queue=queue,
            group=group,
        )
    loss.backward()
    codes = sinkhorn(torch.from_numpy(recorded_scores), epsilon=case.epsilon, num_iterations=3, group=group)
    ours = {"loss": loss.detach(), "grad_emb": raw_VBD.grad, "sk_in": spied.call_args.args[0], "sk_out": codes}
    if not case.frozen:
        ours["grad_proto"] = prototypes_KD.grad
    if queue is not None:
        ours["queue"] = queue.rows()
    return {what: value.numpy() for what, value in ours.items()}


def run_cases_on_rank(
    rank: int, inputs: dict[str, np.ndarray], recorded_scores: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """All cases as rank ``rank`` of a world of two; the prototypes' gradient is the mean over ranks, as DDP makes it."""
    results = {}
    for name, case in CASES.items():
        ours = run_case(case, rank, inputs, recorded_scores[f"{name}_w2r{rank}"], dist.group.WORLD)
        if "grad_proto" in ours:
            total = torch.from_numpy(ours["grad_proto"])
            dist.all_reduce(total)
            ours["grad_proto"] = total.numpy() / 2
        results[f"{name}_w2r{rank}"] = ours
    return results


def tolerance_of(what: str, dtype: torch.dtype) -> Tolerance:
    if dtype == torch.float64:
        return FLOAT64
    return {"loss": LOSS, "sk_in": SCORES, "sk_out": CODES, "queue": SCORES}.get(what, GRADIENT)


def comparisons() -> list[Comparison]:
    inputs = {name: GOLDEN.input(name) for name in ("emb", "emb_raw", "prototypes", "queue_full", "queue_part")}
    recorded_scores = {run: GOLDEN.recorded(f"{run}_sk_in") for run in RUNS}
    ours = {f"{name}_w1r0": run_case(case, 0, inputs, recorded_scores[f"{name}_w1r0"], None) for name, case in CASES.items()}
    for of_rank in run_ranks(2, run_cases_on_rank, inputs, recorded_scores):
        ours.update(of_rank)
    found = [
        GOLDEN.compare(
            "prototypes_normalized",
            normalized_prototypes(inputs["prototypes"]).detach().numpy(),
            SCORES,
            case="prototypes",
            quantity="prototypes_normalized",
        )
    ]
    for run in RUNS:
        dtype = CASES[run.rsplit("_", 1)[0]].dtype
        for what, value in ours[run].items():
            quantity = f"{what}, float64" if dtype == torch.float64 else what
            found.append(GOLDEN.compare(f"{run}_{what}", value, tolerance_of(what, dtype), case=run, quantity=quantity))
    return found
