"""`swav-ray bench`: every part has its time, the parts add up to the step, and operations are counted right."""

from __future__ import annotations

import json

import pytest
import torch

from swav_ray.config import Config, load_config
from swav_ray.train.bench import count_flops, measure, share_of
from swav_ray.train.bench_workers import measure_on
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World
from tests.commands import run_command

SMALL = {"backbone.base_width": 4, "hidden_dim": 16, "feature_dim": 8, "num_prototypes": 20, "queue_length": 64}


def small(**changes: object) -> Config:
    return load_config("demo-digits", SMALL | changes)


def test_parts_add_up_to_the_step() -> None:
    torch.set_num_threads(1)
    report = measure(share_of(small(), 1), World(), steps=3)
    assert set(report.parts) == {
        "crops", "forward, 28 px", "forward, 20 px", "forward, head", "codes", "loss", "backward", "optimizer", "the rest",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in report.parts.values())
    assert sum(report.parts.values()) == pytest.approx(report.step_seconds, rel=1)
    assert 0 < report.peak_share < 1 and report.communication_seconds == 0 and report.data_wait_seconds is None


def test_operations_are_those_of_the_layers() -> None:
    config = small(**{"backbone.base_width": 8, "crop_counts": [1, 1], "crops_for_assign": [0]})
    doubled = config.model_copy(update={"num_prototypes": 2 * config.num_prototypes})
    rows, dim, k = 6, config.feature_dim, config.num_prototypes
    # A product of (crops * rows, D) and (D, K): once forward, twice backward.
    assert count_flops(doubled, rows) - count_flops(config, rows) == 3 * 2 * 2 * rows * dim * k
    assert count_flops(config, 2 * rows) == 2 * count_flops(config, rows)
    again = config.model_copy(update={"compute": config.compute.model_copy(update={"recompute_activations": True})})
    assert count_flops(again, rows) == count_flops(config, rows), "what is done twice is no more progress"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_is_given_its_share_of_a_full_group(workers: int) -> None:
    config = share_of(load_config("imagenet-200ep-bs256"), workers)
    assert (config.global_batch_size, config.queue_length) == (64 * workers, 960 * workers)
    stream = SyntheticStream(config)
    shapes = [crop.shape for crop in next(stream.local(stream_start(), 0, workers)).crops]
    assert shapes == [(2, 64, 224, 224, 3), (6, 64, 96, 96, 3)]


def stream_start():
    from swav_ray.data.stream import Position

    return Position()


def test_two_workers_talk() -> None:
    report = measure_on(share_of(small(**{"elastic.max": 2}), 2), 2, 3, synthetic=True)
    assert (report.workers, report.rows) == (2, 32)
    assert report.step_seconds > 0 and report.communication_seconds >= 0


def test_the_command_prints_json(digits, tmp_path, monkeypatch, capsys) -> None:
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    printed = run_command(
        monkeypatch, capsys, "bench", "demo-digits", *settings, "--set", f"storage={tmp_path}", "--steps", "2", "--json"
    )
    figures = json.loads(printed.out)
    assert figures["images_per_second"] > 0 and figures["data_wait_seconds"] >= 0
