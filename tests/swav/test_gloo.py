"""The helper that starts ranks: what it returns, and that a failure of one rank is heard."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.gloo import RankError, run_ranks


def _sum_over_ranks(rank: int, offset: int) -> dict[str, object]:
    total = torch.tensor([float(rank + offset)])
    dist.all_reduce(total)
    return {"rank": rank, "world": dist.get_world_size(), "total": total.numpy(), "big": np.zeros(1_000_000)}


def _fail_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise KeyError("the reason")
    dist.barrier()


def _die_on_rank_one(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.barrier()


def _hang(rank: int) -> None:
    time.sleep(600)


@pytest.mark.parametrize("world_size", [1, 3])
def test_results_come_back_in_rank_order(world_size: int) -> None:
    answers = run_ranks(world_size, _sum_over_ranks, 10)
    assert [answer["rank"] for answer in answers] == list(range(world_size))
    assert {answer["world"] for answer in answers} == {world_size}
    assert {float(answer["total"][0]) for answer in answers} == {sum(10 + rank for rank in range(world_size))}


def test_a_failing_rank_shows_its_traceback() -> None:
    with pytest.raises(RankError, match=r"rank 1 failed(.|\n)*_fail_on_rank_one(.|\n)*the reason"):
        run_ranks(2, _fail_on_rank_one)


def test_a_dead_rank_is_noticed_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match="rank"):
        run_ranks(2, _die_on_rank_one, timeout=60)
    assert time.monotonic() - start < 30


def test_a_hanging_rank_is_bounded() -> None:
    with pytest.raises(RankError, match=r"ranks \[0, 1\]"):
        run_ranks(2, _hang, timeout=1.0)
