"""The schema of a pretraining run: strict keys, dotted overrides, one clear line for every mistake.

The method's settings stand at the top level under the field's names; everything else has a section. A configuration is
a YAML file or the name of a recipe shipped with the package; `--set key=value` goes on top.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swav_ray.errors import UserError, did_you_mean

# What PyYAML lets through from a value it cannot build (`2001-99-99`, `!!int x`) beside its own errors.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values are checked when set, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Backbone(Section):
    """The network whose features are wanted."""

    arch: str = Field(
        "resnet50", description="resnet10|18|34|50, or package.module:factory of any nn.Module with .num_features"
    )
    base_width: int = Field(64, ge=1, description="stem channels; 128 and 256 are the published w2 and w4")
    stem: Literal["imagenet", "small"] = Field("imagenet", description="small: 3x3 stride 1, no pool, for images up to 64 px")


class Augment(Section):
    """What happens to a crop after it is cut (SWAV_FACTS 1), in this order; 0 switches a step off."""

    rotation: float = Field(0.0, ge=0, le=180, description="degrees; uniform in +-, before the crop is cut")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0)
    saturation: float = Field(0.8, ge=0)
    hue: float = Field(0.2, ge=0, le=0.5)
    grey: float = Field(0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="pixels")
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)  # 0.228 is the published value


class Data(Section):
    """Where the images are and how they are shuffled."""

    train: str = Field("", description="folder or s3:// of shards; demo:digits prepares real digits")
    test: str = Field("", description="shards that only `probe`, `knn` and `confirm` ever read")
    window_groups: int = Field(16, ge=1, description="row groups shuffled together")
    block_rows: int = Field(16, ge=1, description="rows a worker gets at a time; workers <= global_batch_size / block_rows")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="share of unreadable images above which the run stops")
    crop_in: Literal["ray", "worker"] = Field(
        "ray", description="ray: tasks of Ray Data, on any node; worker: a thread of each training process"
    )
    log_ids: bool = Field(False, description="write each step's image ids into metrics.jsonl")


class Elastic(Section):
    """How many workers, and when their number changes; `--workers 4` or `--workers 1:8`."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    sizes: tuple[int, ...] = Field((), description="allowed worker counts, as [1, 2, 4, 8]; empty: all from min to max")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="null: 1 where the cluster has GPUs, else 0")
    resources: dict[str, float] = Field({}, description="custom resources of a worker, as {slot: 1}")
    accelerator_type: str | None = Field(None, description="as Ray names them: A100, H100, ...")
    patience_seconds: float = Field(2.0, ge=0, description="a new place must last so long before a worker is started there")
    cooldown_seconds: float = Field(30.0, ge=0, description="from one change of the group to the next growth")
    checkpoint_wait_seconds: float = Field(120.0, gt=0, description="longest wait for a checkpoint before a planned change")
    stuck_seconds: float = Field(300.0, gt=0, description="a rank that holds up a step for longer is ended")
    silent_seconds: float = Field(60.0, gt=0, description="a worker process that answers nothing for so long is ended")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"elastic.min {self.min} is above elastic.max {self.max}; swap them")
        if self.sizes and not any(self.min <= size <= self.max for size in self.sizes):
            raise ValueError(f"elastic.sizes {list(self.sizes)} has none from elastic.min {self.min} to elastic.max {self.max}")
        return self


class Checkpoints(Section):
    """How often state is saved, and how much of it is kept."""

    every_seconds: float = Field(60.0, gt=0, description="and at every end of an epoch")
    every_steps: int = Field(0, ge=0, description="0: by time only")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: int = Field(0, ge=0, description="epochs; the one at the end of every so many is kept for ever; 0: none")


class Probe(Section):
    """The frozen-feature linear probe on a held-out part of the training labels, during training."""

    every_epochs: int = Field(0, ge=0, description="0: only at the end")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images the probe is scored on")
    max_rows: int = Field(50_000, ge=10)
    resize: int = Field(0, ge=0, description="short side before the centre crop; 0: crop size * 256 / 224")


