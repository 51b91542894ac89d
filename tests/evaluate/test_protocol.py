"""The published recipes hold the published numbers; a mistake in one's own is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swav_ray.errors import UserError
from swav_ray.evaluate.protocol import Protocol, load_protocol, nearest_protocol, protocol_names


def test_the_published_numbers() -> None:
    """eval_linear.py and eval_semisup.py of the reference."""
    shared = {"batch_size": 256, "momentum": 0.9, "min_scale": 0.08, "flip": 0.5}
    linear = {"frozen": "all", "epochs": 100, "head_lr": 0.3, "lr": 0, "weight_decay": 1e-6, "schedule": "cosine"}
    semi = {"frozen": "none", "epochs": 20, "weight_decay": 0, "schedule": "step", "step_epochs": (12, 16), "step_factor": 0.2}
    for name, numbers in {
        "linear": linear | {"labels": 1.0, "head_std": 0.01},
        "semi-1": semi | {"labels": 0.01, "lr": 0.02, "head_lr": 5.0, "head_std": None},
        "semi-10": semi | {"labels": 0.1, "lr": 0.01, "head_lr": 0.2, "head_std": None},
    }.items():
        assert load_protocol(name).model_dump(include=set(numbers) | set(shared)) == numbers | shared
    assert protocol_names() == ["finetune", "linear", "semi-1", "semi-10"]
    assert [nearest_protocol(share) for share in (0.01, 0.1, 0.05, 1.0)] == ["semi-1", "semi-10", "semi-10", "finetune"]


@pytest.mark.parametrize("name", ["linear", "semi-1"])
def test_the_rates_are_pytorchs(name: str) -> None:
    protocol = load_protocol(name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=protocol.head_lr)
    if name == "linear":
        theirs: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, protocol.epochs)
    else:
        theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 16], gamma=0.2)
    for epoch in range(protocol.epochs):
        assert protocol.head_lr * protocol.rate(epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_quick_is_a_tenth() -> None:
    assert load_protocol("linear").quick().epochs == 10
    semi = load_protocol("semi-10").quick()
    assert (semi.epochs, semi.step_epochs) == (2, (1, 2)) and semi.rate(1) == 0.2
    assert Protocol(frozen="all", epochs=1).quick().epochs == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "{file}:1: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("lr: 0.1\nepochs: 0", "{file}:2: epochs = 0: input should be greater than or equal to 1"),
        ("lr: 0.1\nfrozen: layer9", "{file}:2: frozen = 'layer9': input should be 'none', 'layer1', "),
        ("lr: 0.1\nlabels: 1.5", "{file}:2: labels = 1.5: input should be less than or equal to 1"),
        ("frozen: all\nlr: 0.1", "{file}: lr 0.1 with frozen all: lr is 0 where all is frozen, and above it elsewhere"),
        ("frozen: none", "{file}: lr 0 with frozen none: lr is 0 where all is frozen"),
        ("lr: 0.1\nstep_epochs: [3]", "{file}: step_epochs [3] goes with schedule step"),
        ("lr: 0.1\nschedule: step\nstep_epochs: [3, 2]", "{file}: step_epochs [3, 2] must rise, from 1 on"),
        ("[1]", "{file}: must hold keys and values"),
    ],
)
def test_a_mistake_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_protocol(str(file))
    assert said.format(file=file) in str(error.value)


def test_settings_on_top() -> None:
    assert load_protocol("semi-1", {"epochs": 3, "flip": 0}).epochs == 3
    for overrides, said in (
        ({"epochs": 0}, "--set: epochs = 0: "),
        ({"epoch": 3}, "--set: unknown key 'epoch'"),
        ({"lr": 0}, "protocol semi-1 with --set: lr 0 with frozen none"),
    ):
        with pytest.raises(UserError, match=said):
            load_protocol("semi-1", overrides)
    with pytest.raises(UserError, match="no protocol 'semi-2'"):
        load_protocol("semi-2")
