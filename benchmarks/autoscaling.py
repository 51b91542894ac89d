"""An elastic run and two sweeps on a cluster that begins with no worker node at all, and whose autoscaler does the rest.

    python -m benchmarks.autoscaling            # 1:4 workers and two sweeps, about ten minutes
    python -m benchmarks.autoscaling --quick    # 1:2 workers, no sweeps

The "cloud" has two machines at first (one with --quick), and the rest later: a run scales up from nothing, grows when
capacity appears, and leaves nothing behind. Nodes are processes of this machine (`local_nodes.py`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.head import Head
from benchmarks.traced import TRACE
from swav_ray.config import load_config
from swav_ray.data.sources import prepare_digits
from swav_ray.data.storage import Storage
from swav_ray.train.events import read_events
from swav_ray.train.metrics import read_metrics

PATIENCE_SECONDS = 300.0
IDLE_SECONDS = 20.0  # before a node without work is ended
NODE = {"CPU": 1, "slot": 1}


class Timeline:
    """What there was, second by second: nodes of the cluster, workers and steps of a run."""

    def __init__(self, head: Head, run: Storage) -> None:
        self.rows: list[tuple[float, int, int, int]] = []  # seconds, nodes, workers, steps; whenever one of them changes
        self._head, self._run, self._began = head, run, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            losses = [row for row in read_metrics(self._run) if "loss" in row]
            groups = [event["workers"] for event in read_events(self._run) if "workers_before" in event]
            now = (self._head.nodes(), groups[-1] if groups else 0, len(losses))
            if not self.rows or now[:2] != self.rows[-1][1:3]:
                self.rows.append((round(time.monotonic() - self._began, 1), *now))

    def wait_for(self, what: str, condition: Callable[[tuple[float, int, int, int]], bool]) -> float:
        """Seconds at which ``condition`` first held of the newest row, from now on."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.rows and condition(self.rows[-1]):
                return round(time.monotonic() - self._began, 1)
            time.sleep(0.1)
        raise TimeoutError(f"no {what} within {PATIENCE_SECONDS:.0f} s: {self.rows}")

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def recipe(shards: str, storage: str, name: str, **settings: Any) -> dict[str, Any]:
    """A small run whose steps take as long as an accelerator's would, and whose images are written down."""
    config = load_config(
        "demo-digits",
        {
            "name": name,
            "storage": storage,
            "data.train": shards,
            "data.crop_in": "worker",
            "data.log_ids": True,
            "backbone.arch": "benchmarks.traced:backbone",
            "hidden_dim": 64,
            "global_batch_size": 60,
            "num_prototypes": 40,
            "queue_length": 120,
            "probe.every_epochs": 0,
            "warmup_epochs": 1,
            "queue_start_epoch": 1,
            "elastic.resources": {"slot": 1},
            "elastic.cooldown_seconds": 5,
            "elastic.patience_seconds": 1,
            **settings,
        },
    )
    return config.model_dump(mode="json")


