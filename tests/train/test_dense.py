"""Detection and segmentation end to end on rendered shapes: they learn, stop and go on to the same end, and open again."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.scenes import CLASSES, scenes, write_coco, write_voc
from swav_ray import load_backbone
from swav_ray.errors import UserError
from swav_ray.evaluate.dense_protocol import Dense, Detection, Segmentation
from swav_ray.swav.resnet import resnet
from swav_ray.train import dense, dense_rows
from swav_ray.train.backbones import View, load
from swav_ray.train.dense import MODEL, DenseTraining, Round, _digest, open_dense
from swav_ray.train.dense_rows import DenseRows, read_annotated
from swav_ray.train.outcome import RESULTS
from swav_ray.train.transfer import run_dense
from tests.commands import Ended, run_command

pytestmark = pytest.mark.usefixtures("one_thread")

DETECTION: dict[str, Any] = {
    "sizes": (48, 64),
    "max_size": 96,
    "channels": 16,
    "box_head": 32,
    "box_samples": 32,
    "anchor_sizes": (8, 12, 16, 24, 32),
    "batch_size": 4,
    "warmup_steps": 2,
    "step_at": (),
}
SEGMENTATION: dict[str, Any] = {"size": 48, "crop": 48, "batch_size": 4, "schedule": "poly"}


class Data(NamedTuple):
    """COCO's files of 12 and 6 pictures, VOC's lists of boxes and of maps of the same."""

    coco: tuple[str, str]
    boxes: tuple[str, str]
    maps: tuple[str, str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("scenes")
    sets = [("train", list(scenes(12, side=48, seed=1))), ("test", list(scenes(6, side=48, seed=2)))]
    coco = [write_coco(root / "coco", name, drawn) for name, drawn in sets]
    voc = [write_voc(root / "voc", name, drawn) for name, drawn in sets]
    return Data((coco[0], coco[1]), (voc[0][0], voc[1][0]), (voc[0][1], voc[1][1]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(resnet("resnet10", base_width=8).state_dict(), file)
    return str(file)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    return functools.partial(run_command, monkeypatch, capsys)


def training(weights: str, files: tuple[str, str], protocol: Dense, out: str | None = None) -> DenseTraining:
    loaded = load(weights)
    train = DenseRows(read_annotated(files[0], None, protocol, "--train"), protocol, loaded.view, learns=True)
    test = read_annotated(files[1], None, protocol, "--test").numbered_as(train.annotated.classes, files[0])
    held = DenseRows(test, protocol, loaded.view, learns=False)
    return DenseTraining(loaded.backbone, loaded.view, protocol, train, held, out)


def settings(changes: dict[str, Any]) -> list[str]:
    return [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.parametrize(("protocol", "files"), [("mask-rcnn", "coco"), ("faster-rcnn", "boxes")])
def test_a_detector_by_the_command(
    protocol: str, files: str, weights: str, data: Data, call: Callable[..., Ended], tmp_path: Path
) -> None:
    """The loss falls, every figure is a number from 0 to 1, and what is left opens as torchvision's network."""
    train, test = getattr(data, files)
    out = str(tmp_path / "out")
    changes = settings({**DETECTION, "steps": 8, "score_every": 4})
    arguments = ("--task", "detection", "--protocol", protocol, "--train", train, "--test", test, "--out", out, *changes)
    ended = call("transfer", weights, *arguments)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    title = {"mask-rcnn": "Mask R-CNN", "faster-rcnn": "Faster R-CNN"}[protocol]
    classes = 6 if files == "coco" else len(json.loads(Path(out, RESULTS).read_text())["classes"])
    assert lines[:2] == [f"{title} at 64 px, all of the trunk learns, {classes} classes", "8 steps of 4 of 12 pictures"]
    assert [line.split()[1] for line in lines[2:4]] == ["4/8", "8/8"] and lines[4] == f"on 6 test pictures ({test})"
    assert lines[-1] == f"saved: {out}"
    rounds = [Round(**row) for row in json.loads(Path(out, RESULTS).read_text())["epochs"]]
    assert rounds[0].loss > rounds[1].loss > 0
    assert list(rounds[0].figures)[:3] == ["AP", "AP50", "AP75"] and ("mask AP" in rounds[0].figures) == (files == "coco")
    assert all(0 <= value <= 1 for row in rounds for value in row.figures.values())
    model, names = open_dense(out)
    assert set(names) <= set(CLASSES)
    with torch.no_grad():
        found = model([torch.rand(3, 48, 48)])[0]
    assert ("masks" in found) == (files == "coco")
    assert load_backbone(out).num_features == 64  # type: ignore[comparison-overlap]
    assert "8 of 8 steps were done before" in call("transfer", weights, *arguments).out


