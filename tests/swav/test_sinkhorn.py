"""Sinkhorn: safe at any epsilon, the published fixed point, and blind to how rows are spread over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.swav import sinkhorn
from tests.gloo import run_ranks

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


def cosine_scores(seed: int, *shape: int, concentrated: bool = False) -> torch.Tensor:
    """Cosines of random rows to random prototypes; concentrated rows nearly coincide, some with a prototype itself."""
    generator = torch.Generator().manual_seed(seed)
    *leading, rows, num_prototypes = shape
    prototypes = torch.randn(*leading, num_prototypes, 8, generator=generator)
    embeddings = torch.randn(*leading, rows, 8, generator=generator)
    if concentrated:
        embeddings = 0.01 * embeddings + prototypes[..., :1, :]
    prototypes, embeddings = (torch.nn.functional.normalize(x, dim=-1) for x in (prototypes, embeddings))
    return embeddings @ prototypes.mT


def plain_sinkhorn(scores_BK: np.ndarray, epsilon: float, num_iterations: int) -> np.ndarray:
    """The published steps on exponentials, in float64 (SWAV_FACTS 3)."""
    codes_KB = np.exp(scores_BK.astype(np.float64) / epsilon).T
    num_prototypes, rows = codes_KB.shape
    codes_KB /= codes_KB.sum()
    for _ in range(num_iterations):
        codes_KB /= codes_KB.sum(axis=1, keepdims=True) * num_prototypes
        codes_KB /= codes_KB.sum(axis=0, keepdims=True) * rows
    return (codes_KB * rows).T


sizes = st.tuples(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 60))


@PROPERTY
@given(sizes, st.floats(-3, 0).map(lambda power: 10.0**power), st.integers(1, 5), st.booleans())
def test_any_epsilon_gives_finite_rows_that_sum_to_one(
    size: tuple[int, int, int], epsilon: float, num_iterations: int, concentrated: bool
) -> None:
    codes = sinkhorn(cosine_scores(*size, concentrated=concentrated), epsilon=epsilon, num_iterations=num_iterations)
    assert codes.dtype == torch.float32
    assert torch.isfinite(codes).all() and (codes >= 0).all()
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(codes.shape[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_identical_scores_give_uniform_codes_at_the_smallest_epsilon(value: float) -> None:
    codes = sinkhorn(torch.full((7, 30), value), epsilon=0.001)
    torch.testing.assert_close(codes, torch.full((7, 30), 1 / 30), atol=1e-6, rtol=0)


@PROPERTY
@given(sizes, st.sampled_from([0.03, 0.05, 0.5]), st.integers(1, 5), st.booleans())
def test_equals_the_plain_form(size: tuple[int, int, int], epsilon: float, num_iterations: int, concentrated: bool) -> None:
    scores = cosine_scores(*size, concentrated=concentrated).double()
    codes = sinkhorn(scores, epsilon=epsilon, num_iterations=num_iterations)
    assert codes.dtype == torch.float64
    np.testing.assert_allclose(codes.numpy(), plain_sinkhorn(scores.numpy(), epsilon, num_iterations), rtol=0, atol=1e-12)


def test_equals_the_plain_form_where_it_still_works_in_float32() -> None:
    scores = cosine_scores(0, 64, 30, concentrated=True)
    expected = plain_sinkhorn(scores.numpy(), 0.05, 3)
    np.testing.assert_allclose(sinkhorn(scores).numpy(), expected, rtol=0, atol=1e-6)


@PROPERTY
@given(sizes, st.integers(1, 4))
def test_leading_dimensions_are_independent_problems(size: tuple[int, int, int], problems: int) -> None:
    seed, rows, num_prototypes = size
    scores = cosine_scores(seed, problems, 2, rows, num_prototypes)
    together = sinkhorn(scores)
    for problem in np.ndindex(problems, 2):
        torch.testing.assert_close(together[problem], sinkhorn(scores[problem]), atol=1e-6, rtol=0)


def test_many_iterations_give_every_prototype_the_same_mass() -> None:
    codes = sinkhorn(cosine_scores(1, 256, 30).double(), num_iterations=200)
    torch.testing.assert_close(codes.sum(dim=0), torch.full((30,), 256 / 30).double(), rtol=1e-6, atol=0)


def test_scores_stay_as_they_are_and_codes_carry_no_gradient() -> None:
    scores = cosine_scores(2, 10, 5).requires_grad_()
    before = scores.detach().clone()
    codes = sinkhorn(scores)
    assert not codes.requires_grad
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores = cosine_scores(3, 10, 5).to(dtype)
    codes = sinkhorn(scores, epsilon=0.01)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, sinkhorn(scores.float(), epsilon=0.01))


@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.0, 3), (-0.05, 3), (float("nan"), 3), (0.05, 0)])
def test_senseless_settings_are_refused(epsilon: float, num_iterations: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        sinkhorn(torch.zeros(2, 2), epsilon=epsilon, num_iterations=num_iterations)


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_both_assigned_crops_share_their_collectives(monkeypatch: pytest.MonkeyPatch, num_iterations: int) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op=None, group=None: calls.append((tensor.shape, group)))
    group: Any = object()
    scores = cosine_scores(4, 2, 16, 10)
    torch.testing.assert_close(
        sinkhorn(scores, num_iterations=num_iterations, group=group), sinkhorn(scores, num_iterations=num_iterations)
    )
    assert calls == [(torch.Size([2, 1, 10]), group)] * (1 + num_iterations)


SPLITS = {2: [(8, 8), (15, 1), (0, 16)], 3: [(6, 5, 5), (1, 0, 15), (0, 16, 0)]}  # of 16 rows


def codes_of_parts(rank: int, splits: list[tuple[int, ...]], problems: list[tuple[torch.Tensor, float]]) -> list[torch.Tensor]:
    return [
        sinkhorn(scores.split(split, dim=-2)[rank], epsilon=epsilon, group=dist.group.WORLD)
        for split in splits
        for scores, epsilon in problems
    ]


@pytest.mark.parametrize("world_size", SPLITS)
def test_any_split_over_ranks_gives_the_same_codes(world_size: int) -> None:
    problems = [(cosine_scores(seed, 2, 16, 12, concentrated=bool(seed % 2)), 0.05) for seed in range(4)]
    # Small epsilons in float64: there float32 scores themselves are too coarse to compare codes to 1e-6.
    problems += [(cosine_scores(seed, 2, 16, 12).double(), 0.002) for seed in range(2)]
    on_ranks = run_ranks(world_size, codes_of_parts, SPLITS[world_size], problems)
    for i, parts in enumerate(zip(*on_ranks, strict=True)):
        scores, epsilon = problems[i % len(problems)]
        torch.testing.assert_close(torch.cat(parts, dim=-2), sinkhorn(scores, epsilon=epsilon), atol=1e-6, rtol=0)
