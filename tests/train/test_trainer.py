"""What is checked before anything starts, and the run's folder."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import pytest

from swav_ray.config import load_config
from swav_ray.data.decode import BadImageError
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.backbones import load_run
from swav_ray.train.loop import Training
from swav_ray.train.metrics import MetricsLog, read_metrics
from swav_ray.train.trainer import open_run, resolve
from swav_ray.train.world import World
from tests.train.small import small_config, small_shards, train_here


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_batch_size": 400, "queue_length": 0}, "global_batch_size 400 is more than the 330 images"),
        ({"queue_length": 360}, "queue_length 360 is more than the 330 images"),
        ({"data.train": "nowhere"}, "no manifest.json there"),
        ({"data.train": ""}, "data.train is not set"),
    ],
)
def test_what_cannot_work_on_the_data_is_refused(shards, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        resolve(small_config(shards, str(tmp_path), "x", **settings))


def test_a_run_name_is_taken_by_its_configuration(shards, tmp_path):
    open_run(small_config(shards, str(tmp_path), "mine"))
    open_run(
        small_config(shards, str(tmp_path), "mine", **{"elastic.max": 3, "checkpoint.every_steps": 9})
    )  # not what it computes
    with pytest.raises(UserError, match="num_prototypes 20 there, 21 here; choose another --name"):
        open_run(small_config(shards, str(tmp_path), "mine", num_prototypes=21))


def test_a_run_whose_batch_follows_the_workers_names_the_size_it_is_a_share_of(shards, tmp_path):
    def start(**settings):
        open_run(small_config(shards, str(tmp_path), "mine", **{f"elastic.{key}": value for key, value in settings.items()}))

    start(max=3, scale_lr_with_batch=True)
    start(max=3, min=2, scale_lr_with_batch=True, max_rows_per_device=20)
    with pytest.raises(UserError, match=r"another configuration: elastic.max 3 there, 4 here; choose another --name"):
        start(max=4, scale_lr_with_batch=True)
    with pytest.raises(UserError, match=r"another configuration: elastic.scale_lr_with_batch True there, False here; choose"):
        start(max=3)


def test_demo_digits_resolve_to_shards_made_once(tmp_path):
    config = resolve(load_config("demo-digits", {"storage": str(tmp_path)}))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert config.data.train.endswith("/train") and config.data.test.endswith("/test") and len(made) == 2
    assert resolve(load_config("demo-digits", {"storage": str(tmp_path)})) == config
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == made


def test_metrics_keep_only_the_surviving_steps(tmp_path):
    run = Storage(str(tmp_path))
    first = MetricsLog(run, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    first.flush()
    run.write("metrics.jsonl", run.read("metrics.jsonl") + b'{"step": 4, "lo')  # killed while writing a line
    second = MetricsLog(run, 2)
    second.write({"step": 3, "loss": 3.5})
    second.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(run)] == [(1, 1.0), (2, 2.0), (3, 3.5)]


def test_a_run_ends_with_a_backbone_and_tensorboard(shards, tmp_path):
    config = small_config(shards, str(tmp_path), "short", epochs=2, precision="float32")
    rows = train_here(config)
    assert {"loss", "lr", "verdict", "prototypes_in_use", "images_per_second"} <= set(rows[-1])
    assert list((tmp_path / "short" / "tensorboard").iterdir())
    import torch

    from swav_ray import load_backbone

    backbone = load_backbone(str(tmp_path / "short"))
    assert not backbone.training
    assert backbone(torch.zeros(2, 3, 28, 28)).shape == (2, backbone.num_features)
    assert load_run(str(tmp_path / "short"))[0] == config


def test_a_diverged_run_says_so(shards, tmp_path):
    with pytest.raises(UserError, match=r"the loss is .* lower base_lr"):
        train_here(
            small_config(shards, str(tmp_path), "hot", optimizer="sgd", base_lr=1e38, start_warmup=1e38, precision="float32")
        )


def test_too_many_bad_images_stop_the_run(shards, tmp_path, monkeypatch):
    """Shards whose images go bad after they were made; a few are skipped and counted, many stop the run."""
    from swav_ray.data import fast

    good = fast.decode_into

    def sometimes(room, content, height, width):
        if zlib.crc32(content) % 10 == 0:
            raise BadImageError("truncated")
        good(room, content, height, width)

    monkeypatch.setattr(fast, "decode_into", sometimes)
    with pytest.raises(UserError, match=r"unreadable images in epoch 0, more than data.max_bad_fraction 0.01"):
        train_here(small_config(shards, str(tmp_path), "bad"))
    rows = train_here(small_config(shards, str(tmp_path), "lenient", **{"data.max_bad_fraction": 0.5}))
    assert 25 < rows[8]["bad_images"] < 41, "about every tenth of 330"


def test_a_disk_that_fills_under_the_metrics_is_one_line_at_the_next_checkpoint(shards, tmp_path, monkeypatch):
    config = small_config(shards, str(tmp_path), "full")
    training = Training(config, open_run(config), World())
    assert training.log is not None
    said = pytest.raises(UserError, match="full: cannot be written: No space left on device; earlier checkpoints are kept")
    with contextlib.suppress(OSError), Path("/dev/full").open("a") as training.log._file, said:  # closing it fails too
        training.run_to_end(training.stream.local(training.position))
    assert training.step == config.checkpoint.every_steps, "it was said at the first chance that all ranks share"
