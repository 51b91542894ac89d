"""A step in several parts is the undivided step: on one worker and several, with uneven shares and a full queue.

Shapes: A assigned crops, B rows of the global batch, K prototypes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch
from swav_ray.swav.loss import swapped_prediction
from swav_ray.train import step as step_module
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.loop import Training
from swav_ray.train.step import loss_and_gradients, num_parts
from swav_ray.train.trainer import open_run
from swav_ray.train.world import World
from tests.gloo import run_ranks
from tests.train.small import EPOCHS, ROWS, STEPS, losses_of, small_config, small_shards, train_here

PARTS = 4
# Workers, block_rows, cap. A step of 36 or 37 rows has 6, 3 or 2 blocks; the shares are:
WORLDS = {
    "one worker": (1, 7, 10),
    "two workers": (2, 7, 5),  # 18 and 18
    "two workers, uneven": (2, 14, 7),  # 24 and 12
    "three workers, one without rows": (3, 20, 5),  # 18, 18 and 0
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


def capped(config: Config, rows: int) -> Config:
    return config.model_copy(update={"elastic": config.elastic.model_copy(update={"max_rows_per_device": rows})})


class Watched:
    """A run after four steps, its queue full, at the fifth batch; what its model and its workers do is written down."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        self.training = Training(config, open_run(config), World.join(torch.device("cpu")))
        self.model, world = self.training.model, self.training.world
        self.embeddings: dict[bool, list[torch.Tensor]] = {False: [], True: []}  # with gradient or not
        self.reductions: list[int] = []
        if isinstance(self.training._forward, DistributedDataParallel):
            self.training._forward.register_comm_hook(self.reductions, _counted)
        batches = self.training.stream.local(self.training.position, world.rank, world.size)
        for batch in itertools.islice(batches, 4):
            self.training._train_step(batch)
        self.batch: Batch = next(batches)
        assert self.training.queue is not None and self.training.queue.is_full
        self.model.register_forward_hook(lambda _, __, out: self.embeddings[torch.is_grad_enabled()].append(out[0].detach()))

    @contextmanager
    def step(self, config: Config) -> Iterator[dict[str, Any]]:
        """The gradients' step, undone afterwards."""
        self.embeddings[False].clear(), self.embeddings[True].clear(), self.reductions.clear()
        before = copy.deepcopy(self.model.state_dict())
        training = self.training
        seen = loss_and_gradients(config, self.model, training._forward, self.batch, training.world, training.queue)
        yield {
            "positions": self.batch.positions,
            "passes": (len(self.embeddings[False]), len(self.embeddings[True])),
            "reductions": list(self.reductions),
            "seen": seen,
            "gradients": {name: value.grad.clone() for name, value in self.model.named_parameters()},
        }
        self.model.load_state_dict(before)
        self.model.zero_grad()


def _counted(counts, bucket):  # DDP refuses annotations in quotes
    counts.append(bucket.index())
    return default_hooks.allreduce_hook(None, bucket)


def _both_ways(rank: int, config: Config, cap: int, frozen: bool) -> list[dict[str, Any]]:
    """The same batch undivided and in parts."""
    watched, answers = Watched(config), []
    if frozen:
        for module in watched.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for rows in (0, cap):
        with watched.step(capped(config, rows)) as answer:
            answers.append(answer)
    return answers


def _global_codes(of_ranks: list[dict[str, Any]]) -> torch.Tensor:
    """``(A, B, K)`` in the order of the global batch."""
    order = np.argsort(np.concatenate([answer["positions"] for answer in of_ranks]))
    return torch.cat([answer["seen"].codes_ABK for answer in of_ranks], dim=1)[:, order]


