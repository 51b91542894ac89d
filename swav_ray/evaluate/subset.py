"""A share of the labels, of every class alike: a function of seed and ids, whatever order they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified(ids: Sequence[str], labels_N: NDArray[np.int64], share: float, *, seed: int = 0) -> NDArray[np.bool_]:
    """``(N,)``: which rows are in. Of a class of n rows ``share * n`` to the nearest, one at least; without a label none.

    Each row has a place in its class by a hash of seed and id, and the first are taken: a smaller share of the same seed
    lies within a larger one, and files in another order give the same images.
    """
    places = np.array([_place(seed, identifier) for identifier in ids], dtype=np.uint64)
    order = np.lexsort((places, labels_N))
    classes, starts, sizes = np.unique(labels_N[order], return_index=True, return_counts=True)
    chosen = np.zeros(len(ids), dtype=bool)
    for label, start, size in zip(classes, starts, sizes, strict=True):
        if label >= 0:
            chosen[order[start : start + max(1, int(share * size + 0.5))]] = True
    return chosen


def _place(seed: int, identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{identifier}".encode(), digest_size=8).digest(), "little")
