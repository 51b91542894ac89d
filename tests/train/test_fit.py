"""`max_rows_per_device: auto`: the fewest passes that fit, the same on all workers, and nothing of the run changed by trying.

Memory is that of an imaginary device: the backbone refuses more rows than it "holds", with the error a GPU would raise.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from swav_ray.config import Config, load_config
from swav_ray.errors import UserError
from swav_ray.swav.resnet import resnet
from swav_ray.train import fit
from swav_ray.train.bench import begin, share_of
from swav_ray.train.loop import Training
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World
from tests.gloo import run_ranks

HOLDS = "SWAV_RAY_TEST_HOLDS"


class _Small(nn.Module):
    """Refuses more rows at once than its device holds; a batch has two crops of each size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet("resnet10", base_width=4, stem="small")
        self.num_features = self.net.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2 * int(os.environ.get(HOLDS, "1000000")):
            raise torch.OutOfMemoryError("more than there is")
        return self.net(images)


def small_backbone() -> nn.Module:
    return _Small()


def begun(folder: str, world: World | None = None, rows: Any = "auto", workers: int = 1) -> Training:
    values = {
        "backbone.arch": "tests.train.test_fit:small_backbone",
        "global_batch_size": 40,
        "num_prototypes": 20,
        "queue_length": 40,
        "hidden_dim": 16,
        "feature_dim": 8,
        "elastic.max_rows_per_device": rows,
        "elastic.max": workers,
    }
    config = share_of(load_config("demo-digits", values), workers)
    return begin(config, world or World(), SyntheticStream(config), folder)


@pytest.mark.parametrize(("holds", "cap"), [(1000, 0), (40, 0), (39, 20), (20, 20), (19, 14), (7, 7), (3, 3)])
def test_the_fewest_passes_that_fit(holds: int, cap: int) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= holds

    assert fit.largest_cap(40, fits) == cap
    assert all(rows > holds for rows in tried[:-1])


def test_a_device_too_small_for_anything_is_one_line() -> None:
    with pytest.raises(UserError, match="not even 3 rows"):
        fit.largest_cap(40, lambda rows: False)


def test_on_the_cpu_there_is_no_cap(tmp_path) -> None:
    assert begun(str(tmp_path)).config.elastic.max_rows_per_device == 0


def test_trying_changes_nothing_of_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    training = begun(str(tmp_path))
    training.model.normalize_prototypes()  # a step's first act, and the same twice
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    queue, random = training.queue.rows().clone(), torch.get_rng_state()
    monkeypatch.setenv(HOLDS, "10")
    assert [fit.fits(training, 40, cap) for cap in (20, 14, 10, 7)] == [False, False, True, True]
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7, msg=name)
    assert all(parameter.grad is None for parameter in training.model.parameters())
    assert torch.equal(training.queue.rows(), queue) and torch.equal(torch.get_rng_state(), random)


def _found(rank: int, folder: str, holds: list[int]) -> int:
    os.environ[HOLDS] = str(holds[rank])
    training = begun(f"{folder}/{rank}", World.join(torch.device("cpu")), rows=0, workers=2)
    training.config = fit.capped(training.config, 0)
    world = training.world
    return fit.largest_cap(20, lambda cap: world.vote(not fit.fits(training, 20, cap))() == 0)


def test_workers_with_unequal_memory_agree_on_the_smaller(tmp_path) -> None:
    assert run_ranks(2, _found, str(tmp_path), [1000, 9]) == [7, 7]


def test_auto_is_a_setting_and_other_words_are_not() -> None:
    assert isinstance(load_config("demo-digits", {"elastic.max_rows_per_device": "auto"}), Config)
    with pytest.raises(UserError, match="max_rows_per_device"):
        load_config("demo-digits", {"elastic.max_rows_per_device": "most"})
