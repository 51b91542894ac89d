"""Whatever holds a backbone (a run, an export, somebody else's file of weights) to the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveFloat, ValidationError
from torch import nn

from swav_ray.config import Config, build_config
from swav_ray.config_sections import Augment, Section
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError
from swav_ray.swav.model import SwAV
from swav_ray.swav.resnet import ResNet
from swav_ray.swav.weights import read_backbone, reason_of
from swav_ray.train.build import build_model, evaluation_sizes
from swav_ray.train.checkpoint import STATE, Checkpoints

BUNDLED = "backbone.safetensors"  # beside the configuration of its run, where a shared run was unpacked
FILES = ("model.safetensors", "model.pth", "pytorch_model.bin", STATE)  # what is looked for in a folder that is no run
VIEW = "swav_ray.view"  # the note in a safetensors file by which it says how it wants its images
Pixels = Annotated[int, Field(ge=8, le=4096)]


class View(Section):
    """How a backbone wants an image: short side `resize` px, the centre cut to `size`, values in [0, 1] normalised."""

    size: Pixels = 224
    resize: Pixels = 256
    mean: tuple[float, float, float] = Augment().mean
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Augment().std

    @classmethod
    def of(cls, config: Config) -> View:
        """What a run's probe shows to its backbone."""
        size, resize = evaluation_sizes(config)
        return cls(size=size, resize=resize, mean=config.augment.mean, std=config.augment.std)

    def config(self, train: str, test: str) -> Config:
        """A configuration of which only the data and the evaluation view mean something, for weights without a run."""
        values = {
            "data": {"train": train, "test": test},
            "crop_sizes": [self.size],
            "crop_counts": [2],
            "crop_min_scales": [0.14],
            "crop_max_scales": [1.0],
            "augment": {"mean": self.mean, "std": self.std},
            "probe": {"resize": self.resize},
            "num_prototypes": 2,
        }
        return build_config(values, "--train")


@dataclass(frozen=True)
class Loaded:
    """A backbone in eval mode, how it wants its images, and how to make one that has learnt nothing.

    `run` is the configuration of a run of ours and `manifest` that of its checkpoint; None for anything else.
    """

    backbone: nn.Module
    run: Config | None
    view: View
    untrained: Callable[[], nn.Module]
    manifest: dict[str, Any] | None = None


def load(uri: str) -> Loaded:
    """The backbone of a run (its folder or `s3://` address), of an export, or of a file of weights. Nothing is executed.

    Raises:
        UserError: no such thing, or one that holds no backbone this package knows.
    """
    place = Storage(uri)
    if place.exists("config.yaml") and place.exists(BUNDLED):
        bundled, _ = read_backbone(place.read(BUNDLED), f"{uri}/{BUNDLED}")
        return Loaded(bundled, None, View.of(read_config(uri)), lambda: ResNet(*bundled.design))
    if place.exists("config.yaml"):
        config, model, manifest = load_checkpoint(uri)
        return Loaded(model.backbone.eval(), config, View.of(config), lambda: build_model(config).backbone, manifest)
    backbone, notes = read_backbone(_bytes_of(place, uri), uri)
    return Loaded(backbone, None, _noted_view(notes, uri), lambda: ResNet(*backbone.design))


def load_run(uri: str) -> tuple[Config, nn.Module]:
    """A run's configuration and its trained backbone, as it was left (in training mode); see :func:`load_model`."""
    config, model = load_model(uri)
    return config, model.backbone


def load_model(uri: str) -> tuple[Config, SwAV]:
    """A run's configuration and its trained model: backbone, projector and prototypes, as they were left."""
    return load_checkpoint(uri)[:2]


def load_checkpoint(uri: str) -> tuple[Config, SwAV, dict[str, Any]]:
    """As :func:`load_model`, and the manifest of the checkpoint that it is.

    Raises:
        UserError: no run there, or none with a complete checkpoint.
    """
    config = read_config(uri)
    try:
        saved = Checkpoints(Storage(uri) / "checkpoints").latest()
    except OSError:
        raise
    except Exception as error:  # a whole checkpoint that is not weights alone was not written by a run
        raise UserError(f"{uri}/checkpoints: {reason_of(error)}") from None
    if saved is None:
        raise UserError(f"{uri}: has no complete checkpoint yet; train it with swav-ray pretrain")
    model = build_model(config)
    try:
        model.load_state_dict(saved[0]["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{uri}: its checkpoint does not fit its config.yaml: {reason}") from None
    return config, model, saved[1]


def read_config(uri: str) -> Config:
    """The configuration of a run.

    Raises:
        UserError: no run there, or not one of this version.
    """
    try:
        return Config.model_validate(yaml.safe_load(Storage(uri).read("config.yaml")))
    except FileNotFoundError:
        raise UserError(f"{uri}: not a run (it has no config.yaml)") from None
    except (ValueError, yaml.YAMLError):
        raise UserError(f"{uri}/config.yaml: not a configuration of this version") from None


def _noted_view(notes: dict[str, str], uri: str) -> View:
    """The view a safetensors file of ours asks for; the published one for all others."""
    try:
        return View.model_validate_json(notes.get(VIEW, "{}"))
    except ValidationError:
        raise UserError(f"{uri}: its note {VIEW} is not one of ours; give the size of its images with --size") from None


def _bytes_of(place: Storage, uri: str) -> bytes:
    """Of the file, or of the one in the folder that holds weights."""
    folder, _, name = place.uri.rpartition("/")
    try:
        for file in FILES:
            if place.exists(file):
                return place.read(file)
        return Storage(folder or "/").read(name)
    except StorageAwayError:
        raise
    except FileNotFoundError:
        raise UserError(f"{uri}: not a run (it has no config.yaml), and no file of weights is there") from None
    except IsADirectoryError:
        raise UserError(f"{uri}: not a run (it has no config.yaml), nor a folder with one of {', '.join(FILES)}") from None
    except OSError as error:
        raise UserError(f"{uri}: cannot be read: {error.strerror or error}") from None
