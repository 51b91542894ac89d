"""LARS beyond the recorded runs, and the ends of the learning-rate schedule."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from swav_ray.swav import LARS, warmup_cosine


def parameter(seed: int, *shape: int) -> nn.Parameter:
    value = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
    value.grad = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 100))
    return value


def test_one_step_written_out() -> None:
    weight = parameter(0, 5, 3)
    before, gradient = weight.detach().clone(), weight.grad.clone()
    LARS([weight], lr=2.0, weight_decay=0.1, trust_coefficient=0.02).step()
    scale = 0.02 * before.norm() / (gradient.norm() + 0.1 * before.norm() + 1e-8)
    torch.testing.assert_close(weight.detach(), before - 2.0 * scale * (gradient + 0.1 * before))


def test_a_tensor_of_zeros_takes_the_raw_gradient() -> None:
    bias = nn.Parameter(torch.zeros(4))
    bias.grad = torch.arange(4.0)
    LARS([bias], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(bias.detach(), -0.5 * torch.arange(4.0))


def test_groups_have_their_own_learning_rate() -> None:
    alone, fast, still = parameter(0, 4), parameter(0, 4), parameter(0, 4)
    LARS([alone], lr=0.3).step()
    optimizer = LARS([{"params": [fast], "lr": 0.3}, {"params": [still]}], lr=0.0)
    optimizer.step()
    assert torch.equal(fast, alone)
    assert torch.equal(still.detach(), parameter(0, 4).detach())
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_learning_rate_acts_on_old_momentum_at_once() -> None:
    weight = parameter(0, 4)
    optimizer = LARS([weight], lr=0.3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    before = weight.detach().clone()
    optimizer.step()
    assert torch.equal(weight.detach(), before)


def test_a_frozen_parameter_gets_neither_step_nor_buffer() -> None:
    frozen, free = parameter(0, 4), parameter(1, 4)
    before, frozen.grad = frozen.detach().clone(), None
    optimizer = LARS([frozen, free], lr=0.3)
    optimizer.step()
    assert torch.equal(frozen.detach(), before)
    assert frozen not in optimizer.state
    assert "momentum_buffer" in optimizer.state[free]


def test_a_frozen_parameter_keeps_its_buffer_untouched() -> None:
    weight = parameter(0, 4)
    optimizer = LARS([weight], lr=0.3)
    optimizer.step()
    buffer, weight.grad = optimizer.state[weight]["momentum_buffer"].clone(), None
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], buffer)


def test_a_saved_optimizer_goes_on_as_if_never_stopped() -> None:
    going, resumed = parameter(0, 4), parameter(0, 4)
    first = LARS([going], lr=0.3, weight_decay=0.1)
    first.step()
    with torch.no_grad():
        resumed.copy_(going)
    second = LARS([resumed], lr=9.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as through a file; torch itself shares the buffers
    for optimizer in (first, second):
        optimizer.step()
    assert torch.equal(resumed, going)


def test_gradients_are_left_as_they_are() -> None:
    weight = parameter(0, 4)
    before = weight.grad.clone()
    LARS([weight], lr=0.3).step()
    assert torch.equal(weight.grad, before)


def test_closure_runs_with_gradients() -> None:
    weight = parameter(0, 4)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert LARS([weight], lr=0.1).step(closure) == pytest.approx(parameter(0, 4).square().sum().item())


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        LARS([parameter(0, 4)], **{"lr": 0.1, name: -1.0})


def lrs(*, steps: int, epochs: int, warmup: int, start: float = 0.3, base: float = 4.8, final: float = 0.0048) -> list[float]:
    schedule = {"epochs": epochs, "warmup_epochs": warmup, "start_warmup": start, "base_lr": base, "final_lr": final}
    return [warmup_cosine(step, steps_per_epoch=steps, **schedule) for step in range(steps * epochs)]


def test_warm_up_holds_both_ends_and_base_lr_stands_twice() -> None:
    rates = lrs(steps=7, epochs=10, warmup=2)
    assert rates[0] == 0.3
    assert rates[13] == rates[14] == pytest.approx(4.8)
    differences = [after - before for before, after in itertools.pairwise(rates[:14])]
    assert differences == pytest.approx([4.5 / 13] * 13)


def test_cosine_falls_towards_final_lr_and_never_reaches_it() -> None:
    rates = lrs(steps=7, epochs=10, warmup=2)[14:]
    assert all(after < before for before, after in itertools.pairwise(rates))
    assert rates[28] == pytest.approx((4.8 + 0.0048) / 2)
    assert 0.0048 < rates[-1] < 0.01


def test_without_warm_up_the_first_step_is_base_lr() -> None:
    assert lrs(steps=5, epochs=3, warmup=0)[0] == 4.8


def test_a_warm_up_of_one_step_is_start_warmup() -> None:
    assert lrs(steps=1, epochs=3, warmup=1)[:2] == [0.3, 4.8]


def test_warm_up_may_last_the_whole_run() -> None:
    assert lrs(steps=5, epochs=2, warmup=2)[-1] == pytest.approx(4.8)


def test_optimisers_are_made_and_step_without_torchs_compiler():
    """Which takes nearly as long to load as torch; LARS, and the linear probe's L-BFGS."""
    script = """
import sys, torch
from swav_ray.evaluate import linear_probe
from swav_ray.swav import LARS
weight = torch.nn.Parameter(torch.ones(4, 4))
optimizer = LARS([weight], 0.1)
weight.square().sum().backward()
optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())
linear_probe(torch.eye(4), torch.arange(4), torch.eye(4), torch.arange(4))
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
