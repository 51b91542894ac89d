"""The linear probe: scikit-learn's optimum, an honest choice of its one strength, and figures that mean what they say.

Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from swav_ray.evaluate import Score, linear_probe, mean_per_class
from swav_ray.evaluate.linear_probe import _fit

Data = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(seed: int = 0, *, train: int = 240, test: int = 400, dim: int = 6, classes: int = 4, spread: float = 1.5) -> Data:
    """Overlapping Gaussian classes of unlike scales, so that nothing is right by accident."""
    g = torch.Generator().manual_seed(seed)
    centres_CD = torch.randn(classes, dim, generator=g)
    labels_N = torch.arange(train + test) % classes
    rows_ND = centres_CD[labels_N] + spread * torch.randn(train + test, dim, generator=g)
    rows_ND = rows_ND * torch.logspace(-1, 2, dim) + 5
    return rows_ND[:train], labels_N[:train], rows_ND[train:], labels_N[train:]


def standardised(data: Data) -> tuple[np.ndarray, np.ndarray]:
    train, test = data[0].double().numpy(), data[2].double().numpy()
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_classifier_is_scikit_learns(seed: int, l2: float) -> None:
    data = blobs(seed)
    train, test = standardised(data)
    # Their objective is C times the summed loss + |W|^2 / 2, ours the mean loss + l2 |W|^2 / 2.
    theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=5000).fit(train, data[1].numpy())
    score = linear_probe(*data, l2=l2)
    assert score.top1 == pytest.approx(theirs.score(test, data[3].numpy()), abs=1.5 / len(test))
    weight, bias = _fit(torch.from_numpy(train).float(), data[1], 4, l2, 200)
    ours = torch.softmax(torch.from_numpy(test).float() @ weight.T + bias, dim=1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(test), atol=2e-3)


def test_standardising_makes_the_score_blind_to_the_features_scale_and_offset() -> None:
    data = blobs()
    scale, offset = torch.logspace(-2, 2, 6), torch.linspace(-50, 50, 6)
    moved = (data[0] * scale + offset, data[1], data[2] * scale + offset, data[3])
    assert linear_probe(*moved, l2=1e-3).top1 == pytest.approx(linear_probe(*data, l2=1e-3).top1, abs=1.5 / 400)


def test_the_test_rows_are_standardised_with_the_training_rows_figures() -> None:
    """Were they with their own, shifting them all would go unnoticed."""
    data = blobs(spread=0.3)
    assert linear_probe(*data, l2=1e-3).top1 > 0.95
    assert linear_probe(data[0], data[1], data[2] + 5 * data[0].std(0), data[3], l2=1e-3).top1 < 0.6


def test_a_feature_that_never_changes_does_no_harm() -> None:
    data = blobs()
    train, test = (torch.cat([rows, torch.full((len(rows), 1), 3.0)], dim=1) for rows in (data[0], data[2]))
    assert linear_probe(train, data[1], test, data[3], l2=1e-3).top1 == linear_probe(*data, l2=1e-3).top1


# --- the figures


SCORES_NC = torch.tensor(
    [
        [9.0, 8, 7, 6, 5, 4],  # label 0: first
        [9.0, 8, 7, 6, 5, 4],  # label 4: fifth, so in the top five only
        [9.0, 8, 7, 6, 5, 4],  # label 5: sixth, a miss in both
        [1.0, 2, 3, 4, 5, 6],  # label 5: first
    ]
)


def test_top1_and_top5_by_hand() -> None:
    score = Score.of(SCORES_NC, torch.tensor([0, 4, 5, 5]), l2=0.5)
    assert score == Score(top1=0.5, top5=0.75, top1_stderr=0.25, num_test=4, l2=0.5)


def test_fewer_than_five_classes_are_all_in_the_top_five() -> None:
    score = Score.of(SCORES_NC[:, :3], torch.tensor([0, 1, 2, 2]))
    assert (score.top1, score.top5) == (0.5, 1.0)


@pytest.mark.parametrize(("hits", "rows"), [(0, 7), (1, 7), (50, 100), (950, 1000), (7, 7)])
def test_the_standard_error_is_that_of_a_share(hits: int, rows: int) -> None:
    labels = torch.zeros(rows, dtype=torch.long)
    scores = torch.zeros(rows, 2)
    scores[:hits, 0], scores[hits:, 1] = 1, 1
    score = Score.of(scores, labels)
    share = hits / rows
    assert score.top1 == pytest.approx(share)
    assert score.top1_stderr == pytest.approx(math.sqrt(share * (1 - share) / rows))
    assert score.num_test == rows


def test_the_top_fives_error_is_that_of_its_own_share() -> None:
    score = Score.of(SCORES_NC, torch.tensor([0, 4, 5, 5]))
    assert score.top5_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_mean_per_class_by_hand() -> None:
    """Class 0: 3 of 4, class 2: 0 of 1, class 7: 1 of 2; the others have no rows. Of all rows 4 of 7 are right."""
    hits, labels = torch.tensor([1, 1, 1, 0, 0, 1, 0]).bool(), torch.tensor([0, 0, 0, 0, 2, 7, 7])
    value, error = mean_per_class(hits, labels)
    assert value == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    assert error == pytest.approx(math.sqrt((3 / 4) * (1 / 4) / 4 + 0 + (1 / 2) * (1 / 2) / 2) / 3)


def test_mean_per_class_of_equal_classes_is_top1() -> None:
    labels = torch.arange(60) % 6
    hits = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.7
    assert mean_per_class(hits, labels)[0] == pytest.approx(hits.double().mean().item())


# --- choosing l2


def hidden_by_noise(seed: int = 3) -> Data:
    """Few rows and many features without meaning: a strong l2 does best."""
    g = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(640) % 3
    signal = torch.nn.functional.one_hot(labels_N, 3).float() * 2 + torch.randn(640, 3, generator=g)
    rows_ND = torch.cat([signal, torch.randn(640, 100, generator=g)], dim=1)
    return rows_ND[:240], labels_N[:240], rows_ND[240:], labels_N[240:]


STRENGTHS = (1e-6, 1e-2, 1.0)


def test_the_chosen_l2_is_worth_choosing() -> None:
    gains = []
    for seed in range(4):
        data = hidden_by_noise(seed)
        chosen = linear_probe(*data, l2=STRENGTHS)
        assert chosen == linear_probe(*data, l2=chosen.l2)  # fitted anew on all training rows
        gains.append(chosen.top1 - linear_probe(*data, l2=STRENGTHS[0]).top1)
    assert sum(gains) / len(gains) > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_of_l2_never_looks_at_test_rows(seed: int) -> None:
    """Poisoned test rows, on which another strength would win, change nothing about the choice."""
    train, labels, test, test_labels = hidden_by_noise(seed)
    honest = linear_probe(train, labels, test, test_labels, l2=STRENGTHS)
    for poison_features, poison_labels in (
        (test, (test_labels + 1) % 3),
        (torch.zeros_like(test), test_labels),
        (test * 1e3 + 7, test_labels.flip(0)),
        (test[:1], test_labels[:1]),
    ):
        poisoned = linear_probe(train, labels, poison_features, poison_labels, l2=STRENGTHS)
        assert poisoned.l2 == honest.l2


def test_the_choice_of_l2_follows_the_training_rows() -> None:
    """The counterpart of the test above: it would also pass if nothing were ever chosen."""
    assert linear_probe(*hidden_by_noise(), l2=STRENGTHS).l2 == 1.0
    assert linear_probe(*blobs(spread=0.6), l2=(1e-4, 30.0)).l2 == 1e-4


def test_the_same_rows_give_the_same_score() -> None:
    data = hidden_by_noise()
    state = torch.get_rng_state()
    first = linear_probe(*data, l2=STRENGTHS)
    torch.manual_seed(77)
    assert linear_probe(*data, l2=STRENGTHS) == first
    torch.set_rng_state(state)
    linear_probe(*data, l2=STRENGTHS, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone


def test_nothing_of_the_callers_is_changed_also_without_gradients() -> None:
    data = blobs()
    before = [part.clone() for part in data]
    with torch.no_grad():
        score = linear_probe(*data)
    assert score.l2 in (1e-4, 1e-3, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))
    assert score == linear_probe(data[0].double(), data[1], data[2].double(), data[3])


def test_a_class_that_only_the_test_rows_know_is_always_missed() -> None:
    data = blobs(spread=0.2)
    labels = data[3].clone()
    labels[:100] = 9
    assert linear_probe(data[0], data[1], data[2], labels, l2=1e-3).top1 == pytest.approx(0.75, abs=0.02)


# --- errors


def test_rows_that_cannot_be_scored_are_refused() -> None:
    train, labels, test, test_labels = blobs()
    for arguments, said in (
        ((train[1:], labels, test, test_labels), "same number of rows"),
        ((train, labels, test, test_labels[1:]), "same number of rows"),
        ((train, labels, test[:0], test_labels[:0]), "needs test rows"),
        ((train[:0], labels[:0], test, test_labels), "at least two classes"),
        ((train, torch.zeros_like(labels), test, test_labels), "at least two classes"),
        ((train * math.nan, labels, test, test_labels), "finite"),
        ((train, labels, torch.full_like(test, math.inf), test_labels), "finite"),
    ):
        with pytest.raises(ValueError, match=said):
            linear_probe(*arguments)