@pytest.mark.parametrize(("protocol", "files"), [("fcn", "maps"), ("deeplabv3", "coco")])
def test_a_segmenter_by_the_command(
    protocol: str, files: str, weights: str, data: Data, call: Callable[..., Ended], tmp_path: Path
) -> None:
    train, test = getattr(data, files)
    out = str(tmp_path / "out")
    changes = settings({**SEGMENTATION, "steps": 6, "score_every": 3})
    ended = call(
        *("transfer", weights, "--task", "segmentation", "--protocol", protocol, "--train", train, "--test", test),
        *("--out", out, *changes),
    )
    assert ended.code == 0, ended.err
    assert "crops of 48 px, all of the trunk learns, 6 classes" in ended.out and " ± " in ended.out
    rounds = [Round(**row) for row in json.loads(Path(out, RESULTS).read_text())["epochs"]]
    assert rounds[0].loss > rounds[1].loss > 0
    assert list(rounds[0].figures) == ["mIoU", "mIoU_stderr", "pixels"]
    assert all(0 <= value <= 1 for row in rounds for value in row.figures.values())
    model, names = open_dense(out)
    assert len(names) == 6 and not Path(out, "checkpoints").exists()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 48, 48))["out"].shape == (1, 7, 48, 48)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_stopped_training_goes_on_to_the_same_end(task: str, weights: str, data: Data, tmp_path: Path) -> None:
    """To the bit: pictures, flips, proposals and dropout are drawn by (seed, step)."""
    if task == "detection":
        protocol: Dense = Detection(**DETECTION, steps=4, score_every=2)
        files = data.boxes
    else:
        protocol, files = Segmentation(**SEGMENTATION, steps=4, score_every=2), data.maps
    begin = functools.partial(training, weights, files, protocol)
    whole = begin(str(tmp_path / "whole"))
    list(whole.run())
    out = str(tmp_path / "stopped")
    running = begin(out).run()
    next(running)
    running.close()
    with pytest.raises(UserError, match="other weights, data or settings"):
        training(weights, files, protocol.model_copy(update={"lr": 0.5}), out)
    with pytest.raises(UserError, match="holds no finished detection or segmentation"):
        open_dense(out)
    torch.manual_seed(77)
    resumed = begin(out)
    assert len(resumed.history) == 1 and len(list(resumed.run())) == 1
    assert resumed.history == whole.history
    ours, theirs = load_file(f"{out}/{MODEL}"), load_file(tmp_path / "whole" / MODEL)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_nothing_but_the_last_steps_is_lost_wherever_it_ends(
    weights: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a round, in a scoring, and in the next round: what is left to do gives what it would have given."""
    protocol = Segmentation(**SEGMENTATION, steps=4, score_every=2)
    whole = training(weights, data.maps, protocol)
    list(whole.run())
    out, done = str(tmp_path / "out"), 0
    for where, calls, steps, rounds in (("loss_of", 1, 1, 0), ("_score", 0, 2, 0), ("loss_of", 1, 3, 1), ("", 0, 4, 2)):
        run = training(weights, data.maps, protocol, out)
        assert run.step == done
        done = steps
        with monkeypatch.context() as patch:
            patch.setattr(dense, "SAVE_STEPS", 1 if where == "loss_of" else 200)
            left = [None] * calls
            place: Any = DenseTraining if where == "_score" else dense
            real = getattr(place, where, None)

            def ends(*args: Any, real: Any = real, left: list[None] = left) -> Any:
                if not left:
                    raise KeyboardInterrupt
                left.pop()
                return real(*args)

            if where:
                patch.setattr(place, where, ends)
                with pytest.raises(KeyboardInterrupt):
                    list(run.run())
            else:
                list(run.run())
        assert (run.step, len(run.history)) == (steps, rounds)
    assert run.history == whole.history
    for ours, theirs in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_pictures_that_cannot_be_used_are_counted_and_too_many_are_an_error(
    weights: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches stay whole, another picture in its place; nobody is scored on it."""
    source = Path(data.maps[0]).parents[2]
    shutil.copytree(source, tmp_path / "voc")
    first, second = (str(tmp_path / "voc" / Path(file).relative_to(source)) for file in data.maps)
    files = first, second
    protocol = Segmentation(**{**SEGMENTATION, "flip": 0}, steps=6)
    for file, word in ((files[0], b"no picture"), (files[1], b"")):
        picture = tmp_path / "voc" / "JPEGImages" / f"{Path(file).read_text().split()[0]}.jpg"
        assert picture.exists()
        picture.write_bytes(word)
    with pytest.raises(UserError, match=r"JPEGImages/.*: cannot be read: .* \(1 of 12 pictures cannot be used; more than 1%"):
        list(training(weights, files, protocol).run())
    monkeypatch.setattr(dense_rows, "MOST_BAD", 0.2)
    run = training(weights, files, protocol)
    seen = [len(images) for images, _ in run.train.batches(0, 6)]
    assert seen == [4] * 6 and len(run.train.bad) == 1
    again = next(training(weights, files, protocol).train.batches(4, 6))
    assert torch.equal(torch.stack(again[0]), torch.stack(next(run.train.batches(4, 5))[0]))
    assert len(list(run.test.scored())) == 5 and len(run.test.bad) == 1
    lines = list(run_dense(weights, protocol.model_copy(update={"steps": 1}), *files))
    assert lines[3] == f"on 5 test pictures ({files[1]})" and lines[-1].startswith("  ")
    assert "pictures that cannot be used were left out, for one " in lines[-1]


def test_other_annotations_of_the_same_pictures_are_another_training(weights: str, data: Data, tmp_path: Path) -> None:
    protocol = Detection(**DETECTION, head="mask-rcnn")
    rows = DenseRows(read_annotated(data.coco[0], None, protocol, "--train"), protocol, View(), learns=True)
    first, digests = rows.examples[0], [_digest(rows)]
    assert first.outlines is not None and len(first.labels)
    for changes in ({"crowd": ~first.crowd}, {"outlines": (*first.outlines[:-1], [[0, 0, 9, 0, 9, 9]])}):
        rows.examples[0] = replace(first, **changes)
        digests.append(_digest(rows))
    assert len(set(digests)) == 3


def test_more_classes_than_a_map_can_hold(data: Data, tmp_path: Path) -> None:
    content = json.loads(Path(data.coco[0]).read_text())
    first = max(each["id"] for each in content["categories"]) + 1
    content["categories"] += [{"id": first + n, "name": f"none {n}"} for n in range(255 - len(content["categories"]))]
    file = tmp_path / "many.json"
    file.write_text(json.dumps(content))
    images = read_annotated(data.coco[0], None, Detection(), "--train").examples[0].images.uri
    assert len(read_annotated(str(file), images, Detection(), "--train").classes) == 255
    with pytest.raises(UserError, match=r"--train .*many\.json: 255 classes; a map of classes holds 254 at most"):
        read_annotated(str(file), images, Segmentation(), "--train")


def test_the_rate_of_the_last_step(weights: str, data: Data) -> None:
    """Is the schedule's, ten times that for the second classifier."""
    run = training(weights, data.maps, Segmentation(**SEGMENTATION, steps=4))
    run._learn(3)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.02 * 0.5**0.9, 0.2 * 0.5**0.9])


