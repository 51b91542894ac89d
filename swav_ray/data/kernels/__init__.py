"""The crops of one picture from its decoded bytes, compiled by numba: what `reference.py` asks of Pillow, bit for bit.

Imported only by `compiled.py`, which says where the machine code is kept. Shapes: C crops of one size, S side in pixels,
N = S * S.
"""

from __future__ import annotations

import numpy as np

from swav_ray.data.kernels.basis import ANGLE, FLIP, GREY, HEIGHT, JITTER, LEFT, SIGMA, SLACK, TOP, WIDTH, compile, copy
from swav_ray.data.kernels.gaussian import blur
from swav_ray.data.kernels.jitter import colour
from swav_ray.data.kernels.resampling import resize
from swav_ray.data.kernels.rotation import rotate


@compile("void(uint8[::1], int64, int64, int64[:, ::1], float64[:, ::1], uint8[:, :, :, :, ::1], int64)")
def crops(pixels, rows, columns, whole, real, out, at):
    """Cut all crops of one size from one picture.

    Args:
        pixels: flat, ``rows * columns * 3`` bytes and `SLACK` more.
        whole: ``(C, 11)``, real: ``(C, 6)``: the draws of each crop.
        out: ``(C, B, S, S, 3)``; picture ``at`` of each crop is filled.
    """
    side = out.shape[2]
    done = np.empty(side * side * 3 + SLACK, dtype=np.uint8)
    planes = np.empty((3, side * side), dtype=np.uint8)
    for crop in range(out.shape[0]):
        n, f = whole[crop], real[crop]
        top, left, height, width = n[TOP], n[LEFT], n[HEIGHT], n[WIDTH]
        if f[ANGLE] != 0.0:
            turned = np.empty(height * width * 3 + SLACK, dtype=np.uint8)
            rotate(pixels, rows, columns, top, left, height, width, f[ANGLE], turned)
            resize(turned, width, 0, 0, height, width, n[FLIP] != 0, side, done)
        else:
            resize(pixels, columns, top, left, height, width, n[FLIP] != 0, side, done)
        if n[JITTER] or n[GREY]:
            colour(done, planes, n, f)
        if f[SIGMA] > 0.0:
            blur(done, side, f[SIGMA])
        copy(done, 0, out[crop, at].reshape(-1), 0, side * side * 3)
