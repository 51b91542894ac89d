"""A process that allocates the same sizes again and again keeps the memory it has been given."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


@functools.cache
def keep_memory() -> None:
    """Do not give freed memory back to the kernel: the next step, or the next block of crops, asks for the same again.

    By default each large array is new memory, which the kernel maps and clears page by page: an eighth of the processor
    time of a ResNet-18's step, 6 % of cropping in Ray's tasks. Other C libraries than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Some versions refuse more than 32 MB. Setting either ends glibc's own raising of it from 128 kB, so one must be taken.
        if not mallopt(M_MMAP_THRESHOLD, 2**30):
            mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
