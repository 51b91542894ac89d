"""Batch norm over the rows of all ranks, also on CPU with gloo, where torch's own SyncBatchNorm refuses to run.

Ranks may hold different numbers of rows, also none: statistics and gradients are those of the one global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """Normalise with the global batch's statistics; the backward needs one more all-reduce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
        channels = x.shape[1]
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // channels
        # Sums of this rank in float64: mean and variance of the union are then exact to float32.
        packed = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if count:
            var, mean = torch.var_mean(x.float(), dim=dims, correction=0)
            var, mean = var.double(), mean.double()
            packed[:channels] = mean * count
            packed[channels:-1] = (var + mean * mean) * count
            packed[-1] = count
        dist.all_reduce(packed, group=group)
        total = packed[-1]
        mean = packed[:channels] / total
        var = (packed[channels:-1] / total - mean * mean).clamp_min_(0)
        mean, var = mean.float(), var.float()
        inv_std = torch.rsqrt(var + eps)
        shape = [1, channels] + [1] * (x.dim() - 2)
        normalised = (x - mean.view(shape)) * inv_std.view(shape)
        ctx.save_for_backward(normalised, weight, inv_std, total)
        ctx.group, ctx.dims, ctx.shape = group, dims, shape
        out = torch.addcmul(bias.view(shape), normalised, weight.view(shape))
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normalised, weight, inv_std, total = ctx.saved_tensors
        grad_bias = grad.sum(ctx.dims)
        grad_weight = (grad * normalised).sum(ctx.dims)
        packed = torch.stack([grad_bias, grad_weight]).double()
        dist.all_reduce(packed, group=ctx.group)
        mean_grad, mean_grad_x = (packed / total).to(grad.dtype)
        grad_x = grad - mean_grad.view(ctx.shape) - normalised * mean_grad_x.view(ctx.shape)
        return grad_x * (weight * inv_std).view(ctx.shape), grad_weight, grad_bias, None, None


class SyncBatchNorm(_BatchNorm):
    """Drop-in for ``BatchNorm1d/2d`` whose training statistics are over a process group. Affine, 2-d or 4-d input."""

    group: dist.ProcessGroup

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
            unbiased = var * (total / (total - 1)).float()
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(unbiased, self.momentum or 0.0)
        return out


def sync_batch_norm(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """``module`` with every batch norm synchronised over ``group``; names, weights and buffers stay.

    On CUDA it is torch's own; elsewhere ours, with the same numbers.
    """
    if any(p.is_cuda for p in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            synced = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            synced.train(child.training)
            synced.group = group
            setattr(module, name, synced)
        else:
            sync_batch_norm(child, group)
    return module
