"""Our synchronised batch norm against plain batch norm over the concatenated batch.

Shapes: B rows of the global batch, C channels.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from swav_ray.swav.batch_norm import SyncBatchNorm, sync_batch_norm
from tests.gloo import run_ranks

CHANNELS, ROWS = 5, 12
SPLITS = {2: [(6, 6), (11, 1), (0, 12)], 3: [(4, 4, 4), (9, 1, 2), (5, 0, 7)]}
TRAILING = {1: (), 2: (4, 3)}  # of BatchNorm1d and BatchNorm2d


def shaken_norm(dimensions: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A batch norm somewhere in the middle of its training."""
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions](CHANNELS)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
        norm.bias.copy_(torch.linspace(-1, 1, CHANNELS))
        norm.running_mean.fill_(0.3)
    return norm


def two_batches(dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and upstream gradients of two steps, (2, B, C, ...); channels of unlike means and scales."""
    generator = torch.Generator().manual_seed(dimensions)
    shape = (2, ROWS, CHANNELS, *TRAILING[dimensions])
    channel = torch.arange(1, CHANNELS + 1).view(CHANNELS, *[1] * len(TRAILING[dimensions]))
    inputs = torch.randn(shape, generator=generator) * channel + 10 * channel
    return inputs, torch.randn(shape, generator=generator)


def two_steps(norm: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is row by row (`rows_*`), what adds up over ranks (`sum_*`), and what is the same on all of them."""
    model = nn.Sequential(norm)
    x = inputs.clone().requires_grad_()
    outputs = torch.stack([model(x[step]) for step in range(2)])
    outputs.backward(gradients)
    return {
        "rows_output": outputs.detach(),
        "rows_gradient": x.grad,
        "sum_weight": model[0].weight.grad,
        "sum_bias": model[0].bias.grad,
        "rows_eval": model.eval()(inputs[0]).detach()[None],
        **{f"same_{name}": value.detach() for name, value in model.state_dict().items()},
    }


def synced_steps(
    rank: int, splits: list[tuple[int, ...]], norm: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
    answers = []
    for split in splits:
        synced = sync_batch_norm(nn.Sequential(copy.deepcopy(norm)), dist.group.WORLD)[0]
        assert isinstance(synced, SyncBatchNorm)
        answers.append(two_steps(synced, inputs.split(split, dim=1)[rank], gradients.split(split, dim=1)[rank]))
    return answers


@pytest.mark.parametrize("dimensions", TRAILING)
@pytest.mark.parametrize("world_size", SPLITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_plain_batch_norm_over_all_rows(world_size: int, dimensions: int, dtype: torch.dtype, tolerance: float) -> None:
    norm, (inputs, gradients) = shaken_norm(dimensions).to(dtype), (each.to(dtype) for each in two_batches(dimensions))
    expected = two_steps(copy.deepcopy(norm).double(), inputs.double(), gradients.double())
    for parts in zip(*run_ranks(world_size, synced_steps, SPLITS[world_size], norm, inputs, gradients), strict=True):
        for name, value in expected.items():
            values = [part[name] for part in parts]
            joined = {"rows": lambda v: torch.cat(v, dim=1), "sum": sum, "same": lambda v: v[0]}[name.split("_")[0]](values)
            torch.testing.assert_close(
                joined.to(value.dtype), value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
            if name.startswith("same"):
                assert all(torch.equal(other, values[0]) for other in values)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows-first", "channels-last"])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_one_process_keeps_the_precision_of_its_numbers(layout: torch.memory_format, mean: float) -> None:
    """Large activations in either memory layout, against float64; torch's own kernel loses digits in channels-last."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, CHANNELS, 24, 24, generator=generator).add_(mean).to(memory_format=layout)
    upstream = torch.randn(inputs.shape, generator=generator).add_(1).to(memory_format=layout)

    def step(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        x = inputs.to(dtype, copy=True).requires_grad_()
        output = model.to(dtype)(x)
        output.backward(upstream.to(dtype))
        return [output.detach(), x.grad, *(parameter.grad for parameter in model.parameters()), *model.buffers()]

    expected = step(nn.Sequential(shaken_norm(2)), torch.float64)
    for dtype, tolerance in [(torch.float32, 5e-5), (torch.float64, 1e-11)]:
        for value, exact in zip(step(sync_batch_norm(nn.Sequential(shaken_norm(2)), None), dtype), expected, strict=True):
            assert value.dtype in (dtype, torch.int64)
            assert (value.double() - exact).abs().max() <= tolerance * exact.abs().max()


def nested() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, CHANNELS), shaken_norm(1), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(CHANNELS, eps=1e-3)))
    model[2][1].momentum = 0.3
    model[2][1].eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_weights_and_settings_stay(dtype: torch.dtype) -> None:
    group = object()  # used in training forwards only
    before = nested().to(dtype)
    after = sync_batch_norm(copy.deepcopy(before), group)
    assert list(after.state_dict()) == list(before.state_dict())
    for name, value in before.state_dict().items():
        assert after.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(after.state_dict()[name], value), name
    assert [name for name, _ in after.named_parameters()] == [name for name, _ in before.named_parameters()]
    inner = after[2][1]
    assert isinstance(inner, SyncBatchNorm) and inner.group is group
    assert (inner.eps, inner.momentum, inner.training) == (1e-3, 0.3, False)
    before.load_state_dict(after.state_dict(), strict=True)


def test_evaluation_needs_no_other_rank() -> None:
    before = nested().eval()
    after = sync_batch_norm(copy.deepcopy(before), object())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after(x), before(x))
