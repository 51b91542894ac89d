"""Where a training step's time goes on this machine, and what share of the hardware's peak it reaches.

The very step of a run is timed: whole, then again with the device waited for around each part, then, with several workers,
by each worker alone, so that the difference is what working together costs.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch, Stream
from swav_ray.swav.batch_norm import batch_norm_over
from swav_ray.swav.feature_queue import FeatureQueue
from swav_ray.swav.small_conv import product
from swav_ray.train.build import build_model, weights_dtype
from swav_ray.train.loop import Training
from swav_ray.train.prefetch import on_device
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World

WARM = 3  # steps not counted: kernels are chosen, memory is taken
PER_TAKE = {"cuda": 5}  # steps between waits for the device, so that it works ahead as in a run; elsewhere one


@dataclass(frozen=True)
class Report:
    """What :func:`measure` found; of rank 0, the others are alike."""

    device: str
    workers: int
    rows: int  # of one worker
    precision: str
    step_seconds: float  # data wait included
    data_wait_seconds: float | None  # None: synthetic pictures
    parts: dict[str, float]  # seconds of each part, one after the other
    communication_seconds: float  # what a step of several workers takes longer than one of a worker alone
    flops: float  # of one worker's step; a multiplication and its addition are two
    peak_flops: float  # a second: a large matrix product in the same precision
    peak_memory_bytes: int

    @property
    def images_per_second(self) -> float:
        return self.workers * self.rows / self.step_seconds

    @property
    def peak_share(self) -> float:
        return self.flops / self.step_seconds / self.peak_flops


class Stopwatch:
    """Seconds by part of a step, the device waited for before and after each; given to a training as `part_of_step`."""

    def __init__(self, training: Training) -> None:
        self.device = training.world.device
        self.seconds: dict[str, float] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        if training.config.compute.compile == "off":  # a compiled backbone has no places to look in
            self._watch_backbone(training.model.backbone)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wait_for(self.device)
        began = time.perf_counter()
        try:
            yield
        finally:
            wait_for(self.device)
            self._add(name, time.perf_counter() - began)

    def _watch_backbone(self, backbone: nn.Module) -> None:
        began: list[float] = []

        def before(*_: object) -> None:
            wait_for(self.device)
            began.append(time.perf_counter())

        def after(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
            wait_for(self.device)
            seconds = time.perf_counter() - began.pop()
            self._add(f"forward, {inputs[0].shape[-1]} px", seconds)
            self._add("forward", -seconds)  # what is left of it is the head

        self._hooks += [backbone.register_forward_pre_hook(before), backbone.register_forward_hook(after)]

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def share_of(config: Config, workers: int) -> Config:
    """``config`` as ``workers`` of a full group see it: so many shares of batch and queue. The queue is open from the start."""
    rows = -(-config.global_batch_size // config.elastic.max)
    queue = config.queue_length // config.global_batch_size * rows * workers
    return config.model_copy(
        update={
            "global_batch_size": rows * workers,
            "queue_length": queue,
            "queue_start_epoch": 0,
            "freeze_prototypes_epochs": 0.0,
            "batch_norm_workers": 0,
            "name": "bench",
            "trackers": (),
            "data": config.data.model_copy(update={"crop_in": "worker", "block_rows": min(config.data.block_rows, rows)}),
            "elastic": config.elastic.model_copy(update={"min": workers, "max": workers, "sizes": ()}),
        }
    )


def begin(config: Config, world: World, stream: Stream, folder: str) -> Training:
    """A run of ``config`` (of :func:`share_of`) in ``folder``, its queue full from the start."""
    training = Training(config, Storage(folder), world, stream=stream)
    if config.queue_length:
        training._open_queue(0)
        queue: FeatureQueue | None = training.queue
        assert queue is not None
        rows = queue.length // world.size
        filling = torch.randn(len(config.crops_for_assign), rows, config.feature_dim, device=world.device)
        queue.push(nn.functional.normalize(filling, dim=-1).to(weights_dtype(config)))
    return training


def measure(config: Config, world: World, steps: int, stream: Stream | None = None) -> Report:
    """Time ``steps`` steps of ``config`` (of :func:`share_of`) whole, and as many by part. Every worker calls it.

    Args:
        stream: of the configuration's shards; without one, pictures are synthetic.
    """
    synthetic = stream is None
    stream = stream or SyntheticStream(config)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as folder:
        training = begin(config, world, stream, folder)
        report = _measured(training, steps, synthetic=synthetic)
        training.abandon(0.0)
    return report


def _measured(training: Training, steps: int, *, synthetic: bool) -> Report:
    config, world = training.config, training.world
    batches = on_device(training.stream, training.stream.local(training.position, world.rank, world.size), world.device)
    for _ in range(WARM):
        training._train_step(next(batches))
    waits: list[float] = []
    whole = _timed(training, batches, steps, waits)
    memory = _peak_memory(world.device)
    watch = Stopwatch(training)
    training.part_of_step = watch
    for _ in range(steps):
        with watch("all"):
            training._train_step(next(batches))
    watch.close()
    parts = {name: seconds / steps for name, seconds in watch.seconds.items()}
    rest = 2 * parts.pop("all") - sum(watch.seconds.values()) / steps
    if any(name.startswith("forward, ") for name in parts):
        parts["forward, head"] = parts.pop("forward")
    alone = whole
    if world.group is not None:
        alone = _timed_alone(training, batches, steps)
    batches.close()
    share = config.global_batch_size // world.size
    return Report(
        device=device_name(world.device),
        workers=world.size,
        rows=share,
        precision=config.precision,
        step_seconds=whole,
        data_wait_seconds=None if synthetic else statistics.median(waits),
        parts=parts | {"the rest": rest},
        communication_seconds=max(0.0, whole - alone),
        flops=count_flops(config, share),
        peak_flops=measure_peak(config, world.device),
        peak_memory_bytes=memory,
    )


def _timed(training: Training, batches: Iterator[Batch], steps: int, waits: list[float]) -> float:
    """Seconds a step, the median of several takes; ``waits`` gets those in which a step waited for its batch."""
    device = training.world.device
    per_take = min(steps, PER_TAKE.get(device.type, 1))
    takes = []
    for _ in range(max(1, steps // per_take)):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(per_take):
            asked = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - asked)
            training._train_step(batch)
        wait_for(device)
        takes.append((time.perf_counter() - began) / per_take)
    return statistics.median(takes)


def _timed_alone(training: Training, batches: Generator[Batch], steps: int) -> float:
    """Seconds a step of the same rows of this worker when nobody else is there."""
    world, forward = training.world, training._forward

    def mine() -> Iterator[Batch]:
        for batch in batches:
            yield replace(batch, global_rows=len(batch.positions), positions=batch.positions - batch.positions[:1])

    with batch_norm_over(training.model, world.alone()):
        training.world, training._forward = World(device=world.device), training.model
        try:
            training._train_step(next(mine()))
            return _timed(training, mine(), steps, [])
        finally:
            training.world, training._forward = world, forward


def count_flops(config: Config, rows: int) -> float:
    """Of the forward and backward pass of so many rows, counted on tensors without memory."""
    plain = config.model_copy(update={"compute": config.compute.model_copy(update={"recompute_activations": False})})
    model = build_model(plain).to("meta")
    crops = [
        torch.empty(count * rows, 3, size, size, device="meta")
        for count, size in zip(config.crop_counts, config.crop_sizes, strict=True)
    ]
    with FlopCounterMode(display=False) as counter:
        model(crops)[1].sum().backward()
    return float(counter.get_total_flops())


def measure_peak(config: Config, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second of a large square matrix product in the precision of the convolutions, the best of five."""
    multiply = product if device.type == "cpu" else torch.matmul  # one square matrix: transposed or not is no matter
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if config.precision == "bf16-mixed" else weights_dtype(config)
    matrix = torch.randn(side, side, device=device).to(dtype)
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    times = []
    try:
        for _ in range(6):
            wait_for(device)
            began = clock()
            multiply(matrix, matrix)
            wait_for(device)
            times.append(clock() - began)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * side**3 / min(times[1:])


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
