"""A run's figures for Prometheus, through Ray: every node of a cluster offers them beside Ray's own.

Names begin with `ray_swav_ray_`, each with the tag `run` (its folder). Rank 0 alone tells the figures, at the steps it
logs; the controller tells what happened to the workers.
"""

from __future__ import annotations

from typing import Any

GAUGES = {  # by the key of a row
    "images_per_second": "images a second, over all workers",
    "loss": "of the last logged step",
    "ln_k": "the loss of a model that knows nothing",
    "prototypes_in_use": "of all prototypes",
    "workers": "at work",
    "step": "of the run, the last one logged",
    "data_wait_seconds": "without images since the step logged before, on rank 0",
    "bad_images": "unreadable so far",
}


class Gauges:
    """Tells rows of a run's metrics; does nothing in a process that is no part of a cluster."""

    def __init__(self, folder: str) -> None:
        import ray

        self._gauges: dict[str, Any] = {}
        if ray.is_initialized():
            from ray.util.metrics import Gauge

            for key, about in GAUGES.items():
                gauge = Gauge(f"swav_ray_{key}", description=about, tag_keys=("run",))
                self._gauges[key] = gauge.set_default_tags({"run": folder})

    def tell(self, row: dict[str, Any]) -> None:
        for key, gauge in self._gauges.items():
            if isinstance(row.get(key), int | float):
                gauge.set(row[key])


class Counters:
    """Counts a run's events (`events.py`), and the images that were trained on again after losses; on a cluster only."""

    def __init__(self, folder: str, rows_per_step: int) -> None:
        from ray.util.metrics import Counter

        self._rows_per_step, self._lost_at = rows_per_step, -1
        changes = Counter(
            "swav_ray_changes", description="of the workers: grow, drain, lost, restart ...", tag_keys=("run", "kind")
        )
        self._changes = changes.set_default_tags({"run": folder})
        lost = Counter("swav_ray_rows_lost", description="images trained on again after losses, about", tag_keys=("run",))
        self._rows_lost = lost.set_default_tags({"run": folder})

    def tell(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self._changes.inc(tags={"kind": kind})
        if kind == "lost":
            self._lost_at = max(self._lost_at, event["step"])
        elif kind == "resumed":
            steps = self._lost_at - (event["step"] - 1)  # it is told after the first step
            if steps > 0:
                self._rows_lost.inc(steps * self._rows_per_step)
            self._lost_at = -1
