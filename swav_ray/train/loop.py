"""The training loop: the page to read first.

Every step: the gradients of the loss over the global batch (`step.py`: embed, assign codes, predict them), the embeddings
into the queue, the optimiser. All state is free of the number of workers: position is a row of the epoch, schedules follow
it, the queue is one global list.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.data.allocator import keep_memory
from swav_ray.data.storage import Storage
from swav_ray.data.stream import Batch, Position, Stream
from swav_ray.errors import InfraError, UserError
from swav_ray.swav.batch_norm import sync_batch_norm
from swav_ray.swav.collapse import CollapseWatch, judge
from swav_ray.swav.feature_queue import FeatureQueue, cut_queue, gather_queue, usable_queue_length
from swav_ray.swav.optim import warmup_cosine
from swav_ray.train.bad_images import BadImages
from swav_ray.train.build import build_model, build_optimizer, compile_backbone, init_prototypes, weights_dtype
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.faults import Faults
from swav_ray.train.fit import with_cap
from swav_ray.train.metrics import MetricsLog
from swav_ray.train.probe import probe_backbone
from swav_ray.train.restore import restore
from swav_ray.train.signals import SIGNALS, Request
from swav_ray.train.step import Part, loss_and_gradients
from swav_ray.train.world import World

LOG_EVERY = 10  # steps between reads of values from the device
WORD_EVERY = 5.0  # seconds between words of the writer of a checkpoint to those who wait: no collective hangs on a slow store
Report = Callable[[dict[str, Any]], None]


def _no_buffer_sync() -> dict[str, Any]:
    """Batch norm statistics are the same on all workers already; torch renamed the switch."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class Training:
    """A run in the middle of its life: model, optimiser, queue and position on this worker.

    Args:
        config: of the run.
        run: its folder.
        world: the workers of the moment.
        report: called on rank 0 with each logged step's figures, and with `probe/top1` at the ends of epochs.
        faults: to strike on purpose (`faults.py`).
        stream: in place of that of the configuration's shards.

    Attributes:
        part_of_step: entered around each part of a step; by default it names the part in a profile.
    """

    def __init__(
        self,
        config: Config,
        run: Storage,
        world: World,
        report: Report | None = None,
        faults: Faults | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.config, self.run, self.world, self.faults = config, run, world, faults or Faults()
        self.report = report or (lambda row: None)
        self.part_of_step: Part = record_function
        if world.device.type == "cpu":
            keep_memory()
        self.stream = stream or Stream(config)
        self.steps = self.stream.steps_on(world.size)
        self.checkpoints = Checkpoints(run / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every)
        torch.manual_seed(config.seed)  # the same weights on every worker, on the CPU whatever the device
        self.model = build_model(config)
        self.position, self.step = Position(), 0
        self.queue: FeatureQueue | None = None
        saved = restore(self.checkpoints, world)
        if saved is None and config.prototype_init == "samples":
            init_prototypes(self.model, config, self.stream)
        self.dtype = weights_dtype(config)
        self.model.to(world.device, self.dtype).to(memory_format=torch.channels_last)
        sync_batch_norm(self.model, world.subgroup(config.batch_norm_workers))
        self.optimizer = build_optimizer(config, self.model)
        if saved is not None:
            self._load(*saved)
        self.config = with_cap(self)
        compile_backbone(config, self.model)
        self._forward: torch.nn.Module = self.model
        if world.group is not None:
            devices = [world.device] if world.device.type == "cuda" else None
            self._forward = DistributedDataParallel(
                self.model,
                device_ids=devices,
                process_group=world.group,
                gradient_as_bucket_view=True,
                bucket_cap_mb=config.compute.bucket_mb,
                **_no_buffer_sync(),
            )
        self.watch = CollapseWatch(config.num_prototypes, config.feature_dim, device=world.device)
        self.log = MetricsLog(run, self.step, config) if world.rank == 0 else None
        self._pending: list[dict[str, Any]] = []  # steps whose loss is still on the device
        self._pending_losses: list[Tensor] = []
        self.bad_images = BadImages(config, run, world, self.log, self.position.epoch)
        self._unwell_since: float | None = self.log.last.get("unwell_since") if self.log is not None else None
        self._saved_step, self._saved_time = self.step, time.monotonic()
        self._tick, self._waited = time.monotonic(), 0.0  # when the last lines were written; seconds without images since

    @property
    def total_steps(self) -> int:
        """Of the run, when all that are left are made on as many workers as now."""
        return self.step + round(self.config.epochs * self.steps.per_epoch - self.schedule_step)

    @property
    def settled_epoch(self) -> float:
        """Epoch from which the collapse watch may judge: warm-up, freeze and queue start are over."""
        c = self.config
        return max(c.warmup_epochs, c.freeze_prototypes_epochs, c.queue_start_epoch if c.queue_length else 0) + 1

    def run_to_end(self, batches: Iterator[Batch]) -> tuple[dict[str, Any], Request]:
        """Train on ``batches`` (from :attr:`position` on) to the end of the run, or until asked to leave it.

        Returns:
            The last figures, with the probe's; and the request (:mod:`~swav_ray.train.signals`) that ended the training
            early, all saved, or NONE at the end of the run.

        Raises:
            UserError: too many unreadable images, a diverged loss, or no room for a checkpoint; on every worker at once.
        """
        last: dict[str, Any] = {}
        asked = Request.NONE
        SIGNALS.enter("data", self.step, self.total_steps)
        waiting_since = time.monotonic()
        for batch in batches:
            SIGNALS.enter("step")
            self._waited += time.monotonic() - waiting_since
            self.faults.before_step(self.world.rank, self.step)
            vote = self.world.vote(SIGNALS.request)  # travels beside the step's own collectives
            self._train_step(batch)
            epoch_over = batch.next.epoch > batch.epoch
            if self.step % LOG_EVERY == 0 or epoch_over:
                last = self._flush() or last
            if epoch_over:
                SIGNALS.enter("probe", self.step)
                last |= self._end_of_epoch(batch.epoch + 1, last)
            asked = Request(vote()) if batch.next.epoch < self.config.epochs else Request.NONE
            if epoch_over or asked or self._checkpoint_due():
                SIGNALS.enter("checkpoint", self.step)
                self.save(wait=bool(asked))
            SIGNALS.enter("data", self.step)
            waiting_since = time.monotonic()
            if asked:
                break
        SIGNALS.enter("checkpoint", self.step)
        self.checkpoints.close()
        if self.log is not None:
            self.log.close()
        return last, asked

    def abandon(self, seconds: float) -> bool:
        """After an error: let a checkpoint that is being written come to its end; False if it did not in time."""
        if self.log is not None:
            self.log.abandon()
        return self.checkpoints.settled(seconds)

    def _train_step(self, batch: Batch) -> None:
        c, world = self.config, self.world
        lr = self._set_learning_rate()
        self._open_queue(batch.epoch)
        seen = loss_and_gradients(c, self.model, self._forward, batch, world, self.queue, self.part_of_step)
        if self.queue is not None:
            self.queue.push(seen.embeddings_ABD, positions=torch.from_numpy(batch.positions), global_rows=batch.global_rows)
        if self.schedule_step < c.freeze_prototypes_epochs * self.steps.per_epoch:
            self.model.prototypes.weight.grad = None
        with self.part_of_step("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        self.watch.update(seen.embeddings_ABD, seen.scores_ABK, c.temperature)
        self.step += 1
        self.position = batch.next
        self.bad_images.meet(batch, self.step)
        self._pending_losses.append(seen.loss)
        row: dict[str, Any] = {"step": self.step, "epoch": batch.epoch, "rows": batch.global_rows}
        row |= {"lr": lr, "workers": world.size}
        if c.data.log_ids:
            shares = world.gather(list(zip(batch.positions.tolist(), batch.ids, strict=True)))
            if shares is not None:
                row["ids"] = [identifier for _, identifier in sorted(pair for part in shares for pair in part)]
        self._pending.append(row)

    @property
    def schedule_step(self) -> int:
        """How far the run is, in steps of the present batch: what learning rate and freeze go by.

        A function of the position alone. It is :attr:`step` unless the batch follows the workers
        (`elastic.scale_lr_with_batch`); then it is the epochs behind times the steps of an epoch, rounded up to a step.
        """
        return self.position.epoch * self.steps.per_epoch + self.steps.behind(self.position.row)

    def _set_learning_rate(self) -> float:
        c = self.config
        lr = c.share_of(self.world.size) * warmup_cosine(
            self.schedule_step,
            steps_per_epoch=self.steps.per_epoch,
            epochs=c.epochs,
            warmup_epochs=c.warmup_epochs,
            start_warmup=c.start_warmup,
            base_lr=c.base_lr,
            final_lr=c.final_lr,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _open_queue(self, epoch: int) -> None:
        c = self.config
        length = usable_queue_length(c.queue_length, c.global_batch_size)
        if self.queue is None and length and epoch >= c.queue_start_epoch:
            self.queue = FeatureQueue(length, len(c.crops_for_assign), c.feature_dim, device=self.world.device)
            self.queue.rank, self.queue.world_size = self.world.rank, self.world.size

    def _flush(self) -> dict[str, Any] | None:
        """Read the losses since the last flush, write their lines, judge the run; the last line on rank 0."""
        counts = torch.tensor(self.bad_images.counts(), device=self.world.device, dtype=self.dtype)
        *losses, bad, new = self.world.sum(torch.cat([torch.stack(self._pending_losses), counts])).tolist()
        self.bad_images.settle(int(new))
        rows, self._pending, self._pending_losses = self._pending, [], []
        for row, loss in zip(rows, losses, strict=True):
            row["loss"] = loss
        signs = self.watch.read(losses[-1], self.world.group)
        epoch_now = self.schedule_step / self.steps.per_epoch
        verdict = judge(signs, epoch=epoch_now, settled_epoch=self.settled_epoch)
        now = time.monotonic()
        rows[-1] |= {k: v for k, v in asdict(signs).items() if k != "loss"} | {"time": round(time.time(), 3)}
        rows[-1] |= {"verdict": verdict.state, "bad_images": int(bad), "ln_k": math.log(self.config.num_prototypes)}
        self._unwell_since = (epoch_now if self._unwell_since is None else self._unwell_since) if verdict.unwell else None
        rows[-1]["unwell_since"] = self._unwell_since
        if verdict.advice:
            rows[-1]["advice"] = verdict.advice
        rows[-1]["images_per_second"] = sum(row["rows"] for row in rows) / max(now - self._tick, 1e-9)
        rows[-1]["data_wait_seconds"] = round(self._waited, 3)
        self._tick, self._waited = now, 0.0
        if self.log is not None:
            for row in rows:
                self.log.write(row)
            self.log.flush()
            self.report(rows[-1] | {"steps": self.total_steps})
        self.bad_images.check(int(bad), self.stream.plan.num_rows, rows[-1]["epoch"])
        if verdict.state == "diverged":
            raise UserError(f"the loss is {losses[-1]} at step {self.step}: {verdict.advice}")
        return rows[-1] if self.log is not None else None

    def _end_of_epoch(self, epochs_done: int, last: dict[str, Any]) -> dict[str, Any]:
        self.bad_images.end_epoch()
        probe = self.config.probe
        due = epochs_done == self.config.epochs or epochs_done in probe.at_epochs
        found: dict[str, Any] = {"epochs_done": epochs_done}
        if due or (probe.every_epochs and epochs_done % probe.every_epochs == 0):
            found |= probe_backbone(self.config, self.model.backbone, self.world)
            if self.log is not None and "probe/top1" in found:
                self.log.write({"step": self.step, "epoch": epochs_done - 1, **found})
        if self.world.rank == 0:
            signs: dict[str, Any] = {
                key: last[key] for key in ("loss", "verdict", "unwell_since", "advice", "prototypes_in_use") if key in last
            }
            self.report({"step": self.step, "steps": self.total_steps, "epoch": epochs_done - 1, **signs, **found})
        self._tick = time.monotonic()
        return found

    def _checkpoint_due(self) -> bool:
        c = self.config.checkpoint
        if c.every_steps:
            return self.step % c.every_steps == 0
        # Clocks differ: rank 0's decides. Asked at flushes only, which all workers reach together.
        if self.step % LOG_EVERY:
            return False
        return bool(self.world.broadcast(time.monotonic() - self._saved_time > c.every_seconds))

    def save(self, wait: bool = False) -> None:
        """Save a checkpoint of the whole run; every worker calls it, rank 0 writes.

        Training goes on as soon as the state is copied; with ``wait``, and at the end of the run, once it is complete.

        Raises:
            InfraError: this checkpoint, or the one before it, cannot be written; on every worker at once.
        """
        wait = wait or self.position.epoch >= self.config.epochs
        problem = None
        if self._saved_step != self.step:
            if self._pending:
                self._flush()
            queues = self.world.gather(self.queue.state_dict()) if self.queue is not None else None
            problem = self.checkpoints.failure()
            if self.world.rank == 0 and problem is None:
                try:
                    self._hand_over(gather_queue(queues) if queues else None)
                except OSError as error:  # of the metrics' last lines
                    problem = f"{self.run.uri}: cannot be written: {error.strerror or error}; earlier checkpoints are kept"
            self._saved_step, self._saved_time = self.step, time.monotonic()
        elif not wait:
            return
        while True:
            done = self.checkpoints.settled(WORD_EVERY) if wait else True
            problem, done = self.world.broadcast((problem or self.checkpoints.failure(), done))
            if problem is not None:
                raise InfraError(problem)  # the store's fault, whatever the configuration
            if done:
                return

    def _hand_over(self, queue: dict[str, Any] | None) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "queue": queue,
            "epoch": self.position.epoch,
            "row": self.position.row,
        }
        about = {"epoch": self.position.epoch, "row": self.position.row, "config_hash": self.config.hash()}
        about["version"] = __version__
        assert self.log is not None
        self.log.flush()
        self.log.check()
        self.checkpoints.save_async(self.step, state, about, first=self.log.upload)

    def _load(self, state: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position, self.step = Position(state["epoch"], state["row"]), manifest["step"]
        if state["queue"] is not None:
            queue = state["queue"]
            views, _, dim = queue["rows"].shape
            self.queue = FeatureQueue(queue["length"], views, dim, device=self.world.device)
            self.queue.load_state_dict(cut_queue(queue, self.world.rank, self.world.size))