def test_passes_are_one_batch(weights: str, data: Data) -> None:
    """Where batch norm is frozen, as under a classifier without any, and every pixel is labelled: to rounding."""
    ends = []
    for size in (0, 3):
        changes = {"batch_norm": "frozen", "aux_weight": 0, "min_scale": 1, "max_scale": 1, "images_per_pass": size}
        run = training(weights, data.maps, Segmentation(**SEGMENTATION, **changes, steps=1))
        torch.manual_seed(0)
        run.model.classifier = torch.nn.Conv2d(64, 7, 1)
        run._learn(1)
        ends.append((run.loss, run.model.backbone.backbone.layer4[0].conv1.weight.detach()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(ends[0][1], load(weights).backbone.layer4[0].conv1.weight)


def test_every_epoch_sees_each_picture_once_in_an_order_of_its_own(data: Data) -> None:
    protocol = Detection(**{**DETECTION, "flip": 0})
    rows = DenseRows(read_annotated(data.coco[0], None, protocol, "--train"), protocol, View(), learns=True)
    names = {round(float(each.picture().convert("L").resize((1, 1)).getpixel((0, 0))), 3) for each in rows.examples}
    assert len(rows) == 12 and len(names) > 3
    batches = [torch.stack(images) for images, _ in rows.batches(0, 6)]
    first, second = (torch.cat(part).flatten(1).sum(1) for part in (batches[:3], batches[3:]))
    assert not torch.equal(first, second) and torch.equal(first.sort().values, second.sort().values)
    again = [torch.stack(images) for images, _ in rows.batches(4, 6)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, batches[4:], strict=True))


def test_flips_move_pictures_boxes_and_masks_together(data: Data) -> None:
    """Under a mask is another colour than around it, whatever was drawn: shapes differ from the ground by 70 of 255."""
    flipped = Detection(**{**DETECTION, "flip": 1, "head": "mask-rcnn"})
    rows = DenseRows(read_annotated(data.coco[0], None, flipped, "--train"), flipped, View(), learns=True)
    images, targets = next(rows.batches(0, 1))
    for image, target in zip(images, targets, strict=True):
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"].bool(), strict=True):
            lines, columns = mask.nonzero().unbind(1)
            assert box == [columns.min(), lines.min(), columns.max() + 1, lines.max() + 1]
            ring = torch.zeros_like(mask)
            ring[max(0, box[1] - 3) : box[3] + 3, max(0, box[0] - 3) : box[2] + 3] = True
            around = ring & ~target["masks"].bool().any(0)
            assert (image[:, mask].mean(1) - image[:, around].mean(1)).abs().max() > 0.1


def test_crops_of_pictures_and_of_their_maps_are_the_same(data: Data) -> None:
    """At their own size, flipped: each is some picture's mirror image with that picture's map; outside is `UNLABELLED`."""
    protocol = Segmentation(**{**SEGMENTATION, "crop": 64, "flip": 1, "min_scale": 1, "max_scale": 1})
    rows = DenseRows(read_annotated(data.maps[0], None, protocol, "--train"), protocol, View(), learns=True)
    mirrored = [(np.asarray(each.picture())[:, ::-1], each.map()[:, ::-1]) for each in rows.examples]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (View().mean, View().std))
    for images, targets in rows.batches(0, 3):
        for image, target in zip(images, targets, strict=True):
            pixels = ((image * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()
            maps = [classes for picture, classes in mirrored if np.array_equal(picture, pixels[:48, :48])]
            assert len(maps) == 1 and np.array_equal(target["map"][:48, :48].numpy(), maps[0])
            assert not pixels[48:].any() and (target["map"][48:] == 255).all() and (target["map"][:, 48:] == 255).all()


def test_mistakes(weights: str, data: Data, tmp_path: Path, call: Callable[..., Ended]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("epochs: 1")
    train, test = data.coco
    found = ["--train", train, "--test", test]
    for arguments, said in (
        (["--task", "detecton", *found], "--task detecton: not known (did you mean 'detection'?)"),
        (["--task", "detection"], "--task detection: give --train and --test: COCO's instances .json, or a list"),
        (["--task", "detection", "--protocol", "fcn", *found], "no protocol 'fcn' of detection"),
        (["--task", "detection", "--metric", "top1", *found], "--metric top1: goes with classification"),
        (["--task", "detection", "--size", "8", *found], "--size 8: give the short side from 32 to 4096 px"),
        (["--train-images", "a", *found], "go with --task detection or segmentation"),
        (["--task", "detection", "--train", "a.parquet", "--test", test], "--train a.parquet: give COCO's instances .json"),
        (["--task", "detection", *found, "--train-images", "a,b"], "--train-images a,b: 2 folders for the 1 files of --train"),
        (
            ["--task", "detection", "--protocol", "mask-rcnn", "--train", data.boxes[0], "--test", test],
            "VOC's boxes have no outlines to learn masks from",
        ),
        (
            ["--task", "segmentation", "--train", f"{train},{data.maps[0]}", "--test", test],
            "classes of COCO have names and those of VOC's maps numbers",
        ),
        (["--task", "segmentation", "--train", data.maps[0], "--test", test], "has the class 'cross', which "),
        (["--task", "detection", *found, "--out", str(tmp_path / "run")], "is a run; give a folder of its own"),
        (
            ["--task", "detection", *found, *settings({**DETECTION, "steps": 2, "lr": 1e30})],
            "the training diverged; lower --set lr",
        ),
    ):
        ended = call("transfer", weights, *arguments)
        assert ended.code == 2 and said in ended.err and len(ended.err.splitlines()) == 1, (arguments, ended)


def test_a_missing_library_is_one_line(weights: str, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("pycocotools", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    for protocol, files in ((Detection(**DETECTION), data.boxes), (Segmentation(**SEGMENTATION), data.coco)):
        with pytest.raises(UserError, match=r"pip install 'swav-ray\[transfer\]'"):
            list(training(weights, files, protocol).run())


def test_quick(weights: str, data: Data, call: Callable[..., Ended]) -> None:
    arguments = settings({key: value for key, value in DETECTION.items() if key not in ("sizes", "batch_size")})
    found = ["--train", data.coco[0], "--test", data.coco[1], "--size", "64"]
    ended = call("transfer", weights, "--task", "detection", "--quick", *found, *arguments)
    assert ended.code == 0, ended.err
    assert "10 steps of 4 of 12 pictures\nquick: some of the pictures" in ended.out and "Faster R-CNN at 64 px" in ended.out
