"""Batch norm over the rows of all workers, on CPU with gloo too, where torch's own SyncBatchNorm refuses to run.

Workers may hold different numbers of rows, also none: statistics and gradients are those of the one global batch. It
serves a single worker as well: torch's CPU kernels sum channels-last activations in plain float32, which costs up to 1 % of
the first layers' gradients and would make one worker differ from two. Here they are given pieces small enough to
lose nothing that matters (and to stay in a core's cache between the passes over them), and the pieces' sums are added in
float64.

Activations may be bfloat16 (autocast); statistics, weights and all sums are then float32 all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PIECE = 2**18  # numbers; 1 MB in float32
SUMMANDS = 2**11  # of a channel in a piece, that is pixels


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of each, some rows at a time, or some lines of one large picture; none of no rows."""
    x = tensors[0]
    rows, channels = x.shape[:2]
    pixels = x[:1, 0].numel()
    most = max(1, min(SUMMANDS, PIECE // channels))
    if pixels > most and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        high = max(1, most // x.shape[3])
        for row in range(rows):
            for top in range(0, x.shape[2], high):
                yield tuple(tensor[row : row + 1, :, top : top + high] for tensor in tensors)
        return
    step = max(1, most // max(pixels, 1))
    for first in range(0, rows, step):
        yield tuple(tensor[first : first + step] for tensor in tensors)


class _Normalise(torch.autograd.Function):
    """Normalise with the global batch's statistics; one all-reduce forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, ...]:
        channels, dtype = x.shape[1], weight.dtype
        packed = torch.zeros(2 * channels + 1, dtype=torch.float64)
        unused = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)  # their dtype is that of the statistics
        found: list[Tensor] = []
        counts: list[int] = []
        for (piece,) in _pieces(x):
            found += torch.batch_norm_update_stats(piece, *unused, 0.0)
            counts.append(piece.numel() // channels)
        if found:  # of P pieces, C channels
            means_PC, vars_PC = torch.stack(found).double().view(-1, 2, channels).unbind(1)
            counts_P = torch.tensor(counts, dtype=torch.float64)
            packed[:channels] = counts_P @ means_PC
            packed[channels:-1] = counts_P @ vars_PC.add_(means_PC.square())
            packed[-1] = counts_P.sum()
        if group is not None:
            dist.all_reduce(packed, group=group)
        total = packed[-1]
        wide_mean = packed[:channels] / total
        mean = wide_mean.to(dtype)
        var = (packed[channels:-1] / total - wide_mean.square()).clamp_min_(0).to(dtype)
        out = nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, mean - wide_mean, torch.rsqrt(var + eps), total)
        ctx.group = group
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, off, inv_std, total = ctx.saved_tensors
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        found = [torch.zeros(2, x.shape[1], dtype=weight.dtype).unbind()]
        for piece, of_piece in _pieces(x, grad):
            found.append(
                torch.ops.aten.native_batch_norm_backward(
                    of_piece, piece, weight, None, None, mean, inv_std, True, 0.0, [False, True, True]
                )[1:]
            )
        parts = [torch.stack(of_pieces).sum(dim=0, dtype=torch.float64) for of_pieces in zip(*found, strict=True)]
        sums = torch.stack(parts[::-1])  # of the bias, of the weight
        sums[1] += off * inv_std * sums[0]  # what rounding the mean left out
        grad_bias, grad_weight = sums.to(weight.dtype, copy=True)  # of this worker alone; the sums become everyone's
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_grad_x = (sums / total).to(weight.dtype)
        # slope * (grad - mean_grad - normalised * mean_grad_x), gathered into two passes over a piece
        shape = [1, -1] + [1] * (x.dim() - 2)
        slope = weight * inv_std
        per_x = (-slope * mean_grad_x * inv_std).view(shape)
        constant = (-slope * mean_grad).view(shape) - per_x * mean.view(shape)
        grad_x = torch.empty_like(x)
        for piece, of_piece, out in _pieces(x, grad, grad_x):
            wide = out if out.dtype == weight.dtype else torch.empty_like(out, dtype=weight.dtype)
            torch.addcmul(constant, piece.to(weight.dtype), per_x, out=wide)
            wide.addcmul_(of_piece.to(weight.dtype), slope.view(shape))
            if wide is not out:
                out.copy_(wide)
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
        if not self.track_running_stats:
            return out
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            unbiased = var * (total / (total - 1)).to(var.dtype)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
        return out


def leave_uncompiled() -> None:
    """Keep `torch.compile` off ours: its pieces would be unrolled, for minutes, and its sums put in another order."""
    SyncBatchNorm.forward = torch.compiler.disable(SyncBatchNorm.forward)  # type: ignore[method-assign]


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


@contextmanager
def batch_norm_over(module: nn.Module, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Within, the batch norms of :func:`sync_batch_norm` take their statistics over another ``group``."""
    norms = [child for child in module.modules() if isinstance(child, SyncBatchNorm | nn.SyncBatchNorm)]
    names = ["group" if isinstance(norm, SyncBatchNorm) else "process_group" for norm in norms]
    before = [getattr(norm, name) for norm, name in zip(norms, names, strict=True)]
    for norm, name in zip(norms, names, strict=True):
        setattr(norm, name, group)
    try:
        yield
    finally:
        for norm, name, own in zip(norms, names, before, strict=True):
            setattr(norm, name, own)
