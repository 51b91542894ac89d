"""Codes by optimal transport: Sinkhorn-Knopp in the log domain, over the rows of one or many processes.

Shapes: B rows of this process, K prototypes, any leading dimensions are independent problems.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    num_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Soft assignment of every row to the prototypes, with each prototype given equal mass.

    The steps are the published ones (arXiv 2006.09882, section 3.1; SWAV_FACTS 3), carried out on logarithms, so any
    positive ``epsilon`` is safe. All leading problems share their collectives: one MAX and ``num_iterations`` SUM
    all-reduces of ``leading x K`` numbers a call, whatever the number of problems.

    Args:
        scores: ``(..., B, K)`` cosine similarities of rows to prototypes.
        epsilon: entropy weight; smaller is harder. Must be positive.
        num_iterations: normalisation rounds; at least 1.
        group: ``None`` for the rows of this process alone, or a process group whose ranks' rows are one population.
            Ranks may hold different numbers of rows, also none, but must agree on all other dimensions.

    Returns:
        ``(..., B, K)`` codes of this process's rows, each row summing to 1; float64 for float64 scores, else float32.

    Raises:
        ValueError: ``epsilon`` is not positive or ``num_iterations`` is below 1.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    out_dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    log_codes = scores.to(out_dtype) / epsilon

    # A shift per prototype is undone by the first prototype normalisation, so taking each prototype's maximum over all
    # rows changes nothing but keeps its largest entry at exp(0).
    if log_codes.shape[-2] > 0:
        peak = log_codes.amax(dim=-2, keepdim=True)
    else:
        peak = log_codes.new_full((*log_codes.shape[:-2], 1, log_codes.shape[-1]), -torch.inf)
    if group is not None:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    log_codes = log_codes - peak

    for _ in range(num_iterations):
        # Each prototype gets the same mass. After the shift above a prototype's sum is at least 1; in later rounds it
        # lies between 1 / (rows * K) and rows, because some row gave it at least 1 / rows of its mass before and a
        # row's own normalisation takes away at most a factor K. So a plain sum needs no second MAX collective.
        mass = log_codes.exp().sum(dim=-2, keepdim=True)
        if group is not None:
            dist.all_reduce(mass, op=dist.ReduceOp.SUM, group=group)
        log_codes = log_codes - mass.log()
        # Each row gets the same mass; local to the row.
        log_codes = torch.log_softmax(log_codes, dim=-1)
    return log_codes.exp()
