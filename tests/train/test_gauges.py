"""What Prometheus can read of a run, from the endpoint of a node."""

from __future__ import annotations

import re
import time

import pytest
import requests

from swav_ray.train.gauges import GAUGES, Counters, Gauges

SECONDS = 60.0  # Ray tells its agents every few


def read(pattern: str) -> dict[str, float]:
    """Values of the metrics whose lines match, by name and tags, from all nodes' endpoints."""
    import ray

    found = {}
    for node in ray.nodes():
        text = requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
        for line in text.splitlines():
            if re.search(pattern, line) and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
    return found


def wait_for(pattern: str, value: float) -> None:
    deadline = time.monotonic() + SECONDS
    while value not in read(pattern).values():
        assert time.monotonic() < deadline, f"no {pattern} of {value}: {read('swav_ray')}"
        time.sleep(0.5)


def test_without_a_cluster_nothing_is_told() -> None:
    Gauges("here").tell(dict.fromkeys(GAUGES, 1.0))


def test_figures_and_events_of_a_run_are_there_under_its_name(ray_cluster) -> None:
    run = "s3://bucket/runs/gauged"
    gauges, counters = Gauges(run), Counters(run, rows_per_step=40)
    gauges.tell({"step": 30, "loss": 2.5, "images_per_second": 123.0, "prototypes_in_use": 17, "verdict": "healthy"})
    counters.tell({"event": "start", "step": -1})
    counters.tell({"event": "lost", "step": 33})
    counters.tell({"event": "restart", "step": 33})
    counters.tell({"event": "resumed", "step": 29})  # the first step after it: steps 29 to 33 are done again
    tag = f'.*run="{run}"|run="{run}".*'
    wait_for(f"ray_swav_ray_loss.*({tag})", 2.5)
    wait_for(f"ray_swav_ray_images_per_second.*({tag})", 123.0)
    wait_for(f"ray_swav_ray_prototypes_in_use.*({tag})", 17.0)
    wait_for('ray_swav_ray_changes(_total)?.*kind="restart"', 1.0)
    wait_for("ray_swav_ray_rows_lost", 5 * 40.0)


def test_growing_loses_nothing(monkeypatch: pytest.MonkeyPatch, ray_cluster) -> None:
    counters = Counters("grown", rows_per_step=40)
    lost: list[float] = []
    monkeypatch.setattr(counters._rows_lost, "inc", lost.append)
    counters.tell({"event": "grow", "step": 33})
    counters.tell({"event": "resumed", "step": 34})
    counters.tell({"event": "lost", "step": 40})
    counters.tell({"event": "resumed", "step": 41})  # it was lost right after a checkpoint
    assert lost == []
