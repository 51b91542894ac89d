"""What a sweep will cost, from a few measured steps and one measured scoring; for `--dry-run`."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from swav_ray.config import Config
from swav_ray.data.stream import Batch, Position, Stream
from swav_ray.swav.feature_queue import FeatureQueue, usable_queue_length
from swav_ray.train.build import build_model, build_optimizer, weights_dtype
from swav_ray.train.probe import probe_backbone
from swav_ray.train.step import loss_and_gradients
from swav_ray.train.trainer import resolve
from swav_ray.train.world import World
from swav_ray.tune.space import Space
from swav_ray.tune.space_sections import Budget

WARM, MEASURED = 2, 5  # steps


@dataclass(frozen=True)
class Cost:
    """Measured here, on one worker with the CPUs that a worker of the sweep has."""

    step_seconds: float
    scoring_seconds: float  # features of all images, and the classifier on them
    steps_per_epoch: int
    device: str
    crowding: float  # CPUs that all trials at a time want over those of this machine, at least 1


@dataclass(frozen=True)
class Estimate:
    """A sweep's cost: with every trial run to its end, and what is left of it with early stopping.

    Seconds are of the clock, without those in which a trial's process starts. ``trials`` are what the budget allows: None
    where nothing that a trial takes here would ever end it.
    """

    cost: Cost
    epochs: int
    rungs: tuple[int, ...]
    trial_seconds: float
    expected_trial_seconds: float
    trials: int | None
    concurrency: int
    workers: int
    gpus: float  # of a trial
    budget: Budget

    @property
    def hours(self) -> float:
        """If no trial is stopped early."""
        waves = math.ceil((self.trials or 0) / self.concurrency)
        return min(waves * self.trial_seconds / 3600, self.budget.hours or math.inf)

    @property
    def expected_hours(self) -> float:
        return min((self.trials or 0) * self.expected_trial_seconds / self.concurrency / 3600, self.hours)

    @property
    def gpu_hours(self) -> float:
        """If no trial is stopped early."""
        return min((self.trials or 0) * self.trial_seconds * self.gpus / 3600, self.budget.gpu_hours or math.inf)

    @property
    def expected_gpu_hours(self) -> float:
        return min((self.trials or 0) * self.expected_trial_seconds * self.gpus / 3600, self.gpu_hours)

    def lines(self) -> list[str]:
        """Ready to print."""
        c = self.cost
        crowded = f", {c.crowding:.2g} times as long with {self.concurrency} at a time" if c.crowding > 1 else ""
        many = f", if {self.workers} workers are {self.workers} times as fast" if self.workers > 1 else ""
        found = [
            f"measured here ({c.device}): {c.step_seconds:.3g} s a step, {c.scoring_seconds:.3g} s a scoring{crowded}",
            f"a trial: {self.epochs} epochs of {c.steps_per_epoch} steps, about {span(self.trial_seconds)}{many}",
        ]
        if self.trials is None:
            return [*found, "the sweep: would not end here, where a trial takes no GPU; give budget.trials or budget.hours too"]
        found.append(
            f"the sweep: {self.trials} trials, {self.concurrency} at a time, at most about {span(self.hours * 3600)} and "
            f"{self.gpu_hours:.2g} GPU-hours"
        )
        if self.rungs:
            found.append(
                f"with early stopping after epochs {', '.join(map(str, self.rungs))}: about {span(self.expected_hours * 3600)} "
                f"and {self.expected_gpu_hours:.2g} GPU-hours"
            )
        return found


def estimate(space: Space) -> Estimate:
    """Measure a few steps and one scoring of the first baseline's trial, in this process, and reckon with them.

    Takes as long as they do; writes nothing that stays.

    Raises:
        UserError: no data, or none that the configuration can work on.
    """
    config = space.config(space.baseline[0] if space.baseline else {}, trial=True)
    with tempfile.TemporaryDirectory() as nowhere:
        if config.data.train == "demo:digits":  # they would be prepared in the storage
            config = config.model_copy(update={"storage": nowhere})
        cost = measure(resolve(config), space)
    return reckon(space, config, cost)


def measure(config: Config, space: Space) -> Cost:
    """The cost of a step with a full queue, and of a scoring, on one worker."""
    on_gpu = torch.cuda.is_available()
    cpus = space.resources.cpus_per_worker
    wanted = space.concurrency * space.resources.worker_range[0] * cpus
    alone = not on_gpu and not os.environ.get("RAY_ADDRESS")  # else a cluster has room for them
    world = World(device=torch.device("cuda" if on_gpu else "cpu"))
    with _threads(max(1, int(cpus))):
        torch.manual_seed(config.seed)
        model = build_model(config)
        model.to(world.device, weights_dtype(config)).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(config, model)
        queue = _full_queue(config, world.device)
        stream = Stream(config)
        batches = stream.local(Position())
        walls, began = [], (0.0, 0.0)
        for count in range(WARM + MEASURED):
            if count == WARM:
                began = time.monotonic(), time.process_time()
            start = time.monotonic()
            batch: Batch = next(batches)
            seen = loss_and_gradients(config, model, model, batch, world, queue)
            if queue is not None:
                positions = torch.from_numpy(batch.positions)
                queue.push(seen.embeddings_ABD, positions=positions, global_rows=batch.global_rows)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(seen.loss)  # waits for the device
            walls.append(time.monotonic() - start)
        # Crops are made beside the step, on CPUs that other trials may want: a trial cannot be faster than its own allow.
        busy = (time.process_time() - began[1]) / MEASURED / cpus
        batches.close()
        start = time.monotonic()
        probe_backbone(config, model.backbone, world)
        scoring = time.monotonic() - start
    return Cost(
        step_seconds=max(statistics.median(walls[WARM:]), busy if not on_gpu else 0.0),
        scoring_seconds=scoring,
        steps_per_epoch=stream.steps.per_epoch,
        device=torch.cuda.get_device_name() if on_gpu else f"{cpus:g} CPU",
        crowding=max(1.0, wanted / (os.cpu_count() or 1)) if alone else 1.0,
    )


def reckon(space: Space, config: Config, cost: Cost) -> Estimate:
    """From the cost of a step to that of the sweep."""
    workers, epochs = space.resources.worker_range[0], config.epochs
    rungs = space.rungs(config)
    every = config.probe.every_epochs
    scored = {epochs, *rungs, *(range(every, epochs, every) if every else ())}

    def seconds(last: int) -> float:
        steps = last * cost.steps_per_epoch * cost.step_seconds
        return (steps + cost.scoring_seconds * sum(epoch <= last for epoch in scored)) / workers * cost.crowding

    expected, reach = 0.0, 1.0
    for begin, end in itertools.pairwise((0, *rungs, epochs)):
        expected += reach * (seconds(end) - (seconds(begin) if begin else 0.0))
        reach /= space.scheduler.factor if space.scheduler.kind == "asha" else 2  # half lie below the median
    gpus = space.resources.gpus_per_worker
    gpus_each = float(torch.cuda.is_available()) if gpus is None else gpus
    budget = space.budget
    trials = [space.trials] if space.trials is not None else []
    each = expected if rungs else seconds(epochs)
    if budget.hours is not None:
        trials.append(max(1, int(budget.hours * 3600 * space.concurrency / each)))
    if budget.gpu_hours is not None and gpus_each:
        trials.append(max(1, int(budget.gpu_hours * 3600 / (each * gpus_each * workers))))
    return Estimate(
        cost=cost,
        epochs=epochs,
        rungs=rungs,
        trial_seconds=seconds(epochs),
        expected_trial_seconds=expected,
        trials=min(trials, default=None),
        concurrency=space.concurrency,
        workers=workers,
        gpus=gpus_each * workers,
        budget=budget,
    )


def span(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for size, unit in ((86_400, "days"), (3600, "h")):
        if seconds >= 2 * size or (unit == "h" and seconds >= 1.5 * size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _full_queue(config: Config, device: torch.device) -> FeatureQueue | None:
    length = usable_queue_length(config.queue_length, config.global_batch_size)
    if not length:
        return None
    queue = FeatureQueue(length, len(config.crops_for_assign), config.feature_dim, device=device)
    rows_VLD: Tensor = torch.randn(len(config.crops_for_assign), length, config.feature_dim, device=device)
    queue.push(torch.nn.functional.normalize(rows_VLD, dim=2))
    return queue


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
