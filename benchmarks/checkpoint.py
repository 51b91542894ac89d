"""How long training stands still for a checkpoint: written in the background, against written on the spot.

    python benchmarks/checkpoint.py [--quick] [--folder DIR]

The state is SwAV's with a ResNet-50 (28.4 M weights in float32, their momentum, a queue of 3840 x 2 x 128). It is saved
to a local folder and to an S3 on loopback (moto, in a process of its own, on the same cores). Both ways take turns within
one run. A small network trains on one thread meanwhile and shows what the background takes from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from swav_ray.config import load_config
from swav_ray.data.storage import Storage
from swav_ray.swav.feature_queue import FeatureQueue
from swav_ray.swav.resnet import resnet
from swav_ray.train.build import build_model, build_optimizer
from swav_ray.train.checkpoint import Checkpoints

INTERVAL = 60.0  # seconds between checkpoints, the default of checkpoint.every_seconds
GOAL = 0.005


def resnet50_state() -> dict[str, Any]:
    """What `Training.save` hands over, after one step."""
    config = load_config("imagenet-200ep-bs256")
    model = build_model(config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(config, model)
    optimizer.step()
    queue = FeatureQueue(3840, 2, 128)
    queue.push(torch.randn(2, 3840, 128))
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "queue": queue.state_dict(),
        "epoch": 3,
        "row": 0,
    }


class Trainer:
    """A small network trained on one thread, a step in about 20 ms."""

    def __init__(self) -> None:
        self.net = resnet("resnet10", base_width=16, stem="small")
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        self.images = torch.randn(32, 3, 24, 24)
        self.loss = nn.MSELoss()

    def step(self) -> None:
        features = self.net(self.images)
        self.loss(features, torch.ones_like(features)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def rate(self, seconds: float) -> float:
        """Steps a second, alone."""
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            self.step()
            steps += 1
        return steps / (time.perf_counter() - begin)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A bucket of an S3 in another process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for name, value in (("AWS_ENDPOINT_URL", url), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")):
        os.environ[name] = value
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        bucket = Storage("s3://benchmark")
        bucket.fs.mkdir("benchmark")
        yield bucket.uri
    finally:
        server.terminate()
        server.wait()


def measure(place: Storage, state: dict[str, Any], trainer: Trainer, rounds: int, alone: float) -> dict[str, float]:
    """Medians over ``rounds``, in seconds; a first save of each kind warms up and is not counted."""
    checkpoints = Checkpoints(place, keep_last=2)
    figures: dict[str, list[float]] = {"stall": [], "sync": [], "commit": [], "slow_down": [], "lost": []}
    for number in range(rounds + 1):
        before = trainer.rate(alone)
        begin = time.perf_counter()
        checkpoints.save_async(2 * number + 1, state, {})
        handed_over = time.perf_counter()
        steps = 0
        while not checkpoints.settled(0):
            trainer.step()
            steps += 1
        done = time.perf_counter()
        checkpoints.wait()
        after = trainer.rate(alone)

        spot = time.perf_counter()
        checkpoints.save(2 * number + 2, state, {})
        sync = time.perf_counter() - spot

        stall, commit = handed_over - begin, done - handed_over
        slow_down = max(0.0, 1 - steps / commit / ((before + after) / 2))
        values = {"stall": stall, "sync": sync, "commit": commit, "slow_down": slow_down, "lost": stall + slow_down * commit}
        if number:
            for key, value in values.items():
                figures[key].append(value)
    return {key: statistics.median(values) for key, values in figures.items()} | {"worst_stall": max(figures["stall"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: 3 rounds instead of 10")
    parser.add_argument("--folder", default=None, help="local folder to write to; by default one under the system's temporary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, alone = (3, 0.7) if args.quick else (10, 2.0)
    state, trainer = resnet50_state(), Trainer()
    weights = sum(tensor.numel() for tensor in state["model"].values())
    print(
        f"python {' '.join(sys.argv)}: {weights / 1e6:.1f} M weights, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    columns = f"{'stands still':>13}{'on the spot':>13}{'ratio':>8}{'of 60 s':>9}{'written in':>12}{'slow-down':>11}"
    print(f"{'':14}{columns}{'lost in all':>13}")
    found = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, s3_server() as bucket:
        for name, place in (("local folder", Storage(folder)), ("S3 on loopback", Storage(f"{bucket}/run"))):
            f = found[name] = measure(place, state, trainer, rounds, alone)
            print(
                f"{name:14}{f['stall']:11.3f} s{f['sync']:11.2f} s{f['sync'] / f['stall']:7.1f}x{f['stall'] / INTERVAL:9.2%}"
                f"{f['commit']:10.2f} s{f['slow_down']:11.0%}{f['lost']:11.2f} s"
            )
    local, s3 = found["local folder"], found["S3 on loopback"]
    worst = max(local["worst_stall"], s3["worst_stall"])
    print(
        f"the peer is `Checkpoints.save`, which writes on the spot; goal: stands still < {GOAL:.1%} of {INTERVAL:.0f} s; "
        f"worst of {2 * rounds}: {worst:.3f} s"
    )
    line = {
        "stall_share": round(max(local["stall"], s3["stall"]) / INTERVAL, 6),
        "stall_seconds": round(max(local["stall"], s3["stall"]), 4),
        "sync_seconds": round(s3["sync"], 3),
        "sync_seconds_local": round(local["sync"], 3),
        "worst_stall_seconds": round(worst, 4),
        "lost_seconds": round(s3["lost"], 3),
        "lost_seconds_local": round(local["lost"], 3),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
