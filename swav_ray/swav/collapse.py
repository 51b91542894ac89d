"""The collapse watch: is this run learning, or are all images becoming one? (SWAV_FACTS 10)

Four signs, each a number anyone can read: the loss against ln K, the entropy of the mean assignment, the share of
prototypes in use, and the spread of the embeddings. All are sums over rows, so they are the same for any world size.

Shapes: A assigned crops, B rows of this rank, K prototypes, D feature dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Signs:
    """What the watch saw over a window of steps; `loss` in nats, the others as shares of their healthy value."""

    loss: float
    loss_share: float  # loss / ln K; 1 is a uniform prediction
    assignment_entropy: float  # of the mean prediction, as a share of ln K; 1 is all prototypes equally used
    prototypes_in_use: int  # with at least one row's largest score
    embedding_std: float  # mean over dimensions, times sqrt(D); 1 is spread over the sphere, 0 is one point


@dataclass(frozen=True)
class Verdict:
    """`state` is healthy, warming_up, stuck, collapsed or diverged; `advice` says what to try."""

    state: str
    advice: str

    @property
    def unwell(self) -> bool:
        return self.state in ("collapsed", "stuck", "diverged")


class CollapseWatch:
    """Gathers sums on the device step by step; :meth:`read` makes one all-reduce and one host read for all of them."""

    def __init__(self, num_prototypes: int, dim: int, *, device: torch.device | str | None = None) -> None:
        self.num_prototypes, self.dim = num_prototypes, dim
        # K winner counts | K mean prediction sums | D sums | D square sums | rows
        self._sums = torch.zeros(2 * num_prototypes + 2 * dim + 1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, embeddings_ABD: Tensor, scores_ABK: Tensor, temperature: float) -> None:
        """Add one step's assigned crops."""
        K, D = self.num_prototypes, self.dim
        scores = scores_ABK.detach().reshape(-1, K).float()
        embeddings = embeddings_ABD.detach().reshape(-1, D).double()
        winners = scores.argmax(dim=1)
        self._sums[:K].index_add_(0, winners, torch.ones_like(winners, dtype=torch.float64))  # no host read, unlike bincount
        self._sums[K : 2 * K] += torch.softmax(scores / temperature, dim=1).sum(dim=0)
        self._sums[2 * K : 2 * K + D] += embeddings.sum(dim=0)
        self._sums[2 * K + D : -1] += embeddings.square().sum(dim=0)
        self._sums[-1] += len(scores)

    def read(self, loss: float, group: dist.ProcessGroup | None = None) -> Signs:
        """The signs since the last read, over all ranks of ``group``; ``loss`` is their mean loss."""
        if group is not None:
            dist.all_reduce(self._sums, group=group)
        K, D = self.num_prototypes, self.dim
        sums = self._sums.to("cpu", copy=True)
        self._sums.zero_()
        rows = max(float(sums[-1]), 1.0)
        mean_K = sums[K : 2 * K] / rows
        entropy = float(-(mean_K * mean_K.clamp_min(1e-12).log()).sum()) / math.log(K)
        mean_D = sums[2 * K : 2 * K + D] / rows
        variance_D = (sums[2 * K + D : -1] / rows - mean_D.square()).clamp_min(0)
        return Signs(
            loss=loss,
            loss_share=loss / math.log(K),
            assignment_entropy=entropy,
            prototypes_in_use=int((sums[:K] > 0).sum()),
            embedding_std=float(variance_D.sqrt().mean()) * math.sqrt(D),
        )


def judge(signs: Signs, *, epoch: float, settled_epoch: float) -> Verdict:
    """A verdict on ``signs``; before ``settled_epoch`` (warm-up, freeze, queue start) only divergence is called.

    The thresholds are rules of thumb: a loss within half a percent of ln K means predictions carry no information
    (8.006 for K = 3000 in many reports, SWAV_FACTS 10), and embeddings within 5 % of one point cannot be told apart.
    """
    if not all(math.isfinite(sign) for sign in (signs.loss, signs.assignment_entropy, signs.embedding_std)):
        return Verdict(
            "diverged", "lower base_lr, or lengthen warmup_epochs; below 256 rows a batch scale base_lr with the batch"
        )
    if epoch < settled_epoch:
        return Verdict("warming_up", "")
    if signs.embedding_std < 0.05:
        return Verdict("collapsed", "embeddings are one point: lower base_lr, freeze the prototypes longer, or epsilon 0.03")
    if abs(signs.loss_share - 1) < 0.005:  # not above it: a sharp temperature starts at twice ln K, and learns
        return Verdict(
            "stuck",
            "loss is at ln K: try epsilon 0.03, freeze_prototypes_epochs up, fewer prototypes, softer crops, another base_lr",
        )
    if signs.assignment_entropy < 0.3:
        return Verdict("collapsed", "few prototypes take all images: epsilon up, a shorter queue, or more sinkhorn_iterations")
    return Verdict("healthy", "")
