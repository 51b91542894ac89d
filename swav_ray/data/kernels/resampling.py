"""Pillow's antialiased bilinear resize of a box: fixed-point weights, bytes rounded between its two passes.

Shapes: S side in pixels, K taps. Pixels lie interleaved: red, green, blue.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from swav_ray.data.kernels.basis import F64, I32, SLACK, U1, U2, U3, U64, compile

BITS = 22  # of a weight
HALF = I32(1 << (BITS - 1))


@compile("int64(int64, int64)")
def _count(size_in, size_out):
    """Taps that an output pixel needs at most, K."""
    taps = min(math.ceil(2 * max(size_in / size_out, 1.0)), size_in)
    return taps if taps <= 5 else (taps + 3) // 4 * 4


@compile("void(int64, boolean, uint64[::1], int32[:, ::1])")
def _weigh(size_in, flip, first, weights):
    """Antialiased bilinear weights ``(K, S)`` and the first input pixel they fall on; all K taps are inside."""
    taps, size_out = weights.shape
    scale = size_in / size_out
    support = max(scale, 1.0)
    inverse = 1.0 / support
    centres, sums, shares = np.empty(size_out), np.zeros(size_out), np.empty((taps, size_out))
    for x in range(size_out):
        centres[x] = ((size_out - 1 - x if flip else x) + 0.5) * scale
        first[x] = min(max(int(centres[x] - support + 0.5), 0), size_in - taps)
    for tap in range(taps):
        for x in range(size_out):
            share = 1.0 - abs((F64(first[x]) + tap - centres[x] + 0.5) * inverse)
            shares[tap, x] = share if share > 0.0 else 0.0
            sums[x] += shares[tap, x]
    for tap in range(taps):
        for x in range(size_out):
            weights[tap, x] = I32(0.5 + shares[tap, x] / sums[x] * F64(1 << BITS))


def _horizontal(count: int) -> Any:
    """The resize along rows for ``count`` taps, so that the loop over them unrolls; 0: for any multiple of four."""

    @compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
    def kernel(pixels, stride, top, left, height, first, weights, side, out):
        for y in range(height):
            line = pixels[((top + y) * stride + left) * 3 :]
            to = out[y * side * 3 :]
            for x in range(side):
                at = first[x] * U3
                # Four sums, not three: one vector. The fourth is the next pixel's red and is overwritten by it.
                a, b, c, d = HALF, HALF, HALF, HALF
                for start in range(0, count or weights.shape[0], count or 4):
                    for tap in range(count or 4):
                        w = weights[start + tap, x]
                        a = I32(a + I32(line[at]) * w)
                        b = I32(b + I32(line[at + U1]) * w)
                        c = I32(c + I32(line[at + U2]) * w)
                        d = I32(d + I32(line[at + U3]) * w)
                        at += U3
                at = U64(x) * U3
                to[at], to[at + U1], to[at + U2], to[at + U3] = a >> BITS, b >> BITS, c >> BITS, d >> BITS

    return kernel


def _vertical(count: int) -> Any:
    """The resize along columns for ``count`` taps; 0: for any number."""

    @compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
    def kernel(pixels, stride, top, left, width, first, weights, side, out):
        values = width * 3
        sums = np.empty(0 if count else values, dtype=np.int32)
        for y in range(side):
            to = out[y * values :]
            start, step = U64(((top + np.int64(first[y])) * stride + left) * 3), U64(stride * 3)
            if count:
                for i in range(values):
                    total, at = HALF, start + U64(i)
                    for tap in range(count):
                        total = I32(total + I32(pixels[at]) * weights[tap, y])
                        at += step
                    to[i] = total >> BITS
                continue
            sums[:] = HALF
            for tap in range(weights.shape[0]):
                w, line = weights[tap, y], pixels[np.int64(start + U64(tap) * step) :]
                for i in range(values):
                    sums[i] += I32(line[i]) * w
            for i in range(values):
                to[i] = sums[i] >> BITS

    return kernel


_horizontal_1, _horizontal_2, _horizontal_3, _horizontal_4, _horizontal_5 = map(_horizontal, (1, 2, 3, 4, 5))
_horizontal_any = _horizontal(0)
_vertical_2, _vertical_3, _vertical_4, _vertical_any = map(_vertical, (2, 3, 4, 0))


@compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
def _along_rows(pixels, stride, top, left, height, first, weights, side, out):
    taps = weights.shape[0]
    if taps == 1:
        _horizontal_1(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 2:
        _horizontal_2(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 3:
        _horizontal_3(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 4:
        _horizontal_4(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 5:
        _horizontal_5(pixels, stride, top, left, height, first, weights, side, out)
    else:
        _horizontal_any(pixels, stride, top, left, height, first, weights, side, out)


@compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
def _along_columns(pixels, stride, top, left, width, first, weights, side, out):
    taps = weights.shape[0]
    if taps == 2:
        _vertical_2(pixels, stride, top, left, width, first, weights, side, out)
    elif taps == 3:
        _vertical_3(pixels, stride, top, left, width, first, weights, side, out)
    elif taps == 4:
        _vertical_4(pixels, stride, top, left, width, first, weights, side, out)
    else:
        _vertical_any(pixels, stride, top, left, width, first, weights, side, out)


@compile("void(uint8[::1], int64, int64, int64, int64, int64, boolean, int64, uint8[::1])")
def resize(pixels, stride, top, left, height, width, flip, side, out):
    """A box of the picture to S x S, flipped or not. No tap reaches outside the box."""
    first_x, first_y = np.empty(side, dtype=np.uint64), np.empty(side, dtype=np.uint64)
    weights_x = np.empty((_count(width, side), side), dtype=np.int32)
    weights_y = np.empty((_count(height, side), side), dtype=np.int32)
    _weigh(width, flip, first_x, weights_x)
    _weigh(height, False, first_y, weights_y)
    # Bytes are rounded between the passes, so their order shows; this is that of Pillow 13.
    if height > side and height - side > 2 * (width - side):
        low = np.empty(side * width * 3 + SLACK, dtype=np.uint8)
        _along_columns(pixels, stride, top, left, width, first_y, weights_y, side, low)
        _along_rows(low, width, 0, 0, side, first_x, weights_x, side, out)
    else:
        narrow = np.empty(side * height * 3 + SLACK, dtype=np.uint8)
        _along_rows(pixels, stride, top, left, height, first_x, weights_x, side, narrow)
        _along_columns(narrow, side, 0, 0, side, first_y, weights_y, side, out)
