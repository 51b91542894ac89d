"""How long training stands still for a checkpoint: written in the background, against written on the spot.

    python benchmarks/checkpoint.py [--quick] [--folder DIR]

The state is SwAV's with a ResNet-50 (28.4 M weights in float32, their momentum, a queue of 3840 x 2 x 128). It is saved
to a local folder and to an S3 on loopback (moto, in a process of its own, on the same cores). Both ways take turns within
one run. A small network trains on one thread meanwhile and shows what the background takes from it:
  stands still  the call that hands the state over
  lock          training waits for Python's lock, which the background holds (copies, pickling, asyncio)
  slower        its steps take more processor time than before (memory and caches are shared)
What it waits for a free core is not counted: that is the machine's other load, the S3 server's included (Linux keeps the
account in /proc/self/task/*/schedstat).
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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
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

    def train(self, more: Callable[[], bool]) -> tuple[int, float, float]:
        """Steps while ``more()``: their number, seconds on a processor, and seconds neither on one nor in the queue for one."""
        wall, busy, queued = self._account()
        steps = 0
        while more() or not steps:
            self.step()
            steps += 1
        wall, busy, queued = (now - then for now, then in zip(self._account(), (wall, busy, queued), strict=True))
        return steps, busy, wall - busy - queued

    def _account(self) -> tuple[float, float, float]:
        busy, queued, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
        return time.perf_counter(), int(busy) / 1e9, int(queued) / 1e9


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


def measure(place: Storage, state: dict[str, Any], trainer: Trainer, rounds: int, alone: float) -> dict[str, list[float]]:
    """Seconds of each of ``rounds`` saves; a first one of each kind warms up and is not counted."""
    checkpoints = Checkpoints(place, keep_last=2)
    figures: dict[str, list[float]] = {"stall": [], "sync": [], "commit": [], "lock": [], "slower": [], "taken": []}
    for number in range(rounds + 1):
        end = time.monotonic() + alone
        steps_alone, busy_alone, _ = trainer.train(lambda end=end: time.monotonic() < end)
        begin = time.perf_counter()
        checkpoints.save_async(2 * number + 1, state, {})
        stall = time.perf_counter() - begin
        steps, busy, lock = trainer.train(lambda: not checkpoints.settled(0))
        checkpoints.wait()
        commit = time.perf_counter() - begin
        slower = busy - steps * busy_alone / steps_alone

        begin = time.perf_counter()
        checkpoints.save(2 * number + 2, state, {})
        sync = time.perf_counter() - begin
        if number:
            for key, value in zip(figures, (stall, sync, commit, lock, slower, stall + lock + slower), strict=True):
                figures[key].append(value)
    return figures


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
    columns = ("stands still", "lock", "slower", "taken in all", "of 60 s", "on the spot", "ratio", "written in")
    print(f"{'seconds':14}" + "".join(f"{name:>13}" for name in columns))
    found = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, s3_server() as bucket:
        for name, place in (("local folder", Storage(folder)), ("S3 on loopback", Storage(f"{bucket}/run"))):
            figures = measure(place, state, trainer, rounds, alone)
            f = found[name] = {key: statistics.median(values) for key, values in figures.items()}
            f["worst"] = max(figures["stall"])
            row = [f"{f[key]:.3f}" for key in ("stall", "lock", "slower", "taken")]
            row += [f"{f['taken'] / INTERVAL:.2%}", f"{f['sync']:.2f}", f"{f['sync'] / f['taken']:.1f}x", f"{f['commit']:.2f}"]
            print(f"{name:14}" + "".join(f"{value:>13}" for value in row))
    local, s3 = found["local folder"], found["S3 on loopback"]
    stall, worst = max(local["stall"], s3["stall"]), max(local["worst"], s3["worst"])
    print(
        f"medians of {rounds}; the peer is `Checkpoints.save`, which writes on the spot. Training stands still for "
        f"{stall / INTERVAL:.3%} of {INTERVAL:.0f} s (goal: < {GOAL:.1%}), at worst {worst / INTERVAL:.3%}"
    )
    line = {
        "stall_share": round(stall / INTERVAL, 6),
        "stall_seconds": round(stall, 4),
        "sync_seconds": round(s3["sync"], 3),
        "sync_seconds_local": round(local["sync"], 3),
        "taken_share": round(s3["taken"] / INTERVAL, 6),
        "taken_share_local": round(local["taken"] / INTERVAL, 6),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