def _compare(of_ranks: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Largest differences: of codes, of the loss (relative), of gradients (relative to each tensor's norm)."""
    whole, parts = ([answers[way] for answers in of_ranks] for way in range(2))
    losses = [float(sum(answer["seen"].loss for answer in way)) for way in (whole, parts)]
    gradients = {
        name: float((parts[0]["gradients"][name] - value).norm() / value.norm())
        for name, value in whole[0]["gradients"].items()
    }
    return {
        "codes": float((_global_codes(parts) - _global_codes(whole)).abs().max()),
        "loss": abs(losses[1] / losses[0] - 1),
        "gradients": max(gradients.values()),
    }


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("world", WORLDS)
def test_codes_loss_and_gradients_are_those_of_the_undivided_step(shards, tmp_path, world, precision, tolerance):
    workers, block_rows, cap = WORLDS[world]
    config = small_config(shards, str(tmp_path), "run", precision=precision, **{"data.block_rows": block_rows})
    of_ranks = run_ranks(workers, _both_ways, config, cap, True)
    if "uneven" in world or "without" in world:
        assert len({len(answers[0]["positions"]) for answers in of_ranks}) > 1, "shares are even, so the test shows less"
    for whole, parts in of_ranks:
        assert whole["passes"] == (0, 1) and parts["passes"] == (PARTS, PARTS)
        assert parts["reductions"] == whole["reductions"], "gradients are exchanged once a step, not once a part"
        assert bool(parts["reductions"]) == (workers > 1)
        for name, value in of_ranks[0][1]["gradients"].items():
            assert torch.equal(parts["gradients"][name], value), name
    differences = _compare(of_ranks)
    assert differences["codes"] < tolerance / 10, differences
    assert differences["loss"] < tolerance and differences["gradients"] < tolerance, differences


@pytest.mark.parametrize("world", WORLDS)
def test_with_live_batch_norm_each_part_is_a_batch_of_its_own(shards, tmp_path, world):
    """Gradients, running statistics, embeddings and queue are those of one graph over the parts, each embedded once."""
    workers, block_rows, cap = WORLDS[world]
    config = small_config(shards, str(tmp_path), "run", **{"data.block_rows": block_rows})
    for answer in run_ranks(workers, _live, config, cap):
        first, second = answer["embeddings"]
        assert len(first) == len(second) == PARTS
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the second way differs from the first"
        assigned = torch.cat([part.unflatten(0, (4, len(part) // 4))[:2] for part in first], dim=1)
        assert torch.equal(answer["seen"].embeddings_ABD, assigned)
        assert torch.equal(answer["queue"][:, : assigned.shape[1]], assigned), "in the order of the batch, newest first"
        for kind in ("gradients", "buffers"):
            found, expected = answer[kind], answer[f"expected_{kind}"]
            assert set(found) == set(expected) and found
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def _live(rank: int, config: Config, cap: int) -> dict[str, Any]:
    watched = Watched(config)
    model, batch, world, queue = watched.model, watched.batch, watched.training.world, watched.training.queue
    with watched.step(capped(config, cap)) as answer:
        answer["buffers"] = {name: value.clone() for name, value in model.named_buffers()}
        answer["embeddings"] = [list(watched.embeddings[gradient]) for gradient in (False, True)]

    before = {name: value.clone() for name, value in model.named_buffers()}
    model.normalize_prototypes()
    rows, scores, shape = len(batch.positions), [], (config.num_crops, -1, config.num_prototypes)
    for part in range(PARTS):
        cut = slice(part * rows // PARTS, (part + 1) * rows // PARTS)
        of_part = model(step_module._crops(config, model, batch, cut, world.device))[1]
        scores.append(of_part.view(shape) if len(of_part) else of_part.view(config.num_crops, 0, config.num_prototypes))
    loss = swapped_prediction(
        torch.cat(scores, dim=1), answer["seen"].codes_ABK, crops_for_assign=[0, 1], temperature=config.temperature
    )
    (loss * rows / batch.global_rows).backward()
    answer["expected_gradients"] = {name: world.sum(value.grad) for name, value in model.named_parameters()}
    answer["expected_buffers"] = {name: value.clone() for name, value in model.named_buffers()}
    assert all(not torch.equal(value, before[name]) for name, value in answer["expected_buffers"].items())

    model.load_state_dict(before, strict=False)
    model.zero_grad()
    watched.training.config = capped(config, cap)
    watched.training._train_step(batch)
    assert torch.equal(queue.rows(), watched.training.queue.rows())
    return {**answer, "queue": queue.rows()}


def test_live_batch_norm_is_what_a_cap_changes(shards, tmp_path):
    """Not a promise: that the same comparison, with live statistics, sees a difference at all."""
    config = small_config(shards, str(tmp_path), "run")
    differences = _compare(run_ranks(1, _both_ways, config, 10, False))
    assert differences["codes"] > 0.01 and differences["loss"] > 1e-4, differences


class _Plain(nn.Module):
    """A backbone without batch norm: what its rows become does not depend on which rows stand beside them."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 5, stride=2), nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images).relu()).relu().mean(dim=(2, 3))


def plain_backbone() -> nn.Module:
    return _Plain()


def _rank(rank: int, config: Config, steps: int | None) -> None:
    train_here(config, rank=rank, steps=steps)


def test_a_whole_run_under_changing_caps_and_workers_is_the_undisturbed_run(shards, tmp_path):
    """1 -> 3 -> 2 -> 1 workers, each under another cap, without batch norm: nothing but rounding differs."""
    plain = {"backbone.arch": "tests.train.test_accumulation:plain_backbone", "hidden_dim": 0}
    calm, elastic = (small_config(shards, str(tmp_path), name, **plain) for name in ("calm", "elastic"))
    reference = train_here(calm)
    assert len(reference) == STEPS
    for workers, steps, cap in ((1, 4, 10), (3, 8, 4), (2, 4, 5), (1, None, 13)):
        run_ranks(workers, _rank, capped(elastic, cap), steps)
    rows = losses_of(elastic)
    for epoch in range(EPOCHS):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    assert [(row["ids"], row["lr"]) for row in rows] == [(row["ids"], row["lr"]) for row in reference]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in reference], rel=1e-9)
    a, b = (Checkpoints(Storage(f"{tmp_path}/{name}/checkpoints")).latest()[0] for name in ("calm", "elastic"))
    torch.testing.assert_close(a["queue"]["rows"], b["queue"]["rows"], rtol=1e-8, atol=1e-10)
    for name, value in a["model"].items():
        torch.testing.assert_close(value, b["model"][name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("share", "cap", "parts"), [(37, 0, 1), (37, 37, 1), (37, 40, 1), (37, 36, 2), (37, 10, 4), (36, 9, 4), (37, 9, 5)]
)
def test_as_few_parts_as_the_cap_allows(share: int, cap: int, parts: int) -> None:
    assert num_parts(share, cap) == parts
