"""Shares of the labels: every class alike, the same images whatever the order of the files."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.evaluate import stratified

LABELS = st.lists(st.integers(-1, 5), min_size=1, max_size=120)
SHARES = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9, 1.0])


def chosen_ids(labels: list[int], share: float, seed: int = 0, order: np.ndarray | None = None) -> set[str]:
    ids = np.array([f"{row:03d}.jpg" for row in range(len(labels))])
    order = np.arange(len(labels)) if order is None else order
    return set(ids[order][stratified(list(ids[order]), np.array(labels, dtype=np.int64)[order], share, seed=seed)])


def test_by_hand() -> None:
    """Of 20, 5 and 1 rows a tenth: 2, one half rounded up, and one at least; rows without a label never."""
    labels = [0] * 20 + [1] * 5 + [2] + [-1] * 30
    chosen = stratified([str(row) for row in range(56)], np.array(labels), 0.1)
    assert np.bincount(np.array(labels)[chosen]).tolist() == [2, 1, 1]


PINNED = ["000.jpg", "003.jpg", "010.jpg", "011.jpg"]


def test_the_very_images() -> None:
    """Figures of subsets are only comparable while these stay what they are."""
    assert sorted(chosen_ids([0] * 10 + [1] * 10, 0.2)) == PINNED
    assert sorted(chosen_ids([0] * 10 + [1] * 10, 0.2, seed=1)) != PINNED


@settings(derandomize=True, deadline=None)
@given(LABELS, SHARES, st.integers(0, 3), st.randoms(use_true_random=False))
def test_counts_order_and_nesting(labels: list[int], share: float, seed: int, random: object) -> None:
    chosen = chosen_ids(labels, share, seed)
    for label in range(6):
        rows = labels.count(label)
        mine = [identifier for identifier in chosen if labels[int(identifier[:3])] == label]
        assert len(mine) == (max(1, int(share * rows + 0.5)) if rows else 0)
    assert not any(labels[int(identifier[:3])] < 0 for identifier in chosen)
    order = np.array(random.sample(range(len(labels)), len(labels)))  # type: ignore[attr-defined]
    assert chosen_ids(labels, share, seed, order) == chosen
    assert chosen <= chosen_ids(labels, 1.0, seed) and chosen_ids(labels, 0.01, seed) <= chosen
