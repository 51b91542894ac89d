"""The collapse watch: the verdict on situations made by hand, and signs that do not know the world size.

Shapes: A assigned crops, B rows, K prototypes, D feature dimensions.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.distributed as dist

from swav_ray.swav.collapse import CollapseWatch, Signs, Verdict, judge
from tests.gloo import run_ranks

NUM_PROTOTYPES, DIM, ROWS = 20, 16, 256
UNIFORM_LOSS = math.log(NUM_PROTOTYPES)


def unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)


def spread_out(seed: int, rows: int = ROWS) -> torch.Tensor:
    """(A, B, D) embeddings anywhere on the sphere."""
    return unit(torch.randn(2, rows, DIM, generator=torch.Generator().manual_seed(seed)))


PROTOTYPES = unit(torch.randn(NUM_PROTOTYPES, DIM, generator=torch.Generator().manual_seed(99)))


def signs_of(embeddings_ABD: torch.Tensor, loss: float) -> Signs:
    watch = CollapseWatch(NUM_PROTOTYPES, DIM)
    watch.update(embeddings_ABD, embeddings_ABD @ PROTOTYPES.T, temperature=0.1)
    return watch.read(loss)


def verdict_on(signs: Signs, epoch: float = 5) -> Verdict:
    return judge(signs, epoch=epoch, settled_epoch=3)


def test_healthy() -> None:
    signs = signs_of(spread_out(0), loss=2.0)
    assert signs.loss_share == pytest.approx(2.0 / UNIFORM_LOSS)
    assert signs.assignment_entropy > 0.95
    assert signs.prototypes_in_use == NUM_PROTOTYPES
    assert signs.embedding_std == pytest.approx(1, abs=0.05)
    assert verdict_on(signs) == Verdict("healthy", "")


def test_all_embeddings_one_point_is_collapsed() -> None:
    signs = signs_of(spread_out(0, rows=1).expand(2, ROWS, DIM)[:1].expand(2, ROWS, DIM), loss=UNIFORM_LOSS)
    assert signs.embedding_std < 1e-3
    assert signs.prototypes_in_use == 1
    verdict = verdict_on(signs)
    assert verdict.state == "collapsed" and verdict.unwell
    assert "one point" in verdict.advice


def test_loss_at_ln_k_with_spread_embeddings_is_stuck() -> None:
    verdict = verdict_on(signs_of(spread_out(0), loss=UNIFORM_LOSS * 0.999))
    assert verdict.state == "stuck" and verdict.unwell
    assert "epsilon" in verdict.advice


@pytest.mark.parametrize("share", [2.1, 1.1, 1.006, 0.99])
def test_a_loss_above_ln_k_is_on_its_way_down_and_not_stuck(share: float) -> None:
    assert verdict_on(signs_of(spread_out(0), loss=UNIFORM_LOSS * share)).state == "healthy"


def test_few_prototypes_taking_all_is_collapsed() -> None:
    near_one_prototype = unit(PROTOTYPES[3] + 0.1 * spread_out(0))
    signs = signs_of(near_one_prototype, loss=1.0)
    assert signs.prototypes_in_use <= 2 and signs.embedding_std > 0.05
    verdict = verdict_on(signs)
    assert verdict.state == "collapsed" and "few prototypes" in verdict.advice


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("epoch", [0, 5])
def test_a_loss_that_is_no_number_is_diverged_at_any_time(loss: float, epoch: float) -> None:
    verdict = verdict_on(signs_of(spread_out(0), loss), epoch)
    assert verdict.state == "diverged" and verdict.unwell and "base_lr" in verdict.advice


def test_before_things_settle_nothing_else_is_called() -> None:
    collapsed = signs_of(spread_out(0, rows=1), loss=UNIFORM_LOSS)
    assert verdict_on(collapsed, epoch=2.9) == Verdict("warming_up", "")
    assert verdict_on(collapsed, epoch=3.0).state != "warming_up"


def test_a_read_starts_a_new_window() -> None:
    watch = CollapseWatch(NUM_PROTOTYPES, DIM)
    one_point = spread_out(0, rows=1)[:1].expand(2, ROWS, DIM)
    watch.update(one_point, one_point @ PROTOTYPES.T, temperature=0.1)
    watch.read(1.0)
    watch.update(spread_out(1), spread_out(1) @ PROTOTYPES.T, temperature=0.1)
    assert watch.read(1.0) == signs_of(spread_out(1), 1.0)


def signs_on_rank(rank: int, embeddings_ABD: torch.Tensor, split: tuple[int, ...]) -> Signs:
    watch = CollapseWatch(NUM_PROTOTYPES, DIM)
    for half in embeddings_ABD.split(split, dim=1)[rank].chunk(2, dim=1):  # two steps of one window
        watch.update(half, half @ PROTOTYPES.T, temperature=0.1)
    return watch.read(2.0, dist.group.WORLD)


def test_signs_do_not_know_the_world_size() -> None:
    embeddings = spread_out(0)
    expected = dataclasses.asdict(signs_of(embeddings, 2.0))
    for signs in run_ranks(3, signs_on_rank, embeddings, (200, 0, 56)):
        assert dataclasses.asdict(signs) == pytest.approx(expected, rel=1e-6)
