"""Protocols end to end on real digits: figures that hold over seeds, a stopped training that goes on, weights that open."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swav_ray import load_backbone
from swav_ray.errors import UserError
from swav_ray.evaluate.features import normalise
from swav_ray.evaluate.protocol import Protocol, load_protocol
from swav_ray.export import export
from swav_ray.swav.resnet import resnet
from swav_ray.train.backbones import View, load
from swav_ray.train.classify import HEAD, TRUNK, Classification, Epoch
from swav_ray.train.labelled import LabelledRows
from swav_ray.train.outcome import RESULTS
from swav_ray.train.protocols import run_protocol
from tests.conftest import Digits
from tests.train.small import small_config, train_here

pytestmark = pytest.mark.usefixtures("one_thread")

VIEW = View(size=28, resize=28)
SMALL = {"flip": 0, "min_scale": 0.4, "batch_size": 32}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(resnet("resnet10", base_width=8, stem="small").state_dict(), file)
    return str(file)


def trained(weights: str, digits: Digits, protocol: Protocol, out: str | None = None, rows: int = 1000) -> list[Epoch]:
    """The epochs of a training on so many digits at most, scored on 500."""
    train = LabelledRows(digits.train, share=protocol.labels, most_rows=rows, seed=protocol.seed)
    test = LabelledRows(digits.test, most_rows=500)
    training = Classification(load(weights).backbone, VIEW, protocol, train, test, out)
    list(training.run())
    return training.history


@pytest.fixture(scope="module")
def learnt(untrained: str, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone fine-tuned on 2,000 digits: its folder."""
    out = str(tmp_path_factory.mktemp("learnt") / "out")
    changes = {**SMALL, "epochs": 3, "lr": 0.1, "head_lr": 0.1, "step_epochs": [2]}
    trained(untrained, digits, load_protocol("finetune", changes), out, rows=2000)
    return out


def test_a_finetuned_backbone_opens_and_is_worth_what_was_said(learnt: str, digits: Digits) -> None:
    epochs = [Epoch(**row) for row in json.loads(Path(learnt, RESULTS).read_text())["epochs"]]
    assert [row.epoch for row in epochs] == [1, 2, 3] and epochs[-1].top1 > 0.85
    assert epochs[-1].top1_stderr == pytest.approx(math.sqrt(epochs[-1].top1 * (1 - epochs[-1].top1) / 500))
    assert epochs[-1].mean_per_class == pytest.approx(epochs[-1].top1)  # 50 of each digit
    assert load(learnt).view == VIEW and not Path(learnt, "checkpoints").exists()
    head = torch.nn.Linear(64, 10)
    head.load_state_dict(load_file(f"{learnt}/{HEAD}"))
    backbone, hits, rows = load_backbone(learnt), 0, 0
    for batch in LabelledRows(digits.test, most_rows=500).test_batches(28, 28):
        with torch.no_grad():
            scores = head(backbone(normalise(batch.images, VIEW.mean, VIEW.std, torch.device("cpu"))))
        hits, rows = hits + int((scores.argmax(1).numpy() == batch.labels).sum()), rows + len(batch.labels)
    assert (rows, hits / rows) == (500, epochs[-1].top1)


def test_linear_figures_hold_over_seeds(learnt: str, digits: Digits) -> None:
    """The same seed gives the same figures; another one others, within the errors they state."""
    protocol = load_protocol("linear", {**SMALL, "epochs": 3})
    first, again, other = (
        trained(learnt, digits, protocol.model_copy(update={"seed": seed}), rows=500)[-1] for seed in (31, 31, 32)
    )
    assert first == again != other
    assert abs(first.top1 - other.top1) < 3 * math.hypot(first.top1_stderr, other.top1_stderr)
    assert min(first.top1, other.top1) > 0.85 and first.top5 > 0.95