class Config(Section):
    """Everything a run depends on. Two runs with equal configurations on the same shards compute the same thing."""

    name: str = Field("", description="of the run; its folder under `storage`")
    storage: str = Field("runs", description="folder or s3:// that holds runs")
    seed: int = Field(31, ge=0)
    epochs: int = Field(100, ge=1)
    global_batch_size: int = Field(
        256, ge=2, description="rows a step over all workers; an epoch is cut into equal steps of at most so many"
    )

    backbone: Backbone = Backbone()
    hidden_dim: int = Field(2048, ge=0, description="of the projector; 0: one linear layer")
    feature_dim: int = Field(128, ge=2)
    num_prototypes: int = Field(3000, ge=2, description="K")
    prototype_init: Literal["random", "samples"] = "random"

    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, gt=0)
    sinkhorn_iterations: int = Field(3, ge=1)
    crops_for_assign: tuple[int, ...] = Field((0, 1), description="crops that get codes")
    queue_length: int = Field(0, ge=0, description="rows; rounded down to whole batches; 0: no queue")
    queue_start_epoch: int = Field(0, ge=0)
    freeze_prototypes_epochs: float = Field(1.0, ge=0)

    crop_sizes: tuple[int, ...] = (224, 96)
    crop_counts: tuple[int, ...] = (2, 6)
    crop_min_scales: tuple[float, ...] = (0.14, 0.05)
    crop_max_scales: tuple[float, ...] = (1.0, 0.14)
    augment: Augment = Augment()

    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    base_lr: float = Field(0.6, gt=0)
    final_lr: float = Field(0.0006, ge=0)
    start_warmup: float = Field(0.0, ge=0)
    warmup_epochs: int = Field(0, ge=0)
    weight_decay: float = Field(1e-6, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    prototypes_lr_scale: float = Field(1.0, gt=0, description="the prototypes' learning rate over everyone else's")

    precision: Literal["float32", "float64"] = Field("float32", description="of weights and activations")

    data: Data = Data()
    elastic: Elastic = Elastic()
    checkpoint: Checkpoints = Checkpoints()
    probe: Probe = Probe()

    @property
    def num_crops(self) -> int:
        return sum(self.crop_counts)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Combinations that cannot work, each with its mend."""
        groups = len(self.crop_sizes)
        for key in ("crop_counts", "crop_min_scales", "crop_max_scales"):
            if len(getattr(self, key)) != groups:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries, crop_sizes {groups}; give one for each size")
        for size, count, low, high in zip(
            self.crop_sizes, self.crop_counts, self.crop_min_scales, self.crop_max_scales, strict=True
        ):
            if size < 8 or count < 1:
                raise ValueError(
                    f"crop_sizes {size} with crop_counts {count}: a crop is at least 8 px and counted at least once"
                )
            if not 0 < low <= high <= 1:
                raise ValueError(f"crop scales {low} to {high}: need 0 < crop_min_scales <= crop_max_scales <= 1")
        if len(set(self.crop_sizes)) != groups:
            raise ValueError(f"crop_sizes {list(self.crop_sizes)} repeats a size; join the two entries")
        if self.num_crops < 2:
            raise ValueError("crop_counts must sum to at least 2: a crop predicts the codes of another")
        if not self.crops_for_assign or len(set(self.crops_for_assign)) != len(self.crops_for_assign):
            raise ValueError(f"crops_for_assign {list(self.crops_for_assign)} must name each crop once, and at least one")
        if not all(0 <= crop < self.num_crops for crop in self.crops_for_assign):
            raise ValueError(
                f"crops_for_assign {list(self.crops_for_assign)} names a crop that is not there: "
                f"crop_counts {list(self.crop_counts)} make crops 0 to {self.num_crops - 1}"
            )
        if len({self._size_of(crop) for crop in self.crops_for_assign}) > 1 and self.queue_length:
            raise ValueError("a queue needs all crops_for_assign of one size; set queue_length 0 or assign one size only")
        if 0 < self.queue_length < self.global_batch_size:
            raise ValueError(
                f"queue_length {self.queue_length} is shorter than one batch of {self.global_batch_size}; set 0 or a multiple"
            )
        in_sight = self.global_batch_size + self.queue_length
        if self.num_prototypes > in_sight:
            raise ValueError(
                f"num_prototypes {self.num_prototypes} is more than the {in_sight} rows in sight (global_batch_size "
                f"{self.global_batch_size} + queue_length {self.queue_length}), so some would always stay empty; "
                "lower it or lengthen the queue"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.data.block_rows > self.global_batch_size:
            raise ValueError(
                f"data.block_rows {self.data.block_rows} is more than global_batch_size {self.global_batch_size}; lower it"
            )
        blocks = -(-self.global_batch_size // self.data.block_rows)
        if self.elastic.max > blocks:
            raise ValueError(
                f"{self.elastic.max} workers cannot share {blocks} blocks a step (global_batch_size {self.global_batch_size} / "
                f"data.block_rows {self.data.block_rows}); lower data.block_rows or the workers"
            )
        low, high = self.augment.blur_sigma
        if not 0 < low <= high:
            raise ValueError(f"augment.blur_sigma {low} to {high}: need 0 < low <= high")
        return self

    def _size_of(self, crop: int) -> int:
        for size, count in zip(self.crop_sizes, self.crop_counts, strict=True):
            if crop < count:
                return size
            crop -= count
        raise IndexError(crop)

    def hash(self) -> str:
        """Names what the run computes: everything but its name, place, and how many workers do it."""
        content = self.model_dump(mode="json", exclude={"name", "storage", "elastic", "checkpoint"})
        content["data"].pop("crop_in")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the schema with its field."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field
    return keys


def recipe_names() -> list[str]:
    folder = importlib.resources.files("swav_ray.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        content = yaml.safe_load(text)
    except NOT_YAML as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, found {type(content).__name__}")
    return content


def recipe_values(recipe: str) -> tuple[dict[str, Any], str]:
    """The raw values of a recipe's name or a YAML path, and what to call their source in messages."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        return read_yaml(Path(recipe)), recipe
    if recipe not in recipe_names():
        near = did_you_mean(recipe, recipe_names())
        raise UserError(f"no recipe {recipe!r}{near}; recipes are {', '.join(recipe_names())}; a file ends in .yaml")
    text = importlib.resources.files("swav_ray.recipes").joinpath(f"{recipe}.yaml").read_text()
    return yaml.safe_load(text), f"recipe {recipe}"


def set_dotted(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put ``value`` at dotted ``key``, in place.

    Raises:
        UserError: the schema has no such key.
    """
    if key not in known_keys():
        raise UserError(f"{source}: unknown key {key!r}{did_you_mean(key, known_keys())}")
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{source}: {section!r} must be a section, found {inner!r}")
        values = inner
    values[leaf] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``, the value read as YAML (``[2, 6]`` is a list)."""
    key, equals, raw = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write key=value")
    try:
        value = yaml.safe_load(raw)
    except NOT_YAML:
        raise UserError(f"--set {text}: the value is not valid YAML") from None
    return key.strip(), value


def build_config(values: dict[str, Any], source: str) -> Config:
    """A checked configuration from raw values.

    Raises:
        UserError: the first mistake in one line: source, key, value, nearest known key or the mend.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, source, known_keys())) from None


def explain(error: ValidationError, source: str, keys: dict[str, Any]) -> str:
    """The first mistake of a validation error in one line."""
    mistakes = error.errors()
    # A misspelt key is often also a missing one; its own name says more.
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {path!r}{did_you_mean(path, keys)}{more}"
    if first["type"] == "missing":
        return f"{source}: {path} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not path or message.startswith(path):
        return f"{source}: {message}{more}"
    if first["type"] == "value_error":
        return f"{source}: {path}: {message}{more}"
    return f"{source}: {path} = {first['input']!r}: {message[0].lower()}{message[1:]}{more}"


def load_config(recipe: str, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration of a recipe's name or a YAML file, with dotted overrides on top."""
    values, source = recipe_values(recipe)
    for key, value in (overrides or {}).items():
        set_dotted(values, key, value, "--set")
    if overrides:
        source = f"{source} with --set"
    return build_config(values, source)
