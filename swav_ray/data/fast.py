"""Crops by compiled kernels: simplejpeg decodes, `kernels.py` does the rest, both bit for bit as Pillow (`reference.py`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from swav_ray.data.compiled import kernels
from swav_ray.data.decode import decode_into
from swav_ray.data.draws import Draws


class Fast:
    """Cuts the crops that ``draws`` say; ``sizes`` ``(B, 2)`` are heights and widths of the pictures."""

    def __init__(self, draws: Draws, sizes: NDArray[np.int64]) -> None:
        self._kernels, self._sizes = kernels(), sizes
        d = draws
        parts = (d.top, d.left, d.height, d.width, d.flip, d.jitter, d.grey, *np.moveaxis(d.order, -1, 0))
        self._whole = np.stack(parts, axis=-1, dtype=np.int64)
        self._real = np.stack((*np.moveaxis(d.factors, -1, 0), d.sigma, d.angle), axis=-1)
        # One room for all pictures stays in the processor's cache.
        self._pixels = np.empty(3 * int(sizes.prod(axis=1).max(initial=0)) + kernels().SLACK, dtype=np.uint8)

    def cut(self, row: int, content: bytes, crops: list[NDArray[np.uint8]], at: int) -> None:
        """Decode picture ``row`` and put its crops into place ``at`` of each array ``(C, B, S, S, 3)``.

        Raises:
            BadImageError: the picture cannot be read.
        """
        height, width = (int(side) for side in self._sizes[row])
        decode_into(self._pixels, content, height, width)
        first = 0
        for group in crops:
            mine = slice(first, first + len(group))
            self._kernels.crops(self._pixels, height, width, self._whole[row, mine], self._real[row, mine], group, at)
            first += len(group)
