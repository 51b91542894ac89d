"""Batch norm over the rows of all workers, on CPU with gloo too, where torch's own SyncBatchNorm refuses to run.

Workers may hold different numbers of rows, also none: statistics and gradients are those of the one global batch. It
serves a single worker as well: torch's CPU kernel sums channels-last activations in plain float32, which costs up to 1 %
of the first layers' gradients and would make one worker differ from two; sums here keep float32's full precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """Normalise with the global batch's statistics; one all-reduce forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, ...]:
        channels = x.shape[1]
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, channels] + [1] * (x.dim() - 2)
        count = x.numel() // channels
        # Deviations from this worker's own mean first, so that no precision is lost where the mean is large.
        centre = x.sum(dims) / max(count, 1)
        deviation = x - centre.view(shape)
        wide, rest = centre.double(), deviation.sum(dims).double()  # `rest` is what rounding left in the mean
        packed = torch.empty(2 * channels + 1, dtype=torch.float64, device=x.device)
        packed[:channels] = wide * count + rest
        packed[channels:-1] = deviation.square().sum(dims).double() + 2 * wide * rest + wide.square() * count
        packed[-1] = count
        if group is not None:
            dist.all_reduce(packed, group=group)
        total = packed[-1]
        wide_mean = packed[:channels] / total
        var = (packed[channels:-1] / total - wide_mean.square()).clamp_min_(0).to(x.dtype)
        inv_std = torch.rsqrt(var + eps)
        offset = (wide - wide_mean).to(x.dtype)  # normalised x is (deviation + offset) * inv_std
        slope = weight * inv_std
        out = torch.addcmul((bias + offset * slope).view(shape), deviation, slope.view(shape))
        ctx.save_for_backward(deviation, slope, inv_std, offset, total)
        ctx.group, ctx.dims, ctx.shape = group, dims, shape
        mean = wide_mean.to(x.dtype)
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        deviation, slope, inv_std, offset, total = ctx.saved_tensors
        grad_bias = grad.sum(ctx.dims)
        grad_weight = inv_std * ((grad * deviation).sum(ctx.dims) + offset * grad_bias)
        packed = torch.stack([grad_bias, grad_weight]).double()
        if ctx.group is not None:
            dist.all_reduce(packed, group=ctx.group)
        mean_grad, mean_grad_x = (packed / total).to(grad.dtype)
        # slope * (grad - mean_grad - normalised * mean_grad_x), gathered into two passes over the data
        per_deviation = -slope * mean_grad_x * inv_std
        constant = per_deviation * offset - slope * mean_grad
        grad_x = torch.addcmul(constant.view(ctx.shape), deviation, per_deviation.view(ctx.shape))
        grad_x.addcmul_(grad, slope.view(ctx.shape))
        return grad_x, grad_weight, grad_bias, None, None


class SyncBatchNorm(_BatchNorm):
    """Drop-in for ``BatchNorm1d/2d`` whose training statistics are over a process group, or this process alone (None)."""

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2-d input, got {input.dim()}-d")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out, mean, var, total = _Normalise.apply(x, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            unbiased = var * (total / (total - 1)).to(var.dtype)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
        return out


def sync_batch_norm(module: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """``module`` with every batch norm over ``group`` (None: this process alone); names, weights and buffers stay.

    On CUDA it is torch's own, of which only the parameters' values stay: make the optimiser afterwards. Elsewhere it is
    ours, for a single process too.
    """
    if any(p.is_cuda for p in module.parameters()):
        return module if group is None else nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.__class__ = SyncBatchNorm  # the very same parameters and buffers, with another forward
            child.__dict__["group"] = group
    return module