def test_few_labels_do_worse_and_beat_chance(learnt: str, digits: Digits) -> None:
    """The published protocols' own settings, but for what digits need."""
    for name, least in (("semi-1", 0.5), ("semi-10", 0.8)):
        changes = {**SMALL, "batch_size": 16, "epochs": 4, "step_epochs": [3], "head_lr": 0.05}
        assert trained(learnt, digits, load_protocol(name, changes), rows=4000)[-1].top1 > least


def test_a_stopped_training_goes_on_to_the_same_end(untrained: str, digits: Digits, tmp_path: Path) -> None:
    protocol = load_protocol("semi-10", {**SMALL, "epochs": 4, "step_epochs": [2]})
    whole = trained(untrained, digits, protocol, str(tmp_path / "whole"))
    train, test = LabelledRows(digits.train, share=0.1, most_rows=1000, seed=31), LabelledRows(digits.test, most_rows=500)
    out = str(tmp_path / "stopped")

    def begin(settings: Protocol = protocol, weights: str = untrained) -> Classification:
        return Classification(load(weights).backbone, VIEW, settings, train, test, out)

    running = begin().run()
    next(running), next(running)
    running.close()
    assert not Path(out, RESULTS).exists()
    with pytest.raises(UserError, match="holds a training of other weights, data or settings; name another folder"):
        begin(protocol.model_copy(update={"lr": 0.5}))
    labels, train.labels = train.labels, train.labels[::-1].copy()
    with pytest.raises(UserError, match="other weights, data or settings"):
        begin()
    train.labels = labels
    resumed = begin()
    assert len(resumed.history) == 2
    assert len(list(resumed.run())) == 2 and resumed.history == whole
    for file in (TRUNK, HEAD):
        ours, theirs = load_file(f"{out}/{file}"), load_file(tmp_path / "whole" / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert begin().history == whole and not list(begin().run())  # done: nothing is trained again
    with pytest.raises(UserError, match="other weights"):
        begin(weights=str(tmp_path / "whole"))


class Dropping(torch.nn.Module):
    """A trunk with dropout."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk, self.dropout, self.num_features = trunk, torch.nn.Dropout(0.5), trunk.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.trunk(images))


def test_a_stopped_training_with_dropout_goes_on_to_the_same_end(untrained: str, digits: Digits, tmp_path: Path) -> None:
    protocol = load_protocol("finetune", {**SMALL, "epochs": 2, "step_epochs": [1], "lr": 0.05})
    train, test = LabelledRows(digits.train, most_rows=100, seed=31), LabelledRows(digits.test, most_rows=100)

    def begin(out: str) -> Classification:
        return Classification(Dropping(load(untrained).backbone), VIEW, protocol, train, test, str(tmp_path / out))

    whole = begin("whole")
    list(whole.run())
    running = begin("stopped").run()
    next(running)
    running.close()
    torch.manual_seed(77)
    resumed = begin("stopped")
    assert len(resumed.history) == 1 and len(list(resumed.run())) == 1 and resumed.history == whole.history
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_the_screen_tells_last_from_best(learnt: str, digits: Digits, tmp_path: Path) -> None:
    protocol = load_protocol("linear", {**SMALL, "epochs": 20, "labels": 0.1})
    out = str(tmp_path / "out")
    lines = list(run_protocol(learnt, protocol, digits.test, train=digits.train, quick=True, out=out, metric="mean-per-class"))
    assert lines[0] == "linear classifier on the frozen trunk, learning rate 0.3, 2 epochs of 400 training images"
    assert lines[1].startswith("quick: ") and [line.split()[1] for line in lines[2:4]] == ["1/2", "2/2"]
    assert lines[4] == f"on 1,000 test images ({digits.test})"
    assert lines[5].split()[:2] == ["last", "epoch"] and "mean per class 0." in lines[5] and "±" in lines[5]
    assert lines[6].split()[:2] == ["best", "epoch,"] and "chosen on these very images, as published" in lines[6]
    assert lines[7] == f"saved: {out}" and not Path(out, TRUNK).exists() and Path(out, HEAD).exists()
    again = list(run_protocol(learnt, protocol, digits.test, train=digits.train, quick=True, out=out))
    assert again[2] == "  2 of 2 epochs were done before" and again[-1] == lines[-1]


def test_mistakes(learnt: str, untrained: str, digits: Digits, tmp_path: Path) -> None:
    protocol = load_protocol("linear")
    config = small_config(digits.train, str(tmp_path), "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    for changes, said in (
        ({"out": str(tmp_path / "run")}, "is a run; give a folder of its own"),
        ({"metric": "top2"}, "--metric top2: not known"),
        ({"train": None}, "weights name no data"),
    ):
        with pytest.raises(UserError, match=said):
            list(run_protocol(untrained, protocol, digits.test, **{"train": digits.train, "size": 28, **changes}))


def test_what_others_left_in_out_stays(untrained: str, digits: Digits, tmp_path: Path) -> None:
    """Weights are not written over, and of `checkpoints/` nothing is removed that is not the training's own."""
    protocol = load_protocol("semi-10", {**SMALL, "epochs": 2, "step_epochs": [1]})
    export(untrained, str(tmp_path / "export"), "safetensors")
    mine = tmp_path / "mine" / "checkpoints" / "step-best"
    mine.mkdir(parents=True)
    for folder, found in (("export", TRUNK), ("mine", "checkpoints/step-best")):
        with pytest.raises(UserError, match=f"--out .*{folder}: holds a {found} that others left; give a folder of its own"):
            trained(untrained, digits, protocol, str(tmp_path / folder), rows=100)
    out = tmp_path / "out"
    train, test = LabelledRows(digits.train, most_rows=100), LabelledRows(digits.test, most_rows=100)
    running = Classification(load(untrained).backbone, VIEW, protocol, train, test, str(out)).run()
    next(running)
    (out / "checkpoints" / "step-best").mkdir()
    assert len(list((out / "checkpoints").iterdir())) == 2 and list(running)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-best"]


def test_class_names_must_agree(untrained: str, digits: Digits) -> None:
    train, test = LabelledRows(digits.train, most_rows=100), LabelledRows(digits.test, most_rows=100)
    test.shards.manifest.classes = list("abcdefghij")
    with pytest.raises(UserError, match=r"not the classes of .* \(number 0 is 'a', there '0'\); make both with the same"):
        Classification(load(untrained).backbone, VIEW, load_protocol("linear"), train, test)
    train.labels[:] = 4
    test.shards.manifest.classes = []
    with pytest.raises(UserError, match="at least two classes"):
        Classification(load(untrained).backbone, VIEW, load_protocol("linear"), train, test)


@pytest.mark.slow
def test_the_protocols_on_a_pretrained_run(digits: Digits, tmp_path: Path) -> None:
    """Pretrained without labels, the trunk beats an untrained one by far at 1 % and 10 % of them, and linearly."""
    from swav_ray.config import load_config

    settings = {"name": "run", "storage": str(tmp_path), "data.train": digits.train, "data.test": digits.test}
    train_here(load_config("demo-digits", {**settings, "epochs": 12, "warmup_epochs": 2, "probe.every_epochs": 0}))
    run = str(tmp_path / "run")
    torch.manual_seed(1)
    torch.save(load(run).untrained().state_dict(), tmp_path / "untrained.pth")
    for name, changes, gain in (
        ("linear", {"epochs": 20}, 0.1),
        ("semi-10", {"batch_size": 32}, 0.02),
        ("semi-1", {"batch_size": 16, "head_lr": 0.2}, 0.1),
    ):
        protocol = load_protocol(name, {"flip": 0, "min_scale": 0.4, **changes})
        ours, theirs = (trained(weights, digits, protocol, rows=4000)[-1] for weights in (run, str(tmp_path / "untrained.pth")))
        assert ours.top1 > theirs.top1 + gain, (name, ours, theirs)
