"""A backbone that SwAV pretrained on rendered shapes finds and segments them better than the same network untrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.scenes import scenes, write_coco
from benchmarks.transfer import FIGURES, PROTOCOLS, figures, pretrained
from swav_ray.evaluate.dense_protocol import load_dense


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    config = pretrained(tmp_path_factory.mktemp("pretrained"))
    return f"{config.storage}/{config.name}"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "gain"), [("detection", 0.15), ("segmentation", 0.2)])
def test_pretraining_is_worth_it(task: str, gain: float, run: str, tmp_path: Path) -> None:
    train, test = (
        write_coco(tmp_path, name, list(scenes(count, seed=seed)))
        for name, count, seed in (("train", 200, 1), ("test", 100, 2))
    )
    protocol = load_dense(task, None, PROTOCOLS[task])
    ours, theirs = (figures(run, arm, protocol, train, test)[FIGURES[task]] for arm in ("pretrained", "untrained"))
    assert ours > theirs + gain, (ours, theirs)
