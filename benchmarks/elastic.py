"""How long training stands still when nodes come and go, and how much work is lost: swav-ray against stock Ray Train.

    python -m benchmarks.elastic            # all of it, about an hour; --quick: one growth, kill and drain of each, minutes
    python -m benchmarks.elastic --only reaction --repeats 3
    python -m benchmarks.elastic --only goodput --minutes 15

Both run the same recipe, loop and checkpoints on the same cluster of several nodes on this machine, in turn; only the
trainer differs: ours, or `ray.train.torch.TorchTrainer` with its elastic policy (monitor interval 3 s, health check 1 s).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster import ClusterDriver, LocalCluster
from benchmarks.traced import TRACE, Step, read_trace
from swav_ray.config import load_config
from swav_ray.data.sources import prepare_digits
from swav_ray.data.storage import Storage
from swav_ray.train.disturbances import disturbances

ARMS = ("ours", "stock")
NOTICE_SECONDS = 15.0
PATIENCE_SECONDS = 240.0  # for anything that is waited for
ROOT = Path(__file__).parents[1]


class Run:
    """`swav-ray pretrain` in a process of its own, on a cluster, with its trace."""

    def __init__(self, arm: str, cluster: LocalCluster, shards: str, place: Path, crop_in: str) -> None:
        self.trace = place / "trace"
        config = load_config(
            "demo-digits",
            {
                "name": arm,
                "storage": str(place / "runs"),
                "data.train": shards,
                "data.crop_in": crop_in,
                "backbone.arch": "benchmarks.traced:backbone",
                "hidden_dim": 64,
                "epochs": 1000,
                "global_batch_size": 60,
                "num_prototypes": 40,
                "queue_length": 120,
                "probe.every_epochs": 0,
                "checkpoint.every_seconds": 10,
                "elastic.min": 1,
                "elastic.max": 3,
                "elastic.resources": {"slot": 1},
                "elastic.cooldown_seconds": 5,
                "elastic.patience_seconds": 1,
            },
        )
        path = place / "config.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        environment = {
            **os.environ,
            "RAY_ADDRESS": cluster.address,
            "SWAV_RAY_BENCHMARK_STOCK": "1" if arm == "stock" else "",
        }
        if arm == "stock":
            environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "1"
        self.output = (place / "output").open("w")
        command = [sys.executable, "-m", "benchmarks.elastic", "--child", str(path)]
        self.process = subprocess.Popen(command, env=environment, stdout=self.output, stderr=subprocess.STDOUT)

    @property
    def steps(self) -> list[Step]:
        return read_trace(self.trace)

    def wait_for(self, what: str, condition: Any) -> Any:
        """The first true answer of ``condition(steps)``."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended: {Path(self.output.name).read_text()[-2000:]}")
            if answer := condition(self.steps):
                return answer
            time.sleep(0.1)
        raise TimeoutError(f"no {what} within {PATIENCE_SECONDS:.0f} s")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass(frozen=True)
class Reaction:
    """One change: seconds without a step, seconds from the event to the new group's first step, steps done again."""

    pause: float
    answer: float
    lost: int


def reaction(run: Run, event_at: float, world: int) -> Reaction:
    """Of the change to ``world`` workers that follows ``event_at`` (wall time)."""

    def changed(steps: list[Step]) -> Any:
        later = [step for step in steps if step.time > event_at and step.world == world]
        return later and steps

    steps = run.wait_for(f"step with {world} workers", changed)
    first = next(step for step in steps if step.time > event_at and step.world == world)
    before = [step for step in steps if step.time < first.time]
    done = max(step.done for step in before) + 1  # a step that began was done, or is done again
    return Reaction(first.time - before[-1].time, first.time - event_at, done - first.done)


def settle(run: Run, world: int, seconds: float = 15.0) -> None:
    """Wait for a calm while with ``world`` workers."""
    since = time.time()
    run.wait_for("calm", lambda steps: steps and steps[-1].world == world and time.time() - since > seconds)


def reactions(arm: str, shards: str, crop_in: str) -> dict[str, Reaction]:
    """A growth, a killed node and a drain of one run."""
    with tempfile.TemporaryDirectory() as folder, traced(folder), LocalCluster(1, cpus=1, head_cpus=2) as cluster:
        run = Run(arm, cluster, shards, Path(folder), crop_in)
        try:
            run.wait_for("first steps", lambda steps: len(steps) > 10)
            settle(run, 1)
            found = {}
            at = time.time()
            cluster.add_node()
            found["grow"] = reaction(run, at, 2)
            settle(run, 2)
            at = time.time()
            cluster.kill_node(cluster.nodes[-1])
            found["kill"] = reaction(run, at, 1)
            settle(run, 1, 5)
            at = time.time()
            cluster.add_node()
            reaction(run, at, 2)
            settle(run, 2)
            at = time.time()
            node = cluster.nodes[-1]
            cluster.drain_node(node, NOTICE_SECONDS)
            while time.time() < at + NOTICE_SECONDS:
                time.sleep(0.1)
            cluster.remove_node(node)
            found["drain"] = reaction(run, at, 1)
            return found
        finally:
            run.end()