def submit(head: Head, place: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "swav_ray", "submit", "--", *words]
    return subprocess.Popen(
        command, cwd=place, env=head.client_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def elastic_run(head: Head, place: Path, shards: str, workers: int, at_first: int, epochs: int) -> dict[str, Any]:
    """A run of 1 to ``workers``; the seconds of each turn, and whether every image was trained once an epoch.

    Raises:
        TimeoutError: something that was waited for did not come.
    """
    storage = str(place / "runs")
    values = recipe(shards, storage, "elastic", epochs=epochs)
    (place / "elastic.yaml").write_text(yaml.safe_dump(values))
    run = Storage(storage) / "elastic"
    head.set_capacity(at_first)
    before = head.nodes()
    timeline = Timeline(head, run)
    job = submit(head, place, "pretrain", "elastic.yaml", "--workers", f"1:{workers}")
    seconds: dict[str, float] = {}
    try:
        seconds["first_step"] = timeline.wait_for("step", lambda row: row[3] > 0 or row[2] > 0)
        seconds["all_there_is"] = timeline.wait_for(f"{at_first} workers", lambda row: row[2] >= at_first)
        capacity_at = time.monotonic()
        head.set_capacity(workers)
        timeline.wait_for(f"{workers} workers", lambda row: row[2] == workers)
        seconds["grown_after_capacity"] = round(time.monotonic() - capacity_at, 1)
        output, _ = job.communicate(timeout=PATIENCE_SECONDS)
        ended_at = time.monotonic()
        if job.returncode:
            raise RuntimeError(output[-3000:])
        timeline.wait_for("empty cluster", lambda row: row[1] == 0)
        seconds["scaled_down_after_end"] = round(time.monotonic() - ended_at, 1)
    finally:
        if job.poll() is None:
            job.kill()
        timeline.close()
    rows = [row for row in read_metrics(run) if "loss" in row]
    counts = [len([i for row in rows if row["epoch"] == epoch for i in row["ids"]]) for epoch in range(epochs)]
    distinct = [len({i for row in rows if row["epoch"] == epoch for i in row["ids"]}) for epoch in range(epochs)]
    lost = [event for event in read_events(run) if event["event"] == "lost"]
    return {
        "nodes_before": before,
        **seconds,
        "steps": len(rows),
        "images_an_epoch": sorted(set(counts)),
        "each_once": counts == distinct and len(set(counts)) == 1,
        "losses": len(lost),
        "timeline": timeline.rows,
    }


def two_sweeps(head: Head, place: Path, shards: str, workers: int, trials: int) -> dict[str, Any]:
    """Two sweeps of elastic trials at once on the empty cluster: how long, how many nodes, what became of the trials."""
    storage = str(place / "runs")
    (place / "trial.yaml").write_text(yaml.safe_dump(recipe(shards, storage, "", epochs=2)))
    for name in ("one", "two"):
        space = {
            "name": name,
            "recipe": "trial.yaml",
            "params": {"temperature": {"loguniform": [0.05, 0.3]}},
            "budget": {"trials": trials},
            "concurrency": 1,
            "resources": {"workers": [1, workers // 2]},
        }
        (place / f"{name}.yaml").write_text(yaml.safe_dump(space))
    began = time.monotonic()
    timeline = Timeline(head, Storage(storage) / "none")
    jobs = [submit(head, place, "tune", f"{name}.yaml") for name in ("one", "two")]
    try:
        outputs = [job.communicate(timeout=2 * PATIENCE_SECONDS)[0] for job in jobs]
        took = round(time.monotonic() - began, 1)
        failed = [output[-3000:] for job, output in zip(jobs, outputs, strict=True) if job.returncode]
        if failed:
            raise RuntimeError("\n".join(failed))
        ended_at = time.monotonic()
        timeline.wait_for("empty cluster", lambda row: row[1] == 0)
    finally:
        for job in jobs:
            if job.poll() is None:
                job.kill()
        timeline.close()
    done = [sum(f"trial {number} done" in output for number in range(trials)) for output in outputs]
    return {
        "seconds": took,
        "most_nodes": max(row[1] for row in timeline.rows),
        "trials_done": done,
        "scaled_down_after_end": round(time.monotonic() - ended_at, 1),
        "timeline": [row[:2] for row in timeline.rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1:2 workers, no sweeps")
    options = parser.parse_args()
    workers, at_first, epochs = (2, 1, 2) if options.quick else (4, 2, 8)
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shards, _ = prepare_digits(Storage(folder))
        environment = {TRACE: str(place / "trace")}
        with Head(cpus=0, nodes=NODE, max_nodes=workers, idle_seconds=IDLE_SECONDS, environment=environment) as head:
            summary["run"] = elastic_run(head, place, shards, workers, at_first, epochs)
            print("seconds  nodes  workers  steps")
            for at, nodes, group, steps in summary["run"]["timeline"]:
                print(f"{at:7.1f}  {nodes:5}  {group:7}  {steps:5}", flush=True)
            if not options.quick:
                head.set_capacity(workers)
                summary["sweeps"] = two_sweeps(head, place, shards, workers, trials=3)
                print("two sweeps: seconds, nodes")
                for at, nodes in summary["sweeps"]["timeline"]:
                    print(f"{at:7.1f}  {nodes:5}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
