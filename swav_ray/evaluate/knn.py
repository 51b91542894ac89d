"""Weighted nearest neighbours on frozen features (Wu et al. 2018, the protocol of DINO and lightly).

Shapes: N rows, D features, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swav_ray.evaluate.linear_probe import Score, check_rows


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_rows: int = 1024,
) -> Score:
    """Accuracy of a vote of the ``k`` most similar training rows, each weighing ``exp(cosine / temperature)``.

    Args:
        train_features, test_features: ``(N, D)`` floats; made unit length here.
        train_labels, test_labels: ``(N,)`` class numbers from 0.
        k: neighbours; at most the training rows there are.
        temperature: of the votes.
        chunk_rows: test rows compared at a time; bounds the memory.

    Raises:
        ValueError: no rows, unequal lengths, features that are not finite, ``k`` below 1 or ``temperature`` not above 0.
    """
    rows = train_features, train_labels, test_features, test_labels
    return knn_grid(*rows, ks=[k], temperatures=[temperature], chunk_rows=chunk_rows)[k, temperature]


@torch.no_grad()
def knn_grid(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    chunk_rows: int = 1024,
) -> dict[tuple[int, float], Score]:
    """:func:`knn` for every ``(k, temperature)``; the neighbours are looked for once."""
    check_rows(train_features, train_labels, test_features, test_labels)
    for k in ks:
        if k < 1:
            raise ValueError(f"k = {k}: at least one neighbour must vote")
    for temperature in temperatures:
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}: must be above 0")
    if len(train_labels) == 0 or len(test_labels) == 0:
        raise ValueError("nearest neighbours need training and test rows")
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    train = torch.nn.functional.normalize(train_features.float(), dim=1)
    test = torch.nn.functional.normalize(test_features.float(), dim=1)
    votes: dict[tuple[int, float], list[Tensor]] = {(k, temperature): [] for k in ks for temperature in temperatures}
    for rows in test.split(chunk_rows):
        similarity, index = (rows @ train.T).topk(min(max(ks), len(train)), dim=1)  # the most similar first
        for (k, temperature), parts in votes.items():
            # Less the nearest one's: the same winners, and no temperature overflows.
            weight = ((similarity[:, :k] - similarity[:, :1]) / temperature).exp()
            room = torch.zeros(len(rows), num_classes, device=rows.device)
            parts.append(room.scatter_add_(1, train_labels[index[:, :k]], weight))
    return {which: Score.of(torch.cat(parts), test_labels) for which, parts in votes.items()}