def goodput(arm: str, shards: str, crop_in: str, seconds: float, seed: int) -> dict[str, Any]:
    """Useful steps of a disturbed run, and seconds spent with each number of usable nodes."""
    schedule = disturbances(seed, seconds, kill_every=180, resize_every=60, max_nodes=3, min_nodes=1, start_nodes=2)
    with tempfile.TemporaryDirectory() as folder, traced(folder), LocalCluster(2, cpus=1, head_cpus=2) as cluster:
        run = Run(arm, cluster, shards, Path(folder), crop_in)
        try:
            run.wait_for("first steps", lambda steps: len(steps) > 10)
            begin = time.time()
            driver = ClusterDriver(cluster, schedule, worker_pids=lambda: workers_of(cluster))
            with driver:
                while time.time() < begin + seconds and run.process.poll() is None:
                    time.sleep(0.2)
        finally:
            run.end()
        steps = run.steps
    changes = [(begin, 2), *((row["wall"], row["nodes"]) for row in driver.log), (begin + seconds, 0)]
    spent: dict[int, float] = {}
    for (at, nodes), (until, _) in itertools.pairwise(changes):
        spent[nodes] = spent.get(nodes, 0.0) + until - at
    within = [step for step in steps if begin <= step.time <= begin + seconds]
    pace: dict[int, list[float]] = {}
    for a, b in itertools.pairwise(within):
        if a.world == b.world and b.done == a.done + 1:
            pace.setdefault(a.world, []).append(b.time - a.time)
    return {
        "useful": max(step.done for step in within) - min(step.done for step in within),
        "executed": len(within),
        "spent": spent,
        "pace": {world: statistics.median(times) for world, times in pace.items()},
        "events": len(driver.log),
    }


@contextmanager
def traced(folder: str) -> Iterator[None]:
    """Nodes started inside know where steps are written down, and find the backbone that does it."""
    old = {name: os.environ.get(name) for name in (TRACE, "PYTHONPATH")}
    os.environ[TRACE] = str(Path(folder) / "trace")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), old["PYTHONPATH"]]))
    yield
    for name, value in old.items():
        os.environ.pop(name)
        os.environ |= {name: value} if value is not None else {}


def workers_of(cluster: LocalCluster) -> list[int]:
    return sorted(cluster.worker_pids("WarmWorker") + cluster.worker_pids("RayTrainWorker"))


def child(path: str) -> None:
    """`swav-ray pretrain` with either trainer."""
    from swav_ray.train import trainer

    if os.environ.get("SWAV_RAY_BENCHMARK_STOCK"):
        trainer.elastic_trainer = lambda: None
    from swav_ray.cli import main

    sys.argv = ["swav-ray", "pretrain", path]
    main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one growth, kill and drain of each; no goodput")
    parser.add_argument("--only", choices=["reaction", "goodput"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=15.0, help="of the goodput run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crop-in", choices=["worker", "ray"], default="worker")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards, _ = prepare_digits(Storage(folder))
        if options.only != "goodput":
            summary |= all_reactions(shards, options)
        if options.only != "reaction" and not options.quick:
            summary |= all_goodput(shards, options)
    print(json.dumps(summary))


def all_reactions(shards: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[tuple[str, str], list[Reaction]] = {}
    for repeat in range(1 if options.quick else options.repeats):
        for arm in ARMS:
            for event, value in reactions(arm, shards, options.crop_in).items():
                found.setdefault((event, arm), []).append(value)
                print(f"{repeat} {arm:5} {event:5} pause {value.pause:6.2f} s, answer {value.answer:6.2f} s, lost {value.lost}")
                sys.stdout.flush()
    summary: dict[str, Any] = {}
    print("\nevent  seconds without steps: ours, stock, ratio   steps done again: ours, stock (medians)")
    for event in ("grow", "kill", "drain"):
        pause = {arm: statistics.median(r.pause for r in found[event, arm]) for arm in ARMS}
        lost = {arm: statistics.median(r.lost for r in found[event, arm]) for arm in ARMS}
        summary[f"{event}_speedup"] = round(pause["stock"] / pause["ours"], 1)
        summary[f"lost_steps_{event}"] = lost["ours"]
        print(
            f"{event:6} {pause['ours']:6.2f} {pause['stock']:6.2f} {summary[f'{event}_speedup']:6.1f}x"
            f"   {lost['ours']:4.0f} {lost['stock']:4.0f}"
        )
    return summary


def all_goodput(shards: str, options: argparse.Namespace) -> dict[str, Any]:
    runs = {arm: goodput(arm, shards, options.crop_in, options.minutes * 60, options.seed) for arm in ARMS}
    # The undisturbed pace of each group size, from both runs' calm stretches.
    worlds = {world for run in runs.values() for world in run["pace"]}
    pace = {world: min(run["pace"][world] for run in runs.values() if world in run["pace"]) for world in worlds}
    summary = {}
    for arm, run in runs.items():
        ideal = sum(seconds / pace[nodes] for nodes, seconds in run["spent"].items() if nodes in pace)
        share = run["useful"] / ideal
        spent = ", ".join(f"{nodes}: {seconds:.0f} s" for nodes, seconds in sorted(run["spent"].items()) if nodes)
        print(
            f"{arm:5} goodput {share:.3f}: {run['useful']} useful steps of {ideal:.0f} undisturbed; "
            f"{run['executed']} executed; {run['events']} events; nodes {spent}"
        )
        summary["goodput" if arm == "ours" else "goodput_stock"] = round(share, 3)
    print("seconds a step: " + ", ".join(f"{world} workers {pace[world]:.3f}" for world in sorted(pace)))
    return summary


if __name__ == "__main__":
    main()
