"""Average precision and mean intersection over union, of cases small enough to count by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from swav_ray.evaluate.dense_metrics import Overlap, Precision

A, B, FAR = [0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]


def precision(
    found: list[tuple[list[float], int, float]], true: list[tuple[list[float], int]], crowd: tuple[int, ...] = ()
) -> dict[str, float]:
    """Of one picture: (box, label, score) found, (box, label) true, which of these are crowds."""
    metric = Precision()
    metric.add(
        {
            "boxes": torch.tensor([box for box, _, _ in found]).float().reshape(-1, 4),
            "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            "scores": torch.tensor([score for _, _, score in found]),
        },
        {
            "boxes": torch.tensor([box for box, _ in true]).float().reshape(-1, 4),
            "labels": torch.tensor([label for _, label in true], dtype=torch.int64),
            "iscrowd": torch.tensor([int(index in crowd) for index in range(len(true))]),
        },
    )
    return metric.result()


def test_all_found_and_nothing_else() -> None:
    assert precision([(A, 1, 0.9), (B, 2, 0.8)], [(A, 1), (B, 2)]) == {"AP": 1, "AP50": 1, "AP75": 1}


def test_one_of_two_missed() -> None:
    """Precision 1 up to recall 1/2: 51 of COCO's 101 points from 0 to 1."""
    assert precision([(A, 1, 0.9)], [(A, 1), (B, 1)])["AP"] == pytest.approx(51 / 101)


def test_a_false_one_before_the_true_one() -> None:
    """At the only recall, 1, one of two is right; behind the true one a false one costs nothing."""
    assert precision([(FAR, 1, 0.9), (A, 1, 0.8)], [(A, 1)])["AP"] == pytest.approx(0.5)
    assert precision([(A, 1, 0.9), (FAR, 1, 0.8)], [(A, 1)])["AP"] == 1


def test_thresholds() -> None:
    """62 of 100 px: enough at .50, .55 and .60, three of the ten thresholds."""
    assert precision([([0, 0, 10, 6.2], 1, 0.9)], [(A, 1)]) == pytest.approx({"AP": 0.3, "AP50": 1, "AP75": 0})


def test_classes_count_alike_and_do_not_mix() -> None:
    true = [(A, 1), (B, 1), (FAR, 2)]
    assert precision([(A, 1, 0.9), (B, 1, 0.9), (FAR, 1, 0.1)], true)["AP"] == pytest.approx(0.5)


def test_what_lies_in_a_crowd_counts_for_nothing() -> None:
    true = [(A, 1), (B, 1)]
    found = [([21, 21, 30, 30], 1, 0.9), (A, 1, 0.8)]
    assert precision(found, true, crowd=(1,))["AP"] == 1
    assert precision(found, true)["AP"] < 0.6


def test_nothing_found() -> None:
    assert precision([], [(A, 1)]) == {"AP": 0, "AP50": 0, "AP75": 0}


def test_masks_beside_boxes() -> None:
    """The box is right; of the mask's 400 px 310 are found: .775, six of the ten thresholds."""
    true, found = torch.zeros(2, 1, 40, 40, dtype=torch.bool).unbind(0)
    true[0, 10:30, 10:30] = True
    found[0].view(-1)[true[0].view(-1).nonzero()[:310]] = True
    box = {"boxes": torch.tensor([[10.0, 10, 30, 30]]), "labels": torch.tensor([1])}
    metric = Precision(masks=True)
    metric.add({**box, "scores": torch.tensor([0.9]), "masks": found}, {**box, "iscrowd": torch.tensor([0]), "masks": true})
    wanted = {"AP": 1, "AP50": 1, "AP75": 1, "mask AP": 0.6, "mask AP50": 1, "mask AP75": 1}
    assert metric.result() == pytest.approx(wanted)


def overlap(classes: int, *pairs: tuple[list[list[int]], list[list[int]]]) -> Overlap:
    metric = Overlap(classes)
    for found, true in pairs:
        metric.add(torch.tensor(found), torch.tensor(true))
    return metric


def test_overlap_by_hand() -> None:
    """Class 0: 1 of 2 px; class 1: 2 of 3. The class that is nowhere counts for nothing, one wrongly found does."""
    pair = [[0, 1], [1, 1]], [[0, 0], [1, 1]]
    metric = overlap(3, pair)
    assert metric.result()["mIoU"] == pytest.approx(7 / 12) and metric.result()["pixels"] == 0.75
    assert overlap(3, ([[0, 2]], [[0, 0]])).result()["mIoU"] == pytest.approx((1 / 2 + 0) / 2)


def test_unlabelled_pixels_count_for_nothing() -> None:
    assert overlap(2, ([[0, 1, 1]], [[0, 255, 1]])).result()["mIoU"] == 1


def test_pixels_of_all_pictures_are_summed_first() -> None:
    """Each class: 1 of 4 px over both pictures; the mean of the pictures' own would be (0 + 1) / 2."""
    metric = overlap(2, ([[0, 0, 0]], [[1, 1, 1]]), ([[1, 0]], [[1, 0]]))
    assert metric.result()["mIoU"] == pytest.approx(1 / 4)


def test_overlap_is_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    g = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randint(4, (12, 9), generator=g)

    theirs, ours = MulticlassJaccardIndex(5, average="macro", ignore_index=255), Overlap(5)
    for _ in range(6):
        found, true = draw(), draw()
        true[:2] = 255
        ours.add(found, true)
        theirs.update(found[None], true[None])
    assert ours.result()["mIoU"] == pytest.approx(float(theirs.compute()))


def test_the_error_is_that_of_drawing_other_pictures() -> None:
    """One pixel a picture, right in p of them: the share of right ones has an error of sqrt(p (1 - p) / n)."""
    pairs = [([[0]], [[int(index % 4 == 0)]]) for index in range(400)]
    pixels = overlap(2, *pairs).result()
    # With k wrong of n: class 0 is (n - k) / n, class 1 is 0, so the mean is half the share.
    assert pixels["mIoU"] == pytest.approx(0.375)
    assert pixels["mIoU_stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 400) / 2, rel=0.15)
