"""Pillow's Gaussian blur."""

from __future__ import annotations

import math

import numpy as np

from swav_ray.data.kernels.basis import F32, F64, U8, U32, compile, copy

HALF = U32(1 << 23)


@compile("void(uint8[::1], uint8[::1], int64, int64, int64, uint32, uint32)")
def _box(source, target, margin, step, radius, inner, outer):
    """A box of ``2 * radius + 1`` bytes ``step`` apart, and an ``outer`` weight for the next one on each side."""
    count = source.size - 2 * margin
    to, centre = target[margin:], source[margin:]
    a, b = source[margin - step :], source[margin + step :]
    if radius == 0:
        for i in range(count):
            to[i] = U8(U32(U32(centre[i]) * inner + (U32(a[i]) + U32(b[i])) * outer + HALF) >> U32(24))
    elif radius == 1:
        c, d = source[margin - 2 * step :], source[margin + 2 * step :]
        for i in range(count):
            total = (U32(a[i]) + U32(b[i]) + U32(centre[i])) * inner + (U32(c[i]) + U32(d[i])) * outer
            to[i] = U8(U32(total + HALF) >> U32(24))
    else:
        sums = np.zeros(count, dtype=np.uint32)
        for offset in range(-radius - 1, radius + 2):
            weight = inner if abs(offset) <= radius else outer
            line = source[margin + offset * step :]
            for i in range(count):
                sums[i] += U32(line[i]) * weight
        for i in range(count):
            to[i] = U8((sums[i] + HALF) >> U32(24))


@compile("void(uint8[::1], int64, float64)")
def blur(pixels, side, sigma):
    """A Gaussian as three box passes along rows and three along columns, the edge pixels repeated outwards.

    The box's width follows Gwosdek et al. 2011 in float32, as Pillow has it.
    """
    variance = F32(sigma) * F32(sigma) / F32(3)
    whole = F32(math.floor((F64(F32(math.sqrt(12.0 * F64(variance) + 1.0))) - 1.0) / 2.0))
    part = (F32(2) * whole + F32(1)) * (whole * (whole + F32(1)) - F32(3) * variance)
    part /= F32(6) * (variance - (whole + F32(1)) * (whole + F32(1)))
    radius = np.int64(whole + part)
    inner = U32(np.int64(F32(1 << 24) / ((whole + part) * F32(2) + F32(1))))
    outer = U32(((1 << 24) - (2 * radius + 1) * np.int64(inner)) // 2)

    edge = radius + 1
    line, row = side * 3, (side + 2 * edge) * 3
    here, there = np.empty((side + 2 * edge) * row, dtype=np.uint8), np.empty((side + 2 * edge) * row, dtype=np.uint8)
    begin, end = edge * row, (edge + side) * row
    for y in range(side):
        start = begin + y * row + edge * 3
        copy(pixels, y * line, here, start, line)
    for _ in range(3):
        for start in range(begin, end, row):
            for i in range(edge * 3):
                here[start + i] = here[start + edge * 3 + i % 3]
                here[start + edge * 3 + line + i] = here[start + edge * 3 + line - 3 + i % 3]
        _box(here, there, begin, 3, radius, inner, outer)
        here, there = there, here
    for _ in range(3):
        for y in range(edge):
            copy(here, begin, here, y * row, row)
            copy(here, end - row, here, end + y * row, row)
        _box(here, there, begin, row, radius, inner, outer)
        here, there = there, here
    for y in range(side):
        start = begin + y * row + edge * 3
        copy(here, start, pixels, y * line, line)
