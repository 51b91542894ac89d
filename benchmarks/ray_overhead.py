"""What Ray costs a step: the same loop on two gloo processes, under TorchTrainer and under a bare spawn.

    python -m benchmarks.ray_overhead [--quick] [--rounds 4] [--width 32] [--spare]

Both run `Training.run_to_end` on the demo's digits with a wider network: under Ray as `swav-ray pretrain --workers 2` does
(our TorchTrainer, its controller, progress and policy), bare as two spawned processes with a file for their rendezvous.
They take turns, Ray shut down in between. Two workers fill a machine of two processors; with `--spare` they share one, and
all else has the others, as where a machine has more processors than workers. Times are images a second of ten steps each,
from the runs' own metrics, without the first; medians over all rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
from typing import Any

import psutil

from swav_ray.config import Config, load_config
from swav_ray.data.storage import Storage

GOAL = 1.03
WORKERS = 2
WORKER_PROCESS = "ray::WarmTrainWorker"


def config_of(name: str, folder: str, width: int, epochs: int) -> Config:
    values: dict[str, Any] = {
        "name": name,
        "storage": folder,
        "epochs": epochs,
        "warmup_epochs": 0,
        "queue_start_epoch": 0,
        "backbone.base_width": width,
        "probe.max_rows": 100,
        "checkpoint.every_seconds": 600,
        "elastic.min": WORKERS,
        "elastic.max": WORKERS,
    }
    return load_config("demo-digits", values)


def times(config: Config) -> list[float]:
    """Seconds a step, of each ten steps but the first."""
    from swav_ray.train.metrics import read_metrics

    rows = [row for row in read_metrics(Storage(config.storage) / config.name) if "images_per_second" in row]
    return [config.global_batch_size / row["images_per_second"] for row in rows[1:] if row["step"] % 10 == 0]


def under_ray(config: Config, place: int | None) -> None:
    import ray

    from swav_ray.train.session import connect
    from swav_ray.train.trainer import pretrain

    connect(cpus=WORKERS + 2)
    over = threading.Event()
    keeper = threading.Thread(target=_keep_workers_on, args=(place, over), daemon=True)
    if place is not None:
        keeper.start()
    try:
        pretrain(config)
    finally:
        over.set()
        ray.shutdown()


def _keep_workers_on(place: int, over: threading.Event) -> None:
    """Bind every thread of the worker processes to one processor, whenever they come."""
    bound: set[int] = set()
    while not over.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.cmdline()[0].startswith(WORKER_PROCESS):
                    for thread in {one.id for one in process.threads()} - bound:
                        os.sched_setaffinity(thread, {place})
                        bound.add(thread)


def bare(config: Config, place: int | None) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        from swav_ray.train.trainer import open_run

        open_run(config)
        job = (folder, config.model_dump_json(), place)
        processes = [context.Process(target=_rank, args=(rank, *job), daemon=True) for rank in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0, f"a process ended with {process.exitcode}"


def _rank(rank: int, folder: str, text: str, place: int | None) -> None:
    if place is not None:
        os.sched_setaffinity(0, {place})
    import torch
    import torch.distributed as dist

    from swav_ray.train.loop import Training
    from swav_ray.train.world import World

    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    config = Config.model_validate_json(text)
    training = Training(config, Storage(config.storage) / config.name, World.join(torch.device("cpu")))
    training.run_to_end(training.stream.local(training.position, rank, WORKERS))
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--width", type=int, default=32, help="of the ResNet's first stage")
    parser.add_argument("--spare", action="store_true", help="leave the other processors to whatever is no worker")
    options = parser.parse_args()
    place, *others = sorted(os.sched_getaffinity(0))
    if options.spare:
        os.sched_setaffinity(0, others)  # which all that is started here inherits
    from swav_ray.train.trainer import resolve

    os.environ.setdefault("RAY_worker_niceness", "0")  # else the processes under Ray give way to all others
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker has one CPU; Ray sets it to that, so the bare ones get the same
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        seconds: dict[str, list[float]] = {"ray": [], "bare": []}
        for number in range(1 if options.quick else options.rounds):
            order = [("ray", under_ray), ("bare", bare)]
            for kind, run in order if number % 2 == 0 else reversed(order):
                config = resolve(config_of(f"{kind}-{number}", folder, options.width, 1 if options.quick else 2))
                run(config, place if options.spare else None)
                found = times(config)
                seconds[kind] += found
                print(f"round {number}, {kind}: {1e3 * statistics.median(found):.1f} ms a step", flush=True)
    ray_step, bare_step = statistics.median(seconds["ray"]), statistics.median(seconds["bare"])
    print(
        json.dumps(
            {
                "ratio": round(ray_step / bare_step, 4),
                "ray_ms": round(1e3 * ray_step, 2),
                "bare_ms": round(1e3 * bare_step, 2),
                "spare": options.spare,
                "goal": GOAL,
            }
        )
    )


if __name__ == "__main__":
    main()
