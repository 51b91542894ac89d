"""The world size is not a hyper-parameter: whole training steps on one, two or three ranks follow one loss curve.

The step is written here as plainly as it can be; `swav_ray/train` has the real one. Shapes: B rows of the global batch,
V crops, A assigned crops, D feature dimensions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from swav_ray.swav import LARS, FeatureQueue, SwAV, cut_queue, gather_queue
from swav_ray.swav.batch_norm import sync_batch_norm
from swav_ray.swav.loss import assign_codes, swapped_prediction
from swav_ray.swav.resnet import BasicBlock, ResNet
from tests.gloo import run_ranks

ROWS, STEPS, DIM, NUM_PROTOTYPES = 12, 6, 8, 10
CROP_SIZES = (16, 16, 8, 8)
# Rows of the global batch on each rank; the third crop group of some ranks is then one row, or none.
SPLITS = [(12,), (7, 5), (12, 0), (5, 6, 1)]


def images_of(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(ROWS, 3, size, size, generator=generator) for size in CROP_SIZES]


def first_state() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model": build_model().state_dict(), "optimizer": None, "queue": FeatureQueue(20, 2, DIM).state_dict()}


def build_model() -> SwAV:
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), base_width=4, stem="small")
    return SwAV(backbone, num_features=backbone.num_features, hidden_dim=16, feature_dim=DIM, num_prototypes=NUM_PROTOTYPES)


def train(rank: int, split: tuple[int, ...], state: dict[str, Any], steps: range) -> tuple[list[float], dict[str, Any]]:
    """This rank's part of the steps: the global loss of each, and the state to go on from."""
    group = dist.group.WORLD
    model = build_model()
    model.load_state_dict(state["model"])
    model = sync_batch_norm(model, group)
    optimizer = LARS(model.parameters(), lr=0.5)
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    queue = FeatureQueue(1, 2, DIM)
    queue.load_state_dict(cut_queue(state["queue"], rank, len(split)))
    positions = torch.arange(ROWS).split(split)[rank]
    losses = []
    for step in steps:
        model.normalize_prototypes()
        embeddings, scores = model([crop[positions] for crop in images_of(step)])
        embeddings_VBD = embeddings.view(len(CROP_SIZES), len(positions), DIM)
        scores_VBK = scores.view(len(CROP_SIZES), len(positions), NUM_PROTOTYPES)
        codes_ABK = assign_codes(
            scores_VBK[:2], model.prototypes.weight, epsilon=0.05, num_iterations=3, queue=queue, group=group
        )
        queue.push(embeddings_VBD[:2], positions=positions, global_rows=ROWS)
        loss = swapped_prediction(scores_VBK, codes_ABK, crops_for_assign=(0, 1), temperature=0.1) * len(positions) / ROWS
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        flat = torch.cat([loss.detach().view(1), *(gradient.flatten() for gradient in gradients)])  # one collective
        dist.all_reduce(flat)
        total, *summed = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, value in zip(gradients, summed, strict=True):
            gradient.copy_(value.view_as(gradient))
        optimizer.step()
        losses.append(total.item())
    return losses, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "queue": queue.state_dict()}


def run(split: tuple[int, ...], state: dict[str, Any], steps: range) -> tuple[list[float], dict[str, Any]]:
    """All ranks' run: the loss curve they agree on, and the global state."""
    answers = run_ranks(len(split), train, split, state, steps)
    losses, state = answers[0]
    for other_losses, other in answers[1:]:
        assert other_losses == losses
        for name, value in state["model"].items():
            assert torch.equal(other["model"][name], value), name
    return losses, {**state, "queue": gather_queue([of_rank["queue"] for _, of_rank in answers])}


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], dict[str, Any]]:
    return run((ROWS,), first_state(), range(STEPS))


def assert_same_run(ours: tuple[list[float], dict[str, Any]], alone: tuple[list[float], dict[str, Any]]) -> None:
    assert ours[0] == pytest.approx(alone[0], rel=1e-5)
    queue, expected = ours[1]["queue"], alone[1]["queue"]
    assert queue["pushed"] == expected["pushed"] == STEPS * ROWS
    torch.testing.assert_close(queue["rows"], expected["rows"], rtol=0, atol=5e-5)
    for name in ("prototypes.weight", "projector.3.weight", "backbone.conv1.weight"):
        torch.testing.assert_close(ours[1]["model"][name], alone[1]["model"][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_same_curve_on_any_ranks(split: tuple[int, ...], alone: tuple[list[float], dict[str, Any]]) -> None:
    assert_same_run(run(split, first_state(), range(STEPS)), alone)


def test_same_curve_when_the_world_changes_on_the_way(alone: tuple[list[float], dict[str, Any]]) -> None:
    losses, state = [], first_state()
    for split, steps in zip([(5, 6, 1), (7, 5), (12,)], [range(0, 2), range(2, 5), range(5, STEPS)], strict=True):
        era_losses, state = run(split, state, steps)
        losses += era_losses
    assert_same_run((losses, state), alone)
