"""How a classifier is trained on a backbone: the published recipes by name (SWAV_FACTS 8), or a YAML file of one's own."""

from __future__ import annotations

import importlib.resources
import math
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from swav_ray.config_sections import Section
from swav_ray.errors import UserError, did_you_mean, explain
from swav_ray.yaml_files import Lines, parse, read_mapping

Frozen = Literal["none", "layer1", "layer2", "layer3", "layer4", "all"]
_S = TypeVar("_S", bound=Section)


class Protocol(Section):
    """Supervised training of a linear classifier, and of as much of the trunk below it as is not frozen."""

    frozen: Frozen = Field("none", description="the trunk up to this layer keeps its weights and running statistics")
    labels: float = Field(1.0, gt=0, le=1, description="share of the labelled training images, of every class alike")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(256, ge=2)
    lr: float = Field(0.0, ge=0, description="of the trunk")
    head_lr: float = Field(0.2, gt=0, description="of the classifier")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "step"] = Field("cosine", description="of both rates, by epoch")
    step_epochs: tuple[int, ...] = Field((), description="schedule step: after so many epochs the rates are multiplied")
    step_factor: float = Field(0.2, gt=0, lt=1)
    head_std: float | None = Field(None, gt=0, description="of the classifier's first weights, bias 0; null: PyTorch's own")
    min_scale: float = Field(0.08, gt=0, le=1, description="of the random resized crops, up to the whole image")
    flip: float = Field(0.5, ge=0, le=1)
    seed: int = Field(31, ge=0, description="of the classifier's first weights, the order of the images, crops and subset")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.schedule == "cosine" and self.step_epochs:
            raise ValueError(f"step_epochs {list(self.step_epochs)} goes with schedule step; leave it out or set that")
        if list(self.step_epochs) != sorted(set(self.step_epochs)) or any(epoch < 1 for epoch in self.step_epochs):
            raise ValueError(f"step_epochs {list(self.step_epochs)} must rise, from 1 on")
        if (self.frozen == "all") != (self.lr == 0):
            raise ValueError(f"lr {self.lr:g} with frozen {self.frozen}: lr is 0 where all is frozen, and above it elsewhere")
        return self

    def rate(self, epoch: int) -> float:
        """What both learning rates are multiplied by in an epoch, counted from 0; the same all through it."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return math.prod(self.step_factor for start in self.step_epochs if epoch >= start)

    def quick(self) -> Protocol:
        """A tenth of the epochs, the steps of the rate moved with them: to see that it works, not how well."""
        epochs = max(2, round(self.epochs / 10))
        steps = sorted({max(1, round(epoch * epochs / self.epochs)) for epoch in self.step_epochs})
        return self.model_copy(update={"epochs": min(epochs, self.epochs), "step_epochs": tuple(steps)})


def protocol_names(folder: str = "") -> list[str]:
    """Of `protocols/` or of a folder in it."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped(folder).iterdir() if entry.name.endswith(".yaml"))


def _shipped(folder: str) -> Traversable:
    return importlib.resources.files("swav_ray.evaluate").joinpath("protocols", *([folder] if folder else []))


def nearest_protocol(labels: float) -> str:
    """The name of the fine-tuning whose share of the labels is the nearest by order of magnitude."""
    return "semi-1" if labels < 0.03 else "semi-10" if labels < 0.3 else "finetune"


def load_protocol(name: str, overrides: dict[str, Any] | None = None) -> Protocol:
    """The classifier's protocol of a name or a YAML file, with settings on top; raises as :func:`load_section`."""
    return load_section(Protocol, name, overrides)


def load_section(kind: type[_S], name: str, overrides: dict[str, Any] | None = None, *, folder: str = "") -> _S:
    """The section ``kind`` of a shipped YAML's name (in a ``folder`` of `protocols/`) or of a YAML file, with settings on top.

    Raises:
        UserError: no such name or file, or the first mistake in it: file, line, key, value.
    """
    overrides = overrides or {}
    if name.endswith((".yaml", ".yml")) or "/" in name:
        values, lines = read_mapping(Path(name))
    elif name in (known := protocol_names(folder)):
        values, lines = parse(_shipped(folder).joinpath(f"{name}.yaml").read_text()), Lines(f"protocol {name}")
    else:
        of = f" of {folder}" if folder else ""
        raise UserError(
            f"no protocol {name!r}{of}{did_you_mean(name, known)}; known are {', '.join(known)}; a file ends in .yaml"
        )

    def where(path: tuple[Any, ...]) -> str:
        if path and path[0] in overrides:
            return "--set"
        return lines.place(path) + (" with --set" if overrides and not path else "")

    try:
        return kind.model_validate({**values, **overrides})
    except ValidationError as error:
        raise UserError(explain(error, where, kind.model_fields)) from None
