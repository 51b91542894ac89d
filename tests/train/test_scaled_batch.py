"""`elastic.scale_lr_with_batch`: batch and learning rate follow the workers; rows and schedules follow the epochs."""

from __future__ import annotations

import itertools

import pytest
import torch

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.swav.optim import warmup_cosine
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.loop import Training
from swav_ray.train.trainer import open_run
from swav_ray.train.world import World
from tests.gloo import run_ranks
from tests.train.small import EPOCHS, ROWS, losses_of, small_config, small_shards, train_here

SCALED = {"elastic.max": 3, "elastic.scale_lr_with_batch": True}
BATCH_ON = {1: 13, 2: 27, 3: 40}  # of 40 rows


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


def _rank(rank: int, config: Config, steps: int | None) -> None:
    train_here(config, rank=rank, steps=steps)


def _train(config: Config, workers: int, steps: int | None = None) -> list[dict]:
    run_ranks(workers, _rank, config, steps, timeout=600)
    return losses_of(config)


def _schedule(config: Config, epochs: float, steps_per_epoch: int) -> float:
    """The learning rate after so many epochs, unscaled."""
    return warmup_cosine(
        epochs * steps_per_epoch,  # type: ignore[arg-type]
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        start_warmup=config.start_warmup,
        base_lr=config.base_lr,
        final_lr=config.final_lr,
    )


def test_three_two_and_one_workers_take_every_image_once_an_epoch(shards, tmp_path):
    """3 -> 2 -> 1 -> 3 workers, each change mid-epoch."""
    config = small_config(shards, str(tmp_path), "run", **SCALED)
    for workers, steps in ((3, 4), (2, 4), (1, 20), (3, None)):
        rows = _train(config, workers, steps)
    assert [workers for workers, _ in itertools.groupby(row["workers"] for row in rows)] == [3, 2, 1, 3]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for epoch in range(EPOCHS):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    seen = 0
    for row in rows:
        batch = BATCH_ON[row["workers"]]
        assert batch // 2 < row["rows"] == len(row["ids"]) <= batch
        per_epoch = -(-ROWS // batch)
        epochs = seen / ROWS
        # As the epochs behind say, rounded up to a step of the batch of the moment.
        expected = [_schedule(config, at, per_epoch) for at in (epochs, epochs + 1 / per_epoch)]
        scaled = sorted(lr * row["workers"] / 3 for lr in expected)
        assert scaled[0] - 1e-12 <= row["lr"] <= scaled[1] + 1e-12, (row["step"], row["lr"], scaled)
        seen += row["rows"]
    (state, manifest) = Checkpoints(Storage(config.storage) / "run" / "checkpoints").latest()
    assert (state["epoch"], state["row"], manifest["step"]) == (EPOCHS, 0, len(rows))
    assert state["queue"]["length"] == 80, "of the configured batch, whatever batch is pushed"
    assert state["queue"]["key"].tolist() == list(range(-EPOCHS * ROWS, 80 - EPOCHS * ROWS))


def test_at_a_fixed_size_it_is_the_plain_run_of_that_batch_and_learning_rate(shards, tmp_path):
    """Two of three workers throughout, stopped once mid-epoch, the last 3 steps done again."""
    sizes = {"queue_length": 84, "warmup_epochs": 1}  # whole batches of 42 and of 28
    scaled = small_config(shards, str(tmp_path), "scaled", global_batch_size=42, **sizes, **SCALED)
    rates = {key: getattr(scaled, key) * 2 / 3 for key in ("base_lr", "final_lr", "start_warmup")}
    plain = small_config(shards, str(tmp_path), "plain", global_batch_size=28, **sizes, **rates)
    reference = _train(plain, 1)
    assert len(reference) == EPOCHS * 12
    _train(scaled, 2, 7)
    rows = _train(scaled, 2)
    assert [row["ids"] for row in rows] == [row["ids"] for row in reference]
    assert [row["lr"] for row in rows] == pytest.approx([row["lr"] for row in reference], rel=1e-12)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in reference], abs=1e-6)


def test_at_full_size_it_is_the_constant_run(shards, tmp_path):
    """To the last bit: learning rates, losses, weights."""
    runs = {}
    for name, elastic in (("scaled", SCALED | {"elastic.max": 1}), ("constant", {})):
        config = small_config(shards, str(tmp_path), name, **elastic)
        rows = train_here(config, steps=8)
        runs[name] = [(row["lr"], row["loss"], row["ids"]) for row in rows]
    assert runs["scaled"] == runs["constant"] and len(runs["scaled"]) == 8


def test_prototypes_thaw_after_their_epochs_and_the_screen_knows_how_many_steps_there_are(shards, tmp_path):
    """One of three workers: 26 steps of 13 rows an epoch, 0.3 epochs of them frozen."""
    config = small_config(shards, str(tmp_path), "run", **SCALED)
    shown: list[dict] = []
    training = Training(config, open_run(config), World(device=torch.device("cpu")), shown.append)
    training.step = 40  # as if it had got here in other steps: only the position tells how far it is
    moved: list[bool] = []

    def directions():
        return torch.nn.functional.normalize(training.model.prototypes.weight.detach(), dim=1)

    def watched():
        for batch in itertools.islice(training.stream.local(training.position), 30):
            before = directions()
            yield batch
            moved.append(not torch.allclose(before, directions(), rtol=0, atol=1e-9))

    training.run_to_end(watched())
    assert moved.index(True) == 8 and all(moved[8:]), "steps 0 to 7 begin before 0.3 * 330 rows"
    assert {row["steps"] for row in shown if "loss" in row} == {40 + 2 * 26}

    # Two workers join: the rest of the second epoch in steps of 40 rows.
    bigger = Training(config, open_run(config), World(size=3, device=torch.device("cpu")))
    assert (bigger.position.epoch, bigger.step) == (1, 68)
    left = next(bigger.stream.spans_from(bigger.position, 3))
    assert abs((2 * 9 - bigger.schedule_step) - (left.last - left.first)) <= 1
