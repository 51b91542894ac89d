"""LARS with the published rules, and the warm-up + cosine schedule (SWAV_FACTS 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from swav_ray.swav.no_dynamo import optimisers_without_dynamo

optimisers_without_dynamo()


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled, tensor by tensor, to the size of the weights.

    For each parameter with a gradient, biases, batch norm and prototypes included: where both norms are above zero,
    ``g <- (g + weight_decay * p) * trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)``; otherwise the gradient
    is used as it is, without decay. Then ``buffer <- momentum * buffer + g`` and ``p <- p - lr * buffer``.
    A parameter without a gradient (frozen) gets neither step nor buffer. Source: SWAV_FACTS 6 (the published runs).

    Args:
        params: parameters or parameter groups; a group may have its own ``lr``.
        lr: learning rate.
        momentum: of the buffer.
        weight_decay: joined to the gradient before scaling.
        trust_coefficient: size of an unscaled step relative to the weights.
        eps: keeps the division finite.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; no value is read back from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """All tensors together, each number read as few times as can be: the step is bound by memory, or by launches."""
        decay, momentum = group["weight_decay"], group["momentum"]
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        p_norm, grad_norm = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(grads))
        both = (p_norm != 0) & (grad_norm != 0)
        scale = group["trust_coefficient"] * p_norm / (grad_norm + decay * p_norm + group["eps"])
        of_grad = torch.where(both, scale, 1).unbind()
        of_param = torch.where(both, scale * decay, 0).unbind()
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_addcmul_(buffers, grads, of_grad)  # buffer += grad * of_grad, a number a tensor
        if decay:
            torch._foreach_addcmul_(buffers, params, of_param)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def warmup_cosine(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int,
    start_warmup: float,
    base_lr: float,
    final_lr: float,
) -> float:
    """Learning rate of optimiser step ``step`` (0-based).

    A straight line from ``start_warmup`` to ``base_lr``, both ends included, over the warm-up epochs; then a half
    cosine towards ``final_lr``, which is never quite reached. ``base_lr`` therefore stands twice in a row, as published.
    """
    warmup_steps = warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return start_warmup + (base_lr - start_warmup) * step / max(1, warmup_steps - 1)
    cosine_steps = steps_per_epoch * (epochs - warmup_epochs)
    progress = min(1.0, (step - warmup_steps) / max(1, cosine_steps))
    return final_lr + 0.5 * (base_lr - final_lr) * (1 + math.cos(math.pi * progress))
