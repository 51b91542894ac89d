"""3x3 convolutions of small pictures on a CPU, as one matrix product.

At the far end of a ResNet a picture is 2 or 3 pixels wide and a weight has millions of numbers. oneDNN's convolutions then
spend more time bringing the weights into their own order, anew for each pass, than multiplying: a ResNet-18's last
stage on 48 to 96 px takes half as long this way. oneDNN's matrix product is called by name, for float32 goes to MKL
otherwise, which is half as fast on other processors than Intel's.

Shapes: N pictures, H and W their sides, C channels in, O channels out, M output pixels of all pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOST_PIXELS, FEWEST_CHANNELS = 9, 128  # of the output, of the input: where it pays


def product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """``a @ b.T`` by oneDNN, whatever the strides; private to torch, so without it if it is gone."""
    if a_MK.dtype == torch.float32 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, "none", [], "")
    return a_MK @ b_NK.T


class _SmallConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        padded_NHWC = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded_NHWC.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)  # N, H, W, 3, 3, C
        columns = windows.reshape(-1, 9 * x.shape[1])
        rows = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
        ctx.save_for_backward(columns, rows)
        ctx.shape, ctx.windows, ctx.stride = padded_NHWC.shape, windows.shape, stride
        return product(columns, rows).view(*windows.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        columns, rows = ctx.saved_tensors
        grad_MO = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
        grad_weight = product(grad_MO.T, columns.T).view(-1, 3, 3, ctx.shape[-1]).permute(0, 3, 1, 2)
        windows = product(grad_MO, rows.T).view(ctx.windows)
        # Nine summands a pixel, in float32 at least.
        padded_NHWC = grad.new_zeros(ctx.shape, dtype=torch.promote_types(grad.dtype, torch.float32))
        _, high, wide = windows.shape[:3]
        step = ctx.stride
        for i in range(3):
            for j in range(3):
                padded_NHWC[:, i : i + step * high : step, j : j + step * wide : step] += windows[:, :, :, i, j]
        return padded_NHWC[:, 1:-1, 1:-1].to(grad.dtype).permute(0, 3, 1, 2), grad_weight, None


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padded by 1, without bias. Small pictures go the other way, in training on a CPU only."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_small(input):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return _SmallConv.apply(input, weight, self.stride[0])

    def _is_small(self, x: Tensor) -> bool:
        if self.dilation != (1, 1):  # as segmentation makes it
            return False
        if not (self.training and x.is_cpu and x.dim() == 4 and self.in_channels >= FEWEST_CHANNELS and len(x)):
            return False
        high, wide = (-(-side // self.stride[0]) for side in x.shape[2:])
        return high * wide <= MOST_PIXELS and x.dtype != torch.float64 and not torch.compiler.is_compiling()
