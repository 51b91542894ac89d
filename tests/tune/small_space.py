"""Spaces small enough for tests."""

from __future__ import annotations

from typing import Any

from swav_ray.tune.space import Space

BASE: dict[str, Any] = {
    "name": "small",
    "recipe": "demo-digits",
    "overrides": {"epochs": 9, "warmup_epochs": 1, "queue_start_epoch": 1},
    "params": {"num_prototypes": {"int": [10, 30]}, "temperature": {"loguniform": [0.05, 0.3]}},
    "baseline": [{"num_prototypes": 20, "temperature": 0.1}],
    "budget": {"trials": 12},
}


def small_space(**changes: Any) -> Space:
    return Space.model_validate(BASE | changes)
