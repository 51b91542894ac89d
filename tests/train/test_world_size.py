"""The world size is not a hyper-parameter: one run on 1, 2 and 3 workers, over real gloo processes."""

from __future__ import annotations

import torch

from swav_ray.config import Config, load_config
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.trainer import Storage
from tests.gloo import run_ranks
from tests.train.small import EPOCHS, ROWS, STEPS, losses_of, small_config, small_shards, train_here


def _rank(rank: int, config: Config, steps: int | None) -> None:
    train_here(config, rank=rank, steps=steps)


def _train(config: Config, workers: int, steps: int | None = None) -> list[dict]:
    run_ranks(workers, _rank, config, steps, timeout=600)
    return losses_of(config)


def _assert_same(rows: list[dict], others: list[dict], tolerance: float = 1e-4) -> None:
    assert [row["ids"] for row in rows] == [row["ids"] for row in others]
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, others, strict=True))
    assert worst < tolerance, worst


def test_twenty_steps_of_the_demo_are_the_same_on_1_2_and_3_workers(digits, tmp_path):
    settings = {
        "data.train": digits[0],
        "storage": str(tmp_path),
        "data.log_ids": True,
        # Else rounding grows over twenty steps, on some processors past what another order of rows should change.
        "precision": "float64",
        "queue_start_epoch": 0,  # its 128 rows are full, and so in use, from the third step on
    }
    runs = [_train(load_config("demo-digits", settings | {"name": f"w{w}"}), w, steps=20) for w in (1, 2, 3)]
    assert len(runs[0]) == 20
    for other in runs[1:]:
        _assert_same(runs[0], other, tolerance=1e-9)


def test_changing_workers_on_the_way_changes_nothing(tmp_path):
    """1 -> 3 -> 2 -> 1 workers, each change mid-epoch, against one undisturbed worker."""
    train = small_shards(str(tmp_path / "shards"))
    calm = small_config(train, str(tmp_path), "calm")
    reference = _train(calm, 1)
    assert len(reference) == STEPS
    for epoch in range(EPOCHS):
        ids = [identifier for row in reference if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS

    elastic = small_config(train, str(tmp_path), "elastic")
    for workers, steps in ((1, 4), (3, 8), (2, 4), (1, None)):
        rows = _train(elastic, workers, steps)
    _assert_same(reference, rows)

    a, b = (Checkpoints(Storage(f"{tmp_path}/{name}/checkpoints")).latest()[0] for name in ("calm", "elastic"))
    for name, value in a["model"].items():
        difference = (b["model"][name] - value).double().norm() / value.double().norm()
        assert difference < 1e-3, (name, float(difference))
    # The queue: the same rows in the same order, told from each other by far more than they may differ.
    assert a["queue"]["key"].tolist() == b["queue"]["key"].tolist()
    rows_VLD, others_VLD = a["queue"]["rows"], b["queue"]["rows"]
    apart_VLL = torch.cdist(rows_VLD, rows_VLD) + 9 * torch.eye(rows_VLD.shape[1])
    assert (rows_VLD - others_VLD).norm(dim=2).max() < 1e-3 * apart_VLL.min()


def test_a_worker_without_rows_changes_nothing(tmp_path):
    """Two blocks a step on three workers: in turn, one of them has no row and meets the others in every collective."""
    train = small_shards(str(tmp_path / "shards"))
    runs = [_train(small_config(train, str(tmp_path), f"w{w}", **{"data.block_rows": 20}), w, steps=8) for w in (1, 3)]
    assert len(runs[0]) == 8 and {row["workers"] for row in runs[1]} == {3}
    _assert_same(*runs, tolerance=1e-9)
