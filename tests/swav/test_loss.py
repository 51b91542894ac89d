"""The loss against its definition written out, its use of the queue, and its independence of the world size.

Shapes: V crops, A assigned crops, B rows, K prototypes, D feature dimensions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.swav import FeatureQueue, cut_queue, sinkhorn, swav_loss
from tests.gloo import run_ranks

DIM, NUM_PROTOTYPES = 6, 9


def unit_rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(values, dim=-1)


def written_out(
    embeddings_VBD: torch.Tensor, prototypes_KD: torch.Tensor, codes_ABK: torch.Tensor, assigned: list[int], temperature: float
) -> torch.Tensor:
    """Mean over assigned crops of the mean over the other crops of the cross-entropy (SWAV_FACTS 5)."""
    total = torch.zeros((), dtype=embeddings_VBD.dtype)
    num_crops = len(embeddings_VBD)
    for codes_BK, i in zip(codes_ABK, assigned, strict=True):
        for v in range(num_crops):
            if v != i:
                log_p_BK = torch.log_softmax(embeddings_VBD[v] @ prototypes_KD.T / temperature, dim=1)
                total = total - (codes_BK * log_p_BK).sum(dim=1).mean() / (num_crops - 1) / len(assigned)
    return total


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 8), st.data(), st.sampled_from([0.05, 0.1, 1.0]))
def test_loss_and_gradients_are_the_definition(
    seed: int, num_crops: int, rows: int, data: st.DataObject, temperature: float
) -> None:
    assigned = data.draw(st.lists(st.integers(0, num_crops - 1), min_size=1, unique=True))
    embeddings = unit_rows(seed, num_crops, rows, DIM).requires_grad_()
    prototypes = unit_rows(seed + 1, NUM_PROTOTYPES, DIM).requires_grad_()
    codes = sinkhorn((embeddings @ prototypes.T)[assigned])
    expected = written_out(embeddings, prototypes, codes, assigned, temperature)
    loss = swav_loss(embeddings, prototypes, crops_for_assign=assigned, temperature=temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, (embeddings, prototypes)) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_full_queue_joins_the_population_before_this_batch_enters_it() -> None:
    prototypes = unit_rows(0, NUM_PROTOTYPES, DIM)
    queue = FeatureQueue(8, 2, DIM)
    batches = [unit_rows(1 + step, 3, 4, DIM, dtype=torch.float32).double() for step in range(4)]
    for step, embeddings in enumerate(batches):
        loss = swav_loss(embeddings, prototypes, queue=queue)
        population = embeddings[:2]
        if step >= 2:  # 8 rows are in: the two batches before this one, newest first, whatever was pushed to fill it
            population = torch.cat([batches[step - 1][:2], batches[step - 2][:2], embeddings[:2]], dim=1)
        codes = sinkhorn(population @ prototypes.T)[:, -4:]
        torch.testing.assert_close(loss, written_out(embeddings, prototypes, codes, [0, 1], 0.1), rtol=1e-6, atol=0)
        assert queue.rows().shape[1] == min(8, 4 * (step + 1))
        assert torch.equal(queue.rows()[:, :4].double(), embeddings[:2])


def test_the_queue_takes_the_assigned_crops_only() -> None:
    embeddings = unit_rows(0, 4, 3, DIM, dtype=torch.float32)
    queue = FeatureQueue(8, 2, DIM)
    swav_loss(embeddings, unit_rows(1, NUM_PROTOTYPES, DIM, dtype=torch.float32), crops_for_assign=(2, 0), queue=queue)
    assert torch.equal(queue.rows(), embeddings[[2, 0]])


def test_at_most_four_collectives_a_step_with_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op=None, group=None: calls.append(tensor))
    queue = FeatureQueue(4, 2, DIM)
    queue.push(unit_rows(0, 2, 4, DIM))
    group: Any = object()
    swav_loss(unit_rows(1, 8, 4, DIM), unit_rows(2, NUM_PROTOTYPES, DIM), queue=queue, group=group)
    assert len(calls) == 4


def test_half_precision_embeddings_give_a_float32_loss() -> None:
    embeddings, prototypes = (
        unit_rows(0, 4, 5, DIM, dtype=torch.float32),
        unit_rows(1, NUM_PROTOTYPES, DIM, dtype=torch.float32),
    )
    loss = swav_loss(embeddings.bfloat16(), prototypes.bfloat16())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, swav_loss(embeddings, prototypes), rtol=0.05, atol=0)


@pytest.mark.parametrize(("num_crops", "assigned"), [(1, (0,)), (4, ()), (4, (0, 4)), (4, (-1,))])
def test_crops_that_are_not_there_are_refused(num_crops: int, assigned: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="crops_for_assign"):
        swav_loss(unit_rows(0, num_crops, 2, DIM), unit_rows(1, NUM_PROTOTYPES, DIM), crops_for_assign=assigned)


def part_of_loss(
    rank: int, splits: list[tuple[int, ...]], embeddings_VBD: torch.Tensor, prototypes_KD: torch.Tensor, state: dict[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """This rank's share of the global mean and its gradients, for each split of the rows over the ranks."""
    answers = []
    for split in splits:
        embeddings = embeddings_VBD.split(split, dim=1)[rank].clone().requires_grad_()
        prototypes = prototypes_KD.clone().requires_grad_()
        queue = FeatureQueue(1, 2, DIM)
        queue.load_state_dict(cut_queue(state, rank, len(split)))
        loss = swav_loss(embeddings, prototypes, queue=queue, group=dist.group.WORLD) * split[rank] / sum(split)
        loss.backward()
        answers.append((loss.detach(), embeddings.grad, prototypes.grad))
    return answers


@pytest.mark.parametrize("splits", [[(4, 4), (7, 1), (0, 8)], [(3, 3, 2), (8, 0, 0), (1, 0, 7)]], ids=["two", "three"])
def test_any_split_over_ranks_gives_the_same_loss_and_gradients(splits: list[tuple[int, ...]]) -> None:
    embeddings = unit_rows(0, 4, 8, DIM).requires_grad_()
    prototypes = unit_rows(1, NUM_PROTOTYPES, DIM).requires_grad_()
    queue = FeatureQueue(10, 2, DIM)
    queue.push(unit_rows(2, 2, 13, DIM))
    state = queue.state_dict()
    expected = swav_loss(embeddings, prototypes, queue=queue)
    expected.backward()
    on_ranks = run_ranks(len(splits[0]), part_of_loss, splits, embeddings.detach(), prototypes.detach(), state)
    for parts in zip(*on_ranks, strict=True):
        losses, embedding_grads, prototype_grads = zip(*parts, strict=True)
        torch.testing.assert_close(sum(losses), expected.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(torch.cat(embedding_grads, dim=1), embeddings.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(sum(prototype_grads), prototypes.grad, rtol=0, atol=1e-12)
