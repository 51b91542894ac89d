"""What all kernels share: how they are compiled, the types of their numbers, where the draws stand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

U8, I32, U32, U64, F32, F64 = np.uint8, np.int32, np.uint32, np.uint64, np.float32, np.float64
U1, U2, U3 = U64(1), U64(2), U64(3)  # unsigned indices need no test for negative ones

# Columns of the draws of one crop (`fast.py`).
TOP, LEFT, HEIGHT, WIDTH, FLIP, JITTER, GREY, ORDER = range(8)  # whole numbers; ORDER takes four columns
FACTOR, SIGMA, ANGLE = 0, 4, 5  # real numbers; FACTOR takes four columns
SLACK = 1  # bytes after the last pixel that may be read or overwritten


def compile(signature: str) -> Any:
    """A decorator: compiled for this one signature, kept (`compiled.py`), run without Python's lock."""
    return njit(signature, nogil=True, cache=True)


@compile("void(uint8[::1], int64, uint8[::1], int64, int64)")
def copy(source, begin, target, at, size):
    """Bytes of one array into another; slices assigned to slices are copied one by one."""
    from_, to = source[begin : begin + size], target[at : at + size]
    for i in range(size):
        to[i] = from_[i]
