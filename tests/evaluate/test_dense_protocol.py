"""The shipped recipes hold the published numbers, their rates are those published; a mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_ray.errors import UserError
from swav_ray.evaluate.dense_protocol import Detection, Segmentation, load_dense
from swav_ray.evaluate.protocol import protocol_names


def test_the_published_numbers() -> None:
    """MoCo's recipe of VOC07+12, the 1x schedule of COCO, torchvision's segmentation."""
    shared = {"frozen": "none", "batch_norm": "live", "momentum": 0.9, "weight_decay": 1e-4, "lr": 0.02, "flip": 0.5}
    assert protocol_names("detection") == ["faster-rcnn", "mask-rcnn"]
    assert protocol_names("segmentation") == ["deeplabv3", "fcn"]
    for task, name, numbers in (
        ("detection", "faster-rcnn", {"steps": 24_000, "batch_size": 16, "step_at": (18_000, 22_000), "warmup_steps": 100}),
        ("detection", "mask-rcnn", {"steps": 90_000, "batch_size": 16, "step_at": (60_000, 80_000), "warmup_steps": 1000}),
        ("segmentation", "fcn", {"steps": 86_730, "batch_size": 32, "schedule": "poly", "crop": 480, "size": 520}),
        ("segmentation", "deeplabv3", {"steps": 86_730, "batch_size": 32, "schedule": "poly", "aux_weight": 0.5}),
    ):
        protocol = load_dense(task, name)
        assert protocol.head == name and protocol.model_dump(include=set(numbers) | set(shared)) == numbers | shared
    assert load_dense("detection").head == "faster-rcnn" and load_dense("segmentation").head == "fcn"
    assert load_dense("detection").side == 800 and load_dense("segmentation").side == 520


def test_rates() -> None:
    steps = Detection(steps=100, step_at=(60, 80), warmup_steps=10)
    for step, wanted in ((0, 0.001), (5, 0.5005), (10, 1), (59, 1), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)):
        assert steps.rate(step) == pytest.approx(wanted), step
    poly = Segmentation(steps=100, schedule="poly")
    assert [poly.rate(step) for step in (0, 50, 99)] == pytest.approx([1, 0.5**0.9, 0.01**0.9])


def test_rounds() -> None:
    assert Detection(steps=10, score_every=4).rounds() == [4, 8, 10]
    assert Detection(steps=10, score_every=5).rounds() == [5, 10]
    assert Detection(steps=10).rounds() == Detection(steps=10, score_every=40).rounds() == [10]


def test_quick_and_sized() -> None:
    quick = load_dense("detection", "mask-rcnn").quick()
    assert (quick.steps, quick.batch_size, quick.side, quick.rounds()) == (10, 4, 224, [10])
    assert quick.sizes == (179, 188, 197, 206, 215, 224) and quick.max_size == 373
    assert Segmentation(head="deeplabv3", images_per_pass=6).quick().images_per_pass == 0  # 4 are one pass
    half = load_dense("segmentation").sized(260)
    assert (half.size, half.crop) == (260, 240)
    small = Segmentation(steps=3, size=64, crop=64).quick()
    assert (small.steps, small.size, small.crop) == (3, 64, 64)


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        ("detection", "step: 3", "{file}:1: unknown key 'step' (did you mean 'steps'?)"),
        ("detection", "head: fcn", "{file}:1: head = 'fcn': input should be 'faster-rcnn' or 'mask-rcnn'"),
        ("detection", "sizes: []", "{file}:1: sizes = []: tuple should have at least 1 item"),
        ("detection", "lr: 1\nschedule: poly\nstep_at: [3]", "{file}: step_at [3] goes with schedule step"),
        ("detection", "step_at: [3, 2]", "{file}: step_at [3, 2] must rise, from 1 on"),
        ("segmentation", "min_scale: 3", "{file}: min_scale 3 is above max_scale 2; swap them"),
        (
            "segmentation",
            "head: deeplabv3\nimages_per_pass: 1",
            "{file}: images_per_pass 1: deeplabv3 normalises over the images",
        ),
        (
            "segmentation",
            "head: deeplabv3\nimages_per_pass: 5",
            "{file}: images_per_pass 5: deeplabv3 normalises over the images of a pass; of 16 none may stay alone in one",
        ),
        ("segmentation", "batch_norm: synced", "{file}:1: batch_norm = 'synced': input should be 'live' or 'frozen'"),
    ],
)
def test_a_mistake_is_one_line(task: str, text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_dense(task, str(file))
    assert said.format(file=file) in str(error.value)


def test_a_protocol_of_another_task_is_unknown() -> None:
    with pytest.raises(UserError, match="no protocol 'fcn' of detection; known are faster-rcnn, mask-rcnn"):
        load_dense("detection", "fcn")
    with pytest.raises(UserError, match="--set: lr = -1"):
        load_dense("detection", None, {"lr": -1})
