"""A run's figure stands beside those it must be read against."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from swav_ray import load_backbone
from swav_ray.data.chunks import Listed, Source
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.evaluate.protocol import load_protocol
from swav_ray.export import export
from swav_ray.swav.resnet import resnet
from swav_ray.train import scoring
from swav_ray.train.backbones import View, load
from swav_ray.train.classify import Classification
from swav_ray.train.labelled import LabelledRows
from swav_ray.train.probe import pixel_features, shrunk
from swav_ray.train.scoring import _svm, probe_on_test, score_run
from tests.data.pictures import encode, picture
from tests.doctor.spoilt import rewritten
from tests.train.small import small_config, small_shards, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("scored")
    train_here(small_config(small_shards(str(place / "shards")), str(place), "run", precision="float32"))
    return str(place / "run")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(resnet("resnet10", base_width=4, stem="small").state_dict(), file)
    return str(file)


def write_pictures(place, classes: str, rows: int = 30, mode: str = "RGB") -> str:
    """Shards of small pictures; a class for each letter, numbered as they stand there."""
    names = list(classes)
    sources = [
        Source(f"{row:05d}", row % len(names), lambda row=row: encode(picture(16, 16, row % 50).convert(mode), quality=90))
        for row in range(rows)
    ]
    write_shards([Listed(sources)], names, Storage(str(place)))
    return str(place)


def test_one_number_is_one_class_in_both_sets(weights, tmp_path):
    """A set may lack the last classes; one that lacks another would be scored by labels that mean something else."""
    sets = {classes: write_pictures(tmp_path / classes, classes) for classes in ("abc", "ab", "bc")}
    protocol = load_protocol("linear", {"epochs": 1, "batch_size": 16})

    def classify(train: str, test: str) -> None:
        rows = LabelledRows(train), LabelledRows(test)
        list(Classification(load(weights).backbone, View(size=16, resize=16), protocol, *rows).run())

    for score in (
        lambda train, test: list(score_run(weights, "knn", test, train=train, size=16)),
        lambda train, test: probe_on_test(View(size=16, resize=16).config(train, test), load(weights).backbone),
        classify,
    ):
        score(sets["abc"], sets["ab"])
        score(sets["ab"], sets["abc"])
        with pytest.raises(UserError, match=r"bc: not the classes of .*abc \(number 0 is 'b', there 'a'\); make both with"):
            score(sets["abc"], sets["bc"])


def test_what_cannot_be_scored_is_one_line(weights, tmp_path):
    sets = {classes: write_pictures(tmp_path / classes, classes) for classes in ("a", "ab")}
    huge = {key: value.sign() * 3e38 if key == "conv1.weight" else value for key, value in torch.load(weights).items()}
    torch.save(huge, tmp_path / "huge.pth")
    for kind in ("probe", "knn"):
        with pytest.raises(UserError, match=r"/a: a classifier needs images of at least two classes"):
            list(score_run(weights, kind, sets["ab"], train=sets["a"], size=16))
        with pytest.raises(UserError, match=r"huge\.pth: features must be finite; the backbone gives NaN"):
            list(score_run(str(tmp_path / "huge.pth"), kind, sets["ab"], train=sets["ab"], size=16))
    config = View(size=16, resize=16).config(sets["a"], sets["ab"])
    with pytest.raises(UserError, match="at least two classes"):
        probe_on_test(config, load(weights).backbone)
    config = View(size=16, resize=16).config(sets["ab"], sets["ab"]).model_copy(update={"name": "mine"})
    with pytest.raises(UserError, match="run 'mine': features must be finite"):
        probe_on_test(config, load(str(tmp_path / "huge.pth")).backbone)


def test_grey_pictures_beside_coloured_ones(weights, tmp_path):
    """Raw pixels have as many columns in one set as in the other: one channel where both are grey."""
    colour, grey = write_pictures(tmp_path / "colour", "ab"), write_pictures(tmp_path / "grey", "ab", mode="L")
    for train, test in ((colour, grey), (grey, colour), (grey, grey)):
        assert len(list(score_run(weights, "knn", test, train=train, size=16))) == 4
    images = torch.randint(256, (2, 16, 16, 1), dtype=torch.uint8).expand(2, 16, 16, 3).numpy()
    assert [len(part[0]) for part in pixel_features(shrunk(images), shrunk(images))] == [256, 256]


def test_pictures_are_in_memory_a_batch_at_a_time(weights, tmp_path):
    shards = write_pictures(tmp_path / "shards", "ab", 2000)
    list(score_run(weights, "knn", shards, train=shards, size=48, quick=True))  # what is imported is no picture
    tracemalloc.start()
    list(score_run(weights, "knn", shards, train=shards, size=48))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 48 * 48 * 3


def test_quick_reads_few_row_groups(weights, tmp_path, monkeypatch):
    shards = write_pictures(tmp_path / "shards", "ab", 1000)
    groups = []
    read = Shards.read_group

    def counted(self, group, columns):
        groups.extend([group] if "jpeg" in columns else [])
        return read(self, group, columns)

    monkeypatch.setattr(Shards, "read_group", counted)
    monkeypatch.setattr(scoring, "QUICK_ROWS", (4, 4))
    lines = list(score_run(weights, "knn", shards, train=shards, size=16, quick=True))
    assert "on 4 test images" in lines[0] and len(groups) <= 8
    assert len(list(score_run(weights, "knn", shards, train=shards, size=16))) == 4 and len(groups) > 2 * 15


def test_unreadable_pictures_are_counted(weights, tmp_path):
    def spoil(rows):
        rows[0]["jpeg"] = b"no picture"

    shards = str(rewritten(write_pictures(tmp_path / "shards", "ab", 200), tmp_path / "spoilt", spoil))
    assert list(score_run(weights, "knn", shards, train=shards, size=16))[-1] == "  2 unreadable images were left out"


def test_a_probe_stands_beside_its_baselines(run):
    with pytest.raises(UserError, match="names no test data; give labelled shards with --test"):
        list(score_run(run, "probe", None))
    shards = run.removesuffix("run") + "shards"
    lines = list(score_run(run, "probe", shards))
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "this run",
        "untrained backbone",
        "raw 16x16 pixels",
        "RBF-SVM on pixels",
    ]
    assert all("±" in line for line in lines[1:])
    assert len(list(score_run(run, "knn", shards))) == 4


def test_exports_and_files_are_scored_as_the_run_is(run, tmp_path):
    """A safetensors export knows how it wants its images; for a file that does not, the user says."""
    shards = run.removesuffix("run") + "shards"
    export(run, str(tmp_path / "out"), "safetensors")
    torch.save(load_backbone(run).state_dict(), tmp_path / "bare.pth")
    wanted = list(score_run(run, "knn", shards))
    exported = list(score_run(str(tmp_path / "out"), "knn", shards, train=shards))
    assert exported == [line.replace("this run     ", "these weights") for line in wanted]
    sized = list(score_run(str(tmp_path / "bare.pth"), "knn", shards, train=shards, size=28))
    same = list(score_run(run, "knn", shards, size=28))  # 28 px cut from 32, where the run takes all of 28
    assert sized == [line.replace("this run     ", "these weights") for line in same] != exported
    for mistake, message in (
        ({"test": shards}, "weights name no data; give labelled shards with --train and --test"),
        ({"test": None, "train": shards}, "weights name no test data; give labelled shards with --test"),
        ({"test": shards, "train": shards, "size": 3}, "--size 3: give the side of an image from 8 to 3584 px"),
    ):
        with pytest.raises(UserError, match=message):
            list(score_run(str(tmp_path / "out"), "knn", **mistake))


def test_the_svm_counts_labels_not_columns():
    """Classes 3, 5 and 9 at three corners; a test row of class 7, never trained on, is a miss wherever it lies."""
    corners = torch.eye(3).repeat(4, 1)
    labels = torch.tensor([3, 5, 9]).repeat(4)
    score = _svm(corners, labels, torch.eye(3)[[0, 1, 2, 0]], torch.tensor([3, 5, 9, 7]))
    assert score.top1 == 0.75
    two = _svm(corners[labels != 9], labels[labels != 9], torch.eye(3)[[0, 1]], torch.tensor([3, 5]))
    assert two.top1 == 1.0
