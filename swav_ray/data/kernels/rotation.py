"""Pillow's rotation with bilinear interpolation."""

from __future__ import annotations

import math

from swav_ray.data.kernels.basis import F64, U8, U64, compile


@compile("void(uint8[::1], int64, int64, int64, int64, int64, int64, float64, uint8[::1])")
def rotate(pixels, rows, columns, top, left, height, width, degrees, out):
    """A box ``(height, width, 3)`` of the picture turned about its centre, black outside, bilinear between pixels."""
    cos, sin = math.cos(-math.radians(degrees)), math.sin(-math.radians(degrees))
    shift_x = cos * (-columns / 2) + sin * (-rows / 2) + columns / 2
    shift_y = -sin * (-columns / 2) + cos * (-rows / 2) + rows / 2
    for y in range(height):
        for x in range(width):
            across, along = left + x + 0.5, top + y + 0.5
            from_x, from_y = cos * across + sin * along + shift_x, -sin * across + cos * along + shift_y
            to = (y * width + x) * 3
            if from_x < 0 or from_x >= columns or from_y < 0 or from_y >= rows:
                out[to], out[to + 1], out[to + 2] = 0, 0, 0
                continue
            from_x, from_y = from_x - 0.5, from_y - 0.5
            x0, y0 = int(math.floor(from_x)), int(math.floor(from_y))  # noqa: RUF046
            part_x, part_y = from_x - x0, from_y - y0
            a, b = U64(max(x0, 0) * 3), U64(min(x0 + 1, columns - 1) * 3)
            upper, lower = U64(max(y0, 0) * columns * 3), U64(min(y0 + 1, rows - 1) * columns * 3)
            for c in range(3):
                c_ = U64(c)
                above, below = F64(pixels[upper + a + c_]), F64(pixels[lower + a + c_])
                above += (F64(pixels[upper + b + c_]) - above) * part_x
                below += (F64(pixels[lower + b + c_]) - below) * part_x
                out[U64(to) + c_] = U8(above + (below - above) * part_y)
