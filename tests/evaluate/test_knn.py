"""Weighted nearest neighbours against votes counted by hand and written out in numpy.

Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swav_ray.evaluate import knn, knn_grid


def at_degrees(*degrees: float) -> Tensor:
    """Points on the unit circle."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_votes_by_hand() -> None:
    """One near neighbour of class 1 against two farther ones of class 0: the temperature decides."""
    train, labels = at_degrees(10, 40, 45, 180), torch.tensor([1, 0, 0, 1])
    test, wanted = at_degrees(0), torch.tensor([1])
    near, far = math.cos(math.radians(10)), [math.cos(math.radians(40)), math.cos(math.radians(45))]

    def votes(temperature: float) -> tuple[float, float]:
        return sum(math.exp(c / temperature) for c in far), math.exp(near / temperature)

    zero, one = votes(0.07)
    assert one > zero
    assert knn(train, labels, test, wanted, k=3, temperature=0.07).top1 == 1
    zero, one = votes(1.0)
    assert zero > one
    assert knn(train, labels, test, wanted, k=3, temperature=1.0).top1 == 0
    assert knn(train, labels, test, wanted, k=1, temperature=1.0).top1 == 1  # only the nearest votes


def test_only_directions_count() -> None:
    train, labels = at_degrees(10, 40, 45, 180), torch.tensor([1, 0, 0, 1])
    lengths = torch.tensor([[1e-3], [50.0], [7.0], [1.0]])
    score = knn(train * lengths, labels, at_degrees(0, 42) * 1e3, torch.tensor([1, 0]), k=3)
    assert (score.top1, score.num_test) == (1.0, 2)


def test_k_larger_than_the_training_rows_takes_them_all() -> None:
    train, labels, test, wanted = random_rows(0)
    assert knn(train, labels, test, wanted, k=10**6) == knn(train, labels, test, wanted, k=len(train))


@pytest.mark.parametrize("chunk_rows", [1, 7, 39, 40, 41])
def test_the_chunks_do_not_show(chunk_rows: int) -> None:
    data = random_rows(1)
    assert knn(*data, k=5, chunk_rows=chunk_rows) == knn(*data, k=5, chunk_rows=1024)


def random_rows(seed: int, classes: int = 7, train: int = 60, test: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows, labels = torch.randn(train + test, 5, generator=g), torch.randint(classes, (train + test,), generator=g)
    return rows[:train], labels[:train], rows[train:], labels[train:]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 70), st.sampled_from([0.07, 0.2, 1.0]))
def test_written_out(seed: int, k: int, temperature: float) -> None:
    data = random_rows(seed)
    train, labels, test, wanted = (part.double().numpy() for part in data)
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    votes_NC = np.zeros((len(test), 7))
    for votes_C, cosines in zip(votes_NC, test @ train.T, strict=True):
        for place in np.argsort(-cosines)[:k]:
            votes_C[int(labels[place])] += math.exp(cosines[place] / temperature)
    top1 = (votes_NC.argmax(1) == wanted).mean()
    kth = np.sort(votes_NC, axis=1)[:, -5]
    hit = votes_NC[np.arange(len(test)), wanted.astype(int)] >= kth
    score = knn(*data, k=k, temperature=temperature)
    assert score.top1 == pytest.approx(top1)
    assert score.top1_stderr == pytest.approx(math.sqrt(top1 * (1 - top1) / 40))
    if (votes_NC > 0).sum(axis=1).min() >= 5:  # with fewer voted classes the fifth place is shared
        assert score.top5 == pytest.approx(hit.mean())


def test_a_class_without_training_rows_is_missed() -> None:
    train, labels, test, wanted = random_rows(2)
    assert knn(train, labels, test, torch.full_like(wanted, 30)).top1 == 0


def test_rows_that_cannot_be_scored_are_refused() -> None:
    train, labels, test, wanted = random_rows(3)
    for arguments, options, said in (
        ((train[1:], labels, test, wanted), {}, "same number of rows"),
        ((train, labels, test[1:], wanted), {}, "same number of rows"),
        ((train[:0], labels[:0], test, wanted), {}, "training and test rows"),
        ((train, labels, test[:0], wanted[:0]), {}, "training and test rows"),
        ((train, labels, test * math.nan, wanted), {}, "finite"),
        ((train, labels, test, wanted), {"k": 0}, "k = 0"),
        ((train, labels, test, wanted), {"k": -1}, "k = -1"),
    ):
        with pytest.raises(ValueError, match=said):
            knn(*arguments, **options)


def test_several_k_and_temperatures_by_hand() -> None:
    """The figures of `test_votes_by_hand`, of one search."""
    rows = at_degrees(10, 40, 45, 180), torch.tensor([1, 0, 0, 1]), at_degrees(0), torch.tensor([1])
    scores = knn_grid(*rows, ks=[1, 3], temperatures=[0.07, 1.0])
    assert {which: score.top1 for which, score in scores.items()} == {(1, 0.07): 1, (1, 1.0): 1, (3, 0.07): 1, (3, 1.0): 0}


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_is_its_cells(seed: int) -> None:
    data = random_rows(seed)
    for (k, temperature), score in knn_grid(*data, ks=[7, 1, 90], temperatures=[1.0, 0.07], chunk_rows=9).items():
        assert score == knn(*data, k=k, temperature=temperature)


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    """``exp(1 / 0.001)`` is no float32: without care both classes would have infinite votes, and the first would win."""
    near_and_nearer = at_degrees(5, 1), torch.tensor([0, 1]), at_degrees(0), torch.tensor([1])
    assert knn(*near_and_nearer, k=2, temperature=1e-3).top1 == 1
    data = random_rows(4)
    assert knn(*data, k=20, temperature=1e-3).top1 == knn(*data, k=1).top1
    with pytest.raises(ValueError, match="temperature = 0"):
        knn(*data, temperature=0)
