"""The swapped prediction loss: each crop predicts the codes of the others (arXiv 2006.09882, section 3.1; SWAV_FACTS 5).

Shapes: V crops, A assigned crops (those that get codes), B rows of this rank, K prototypes, D feature dimensions,
L rows of the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from swav_ray.swav.feature_queue import FeatureQueue
from swav_ray.swav.sinkhorn import sinkhorn


@torch.no_grad()
def assign_codes(
    scores_ABK: Tensor,
    prototypes_KD: Tensor,
    *,
    epsilon: float,
    num_iterations: int,
    queue: FeatureQueue | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``(A, B, K)`` codes of the assigned crops; the rows of a full queue, scored anew, join the population."""
    scores = scores_ABK.detach()
    rows = scores.shape[1]
    if queue is not None and queue.is_full:
        queue_ALK = queue.rows().to(prototypes_KD.dtype) @ prototypes_KD.detach().T
        scores = torch.cat([queue_ALK.to(scores.dtype), scores], dim=1)
    codes = sinkhorn(scores, epsilon=epsilon, num_iterations=num_iterations, group=group)
    return codes[:, codes.shape[1] - rows :]


def swapped_prediction(scores_VBK: Tensor, codes_ABK: Tensor, *, crops_for_assign: Sequence[int], temperature: float) -> Tensor:
    """Mean cross-entropy of every crop's prediction against the codes of every *other* assigned crop."""
    log_p_VBK = torch.log_softmax(scores_VBK.to(codes_ABK.dtype) / temperature, dim=-1)
    num_crops, rows = log_p_VBK.shape[0], log_p_VBK.shape[1]
    # sum over v != i of q_i . log p_v = q_i . (sum of all log p - log p_i): one pass over the big tensor
    total_BK = log_p_VBK.sum(dim=0)
    assigned = torch.as_tensor(list(crops_for_assign), device=log_p_VBK.device)
    others_ABK = total_BK - log_p_VBK[assigned]
    terms = len(crops_for_assign) * (num_crops - 1)
    return -(codes_ABK * others_ABK).sum() / (terms * max(rows, 1))


def swav_loss(
    embeddings_VBD: Tensor,
    prototypes_KD: Tensor,
    *,
    crops_for_assign: Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float = 0.05,
    num_iterations: int = 3,
    queue: FeatureQueue | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The SwAV loss of this rank's rows.

    Args:
        embeddings_VBD: ``(V, B, D)`` unit rows, one slice a crop.
        prototypes_KD: ``(K, D)`` unit rows.
        crops_for_assign: crops that get codes; the published choice is the two full-resolution ones.
        temperature: divides the scores before the softmax.
        epsilon, num_iterations: of :func:`~swav_ray.swav.sinkhorn.sinkhorn`.
        queue: once full, its rows join the codes' population, scored with these prototypes; then this batch's assigned
            crops are pushed (also into a queue that is not yet full).
        group: process group whose ranks' rows are one population for the codes; ``None`` is this process alone.

    Returns:
        Scalar, the mean over this rank's rows and all (assigned crop, other crop) pairs. No gradient flows through codes.

    Raises:
        ValueError: fewer than two crops, or an assigned crop that is not there.
    """
    num_crops = embeddings_VBD.shape[0]
    if num_crops < 2 or not crops_for_assign or not all(0 <= crop < num_crops for crop in crops_for_assign):
        raise ValueError(f"crops_for_assign {list(crops_for_assign)} needs crops among the {num_crops} given, of at least 2")
    scores_VBK = embeddings_VBD @ prototypes_KD.T
    assigned = torch.as_tensor(list(crops_for_assign), device=embeddings_VBD.device)
    codes_ABK = assign_codes(
        scores_VBK[assigned], prototypes_KD, epsilon=epsilon, num_iterations=num_iterations, queue=queue, group=group
    )
    if queue is not None:
        queue.push(embeddings_VBD[assigned])
    return swapped_prediction(scores_VBK, codes_ABK, crops_for_assign=crops_for_assign, temperature=temperature)
