"""Joining a Ray cluster, or starting an embedded one, quietly."""

from __future__ import annotations

import logging
import os
from typing import Any

from swav_ray.errors import UserError


def connect(*, cpus: float | None = None) -> None:
    """Use the cluster this process belongs to (`RAY_ADDRESS`, as inside `ray job submit`), else start one here.

    Args:
        cpus: logical CPUs an embedded Ray must offer at least; more than the machine has is fine, workers then share.

    Raises:
        UserError: RAY_ADDRESS is set and no cluster answers there.
    """
    # Without byte code every Ray worker would compile torch anew on import (RAY_FACTS 5).
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": bool(os.environ.get("SWAV_RAY_LOGS")), "logging_level": logging.ERROR}
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except ConnectionError:
            raise UserError(
                f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']}: no Ray cluster answers there; unset it to run here"
            ) from None
        return
    count = max(os.cpu_count() or 1, int(cpus or 0))
    # "local": a bare init would join whatever cluster was last started on this machine.
    ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
