"""A run's figure stands beside those it must be read against."""

from __future__ import annotations

import pytest
import torch

from swav_ray.errors import UserError
from swav_ray.train.scoring import _svm, score_run
from tests.train.small import small_config, small_shards, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("scored")
    train_here(small_config(small_shards(str(place / "shards")), str(place), "run", precision="float32"))
    return str(place / "run")


def test_a_probe_stands_beside_its_baselines(run):
    with pytest.raises(UserError, match="names no test data; give labelled shards with --test"):
        list(score_run(run, "probe", None))
    shards = run.removesuffix("run") + "shards"
    lines = list(score_run(run, "probe", shards))
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "this run",
        "untrained backbone",
        "raw 16x16 pixels",
        "RBF-SVM on pixels",
    ]
    assert all("±" in line for line in lines[1:])
    assert len(list(score_run(run, "knn", shards))) == 4


def test_the_svm_counts_labels_not_columns():
    """Classes 3, 5 and 9 at three corners; a test row of class 7, never trained on, is a miss wherever it lies."""
    corners = torch.eye(3).repeat(4, 1)
    labels = torch.tensor([3, 5, 9]).repeat(4)
    score = _svm(corners, labels, torch.eye(3)[[0, 1, 2, 0]], torch.tensor([3, 5, 9, 7]))
    assert score.top1 == 0.75
    two = _svm(corners[labels != 9], labels[labels != 9], torch.eye(3)[[0, 1]], torch.tensor([3, 5]))
    assert two.top1 == 1.0
