"""Convolutions of small pictures as one matrix product: the numbers of torch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swav_ray.swav import small_conv
from swav_ray.swav.small_conv import Conv3x3


def both_ways(
    monkeypatch: pytest.MonkeyPatch, side: int, stride: int, dtype: torch.dtype, rows: int = 5
) -> list[list[torch.Tensor]]:
    """Output, and gradients of input and weight, of our way and of torch's in float64."""
    torch.manual_seed(0)
    conv = Conv3x3(small_conv.FEWEST_CHANNELS, 24, stride).to(memory_format=torch.channels_last)
    x = torch.randn(rows, small_conv.FEWEST_CHANNELS, side, side).to(memory_format=torch.channels_last)
    ways: list[str] = []
    plain = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: ways.append("torch") or plain(self, x))
    answers = []
    for wanted in (dtype, torch.float64):
        conv.to(torch.float64 if wanted == torch.float64 else torch.float32).zero_grad()
        inputs = x.to(torch.promote_types(wanted, torch.float32), copy=True).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=wanted == torch.bfloat16):
            out = conv(inputs)
        assert out.dtype == wanted
        (out.double() * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        answers.append([out.detach(), inputs.grad, conv.weight.grad.clone()])
    assert ways == ["torch"], "ours did not go its own way"
    return answers


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (2, 1), (1, 1), (6, 2), (5, 2), (3, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_a_convolution(monkeypatch, side: int, stride: int, dtype: torch.dtype, tolerance: float) -> None:
    ours, exact = both_ways(monkeypatch, side, stride, dtype)
    for value, expected in zip(ours, exact, strict=True):
        assert (value - expected).abs().max() <= tolerance * expected.abs().max()


def test_without_onednns_product_it_is_a_plain_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    ours, exact = both_ways(monkeypatch, 3, 1, torch.float32)
    for value, expected in zip(ours, exact, strict=True):
        assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["large", "narrow", "evaluation", "empty", "dilated"])
def test_all_else_is_torchs_own(monkeypatch, case: str) -> None:
    monkeypatch.setattr(small_conv._SmallConv, "apply", lambda *_: pytest.fail("went the other way"))
    channels = small_conv.FEWEST_CHANNELS - (case == "narrow")
    conv = Conv3x3(channels, 4).train(case != "evaluation")
    if case == "dilated":
        conv.dilation = conv.padding = (2, 2)
    conv(torch.randn(0 if case == "empty" else 2, channels, *(2 * [4 if case == "large" else 3])))
