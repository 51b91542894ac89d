"""Whose fault a failed run is: the code's with this configuration, or that of processes, nodes and stores."""

from __future__ import annotations

from typing import Any

import torch
from ray.exceptions import RayError, RayTaskError

# What machines raise. Collectives raise RuntimeErrors when a peer is gone, and torch when shapes differ: told apart by
# nobody, so the machines get the blame, and a configuration is never counted as failed for what it did not do.
_MACHINES = (RuntimeError, OSError, MemoryError, RayError)


class CodeError(RuntimeError):
    """An error that the code raised, with this configuration, and that it would raise again."""


def code_failed(error: BaseException) -> bool:
    """Whether ``error`` is the code's; a task's error is judged by its cause."""
    if isinstance(error, RayTaskError):
        error = error.cause
    return isinstance(error, CodeError | torch.OutOfMemoryError) or not isinstance(error, _MACHINES)


def code_to_blame(error: Any) -> bool:
    """Whether a failed `fit()` failed by the code: on any of its ranks, or where no worker could be started."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    return any(isinstance(failure, CodeError) for failure in failures)
