"""The frozen-feature linear probe: multinomial logistic regression to its optimum, with a standard error.

Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from swav_ray.swav.no_dynamo import optimisers_without_dynamo

optimisers_without_dynamo()


@dataclass(frozen=True)
class Score:
    """Accuracy on `num_test` rows; the standard error is that of a share of so many independent rows."""

    top1: float
    top5: float
    top1_stderr: float
    num_test: int
    l2: float = 0.0
    hits_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool), repr=False, compare=False)  # top-1

    @property
    def top5_stderr(self) -> float:
        return math.sqrt(self.top5 * (1 - self.top5) / self.num_test)

    @classmethod
    def of(cls, scores_NC: Tensor, labels_N: Tensor, *, l2: float = 0.0) -> Score:
        """Count of test rows whose label is the best, or among the five best, of ``scores_NC``."""
        best = scores_NC.topk(min(5, scores_NC.shape[1]), dim=1).indices
        hits = best == labels_N[:, None]
        top1 = hits[:, 0].double().mean().item()
        count = len(labels_N)
        return cls(top1, hits.any(dim=1).double().mean().item(), math.sqrt(top1 * (1 - top1) / count), count, l2, hits[:, 0])


def mean_per_class(hits_N: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """The mean over the classes of each one's share of hits, and its standard error; classes without rows do not count."""
    classes, which, rows = labels_N.unique(return_inverse=True, return_counts=True)
    share = torch.zeros(len(classes), dtype=torch.double).index_add_(0, which, hits_N.double()) / rows
    return share.mean().item(), (share * (1 - share) / rows).sum().sqrt().item() / len(classes)


def check_rows(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    """Refuse what would give a number that means nothing.

    Raises:
        ValueError: features and labels of unequal lengths, or features that are not finite.
    """
    if len(train_features) != len(train_labels) or len(test_features) != len(test_labels):
        raise ValueError("features and labels must have the same number of rows")
    if not (train_features.isfinite().all() and test_features.isfinite().all()):
        raise ValueError("features must be finite; the backbone gives NaN or infinite ones")


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2: float | Sequence[float] = (1e-4, 1e-3, 1e-2),
    max_iterations: int = 200,
    seed: int = 0,
) -> Score:
    """Accuracy of a linear classifier on frozen features.

    Features are standardised with the training rows' mean and deviation; the classifier is the exact optimum (L-BFGS) of
    cross-entropy + ``l2 / 2 * |W|^2``, so there is no learning rate to tune. Several ``l2`` are compared on a fifth of the
    training rows; test rows are looked at once, at the end.

    Args:
        train_features, test_features: ``(N, D)`` floats.
        train_labels, test_labels: ``(N,)`` class numbers from 0.
        l2: one strength, or several to choose from.
        max_iterations: of L-BFGS.
        seed: of the split that chooses ``l2``.

    Raises:
        ValueError: no rows, unequal lengths, features that are not finite, or fewer than two classes.
    """
    check_rows(train_features, train_labels, test_features, test_labels)
    if len(test_labels) == 0 or train_labels.unique().numel() < 2:
        raise ValueError("a linear probe needs test rows and training rows of at least two classes")
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    mean, std = train_features.float().mean(0), train_features.float().std(0, correction=0).clamp_min(1e-6)
    train, test = (train_features.float() - mean) / std, (test_features.float() - mean) / std
    strengths = [l2] if isinstance(l2, float | int) else list(l2)
    chosen = strengths[0]
    if len(strengths) > 1:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.device)
        held, rest = order[: max(1, len(train) // 5)], order[max(1, len(train) // 5) :]
        accuracies = []
        for strength in strengths:
            weight, bias = _fit(train[rest], train_labels[rest], num_classes, strength, max_iterations)
            accuracies.append(((train[held] @ weight.T + bias).argmax(1) == train_labels[held]).float().mean().item())
        chosen = strengths[accuracies.index(max(accuracies))]
    weight, bias = _fit(train, train_labels, num_classes, chosen, max_iterations)
    return Score.of(test @ weight.T + bias, test_labels, l2=chosen)


def _fit(features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(num_classes, features_ND.shape[1], device=features_ND.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features_ND.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(features_ND @ weight.T + bias, labels_N) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
