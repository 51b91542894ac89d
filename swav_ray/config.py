"""The schema of a pretraining run: strict keys, dotted overrides, one clear line for every mistake.

The method's settings stand at the top level under the field's names; everything else has a section. A configuration is
a YAML file or the name of a recipe shipped with the package; `--set key=value` goes on top.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from swav_ray.config_sections import Augment, Backbone, Checkpoints, Compute, Data, Elastic, Probe, Section
from swav_ray.errors import Place, UserError, did_you_mean, explain
from swav_ray.yaml_files import NOT_YAML, Lines, dump, parse, read_mapping


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

    precision: Literal["float32", "float64", "bf16-mixed"] = Field(
        "float32",
        description="of weights and activations; bf16-mixed: weights, statistics, scores, codes and loss in float32, the rest "
        "of the network in bfloat16",
    )
    batch_norm_workers: int = Field(
        0,
        ge=0,
        description="workers whose rows share batch statistics; 0: all, and so the same curve on any number of workers; the "
        "published 64-GPU runs took 8. Needs a fixed number of workers that it divides",
    )
    compute: Compute = Compute()

    data: Data = Data()
    elastic: Elastic = Elastic()
    checkpoint: Checkpoints = Checkpoints()
    probe: Probe = Probe()
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="where figures go too, beside metrics.jsonl and TensorBoard: wandb, mlflow"
    )

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
        batch = self.batch_on(self.elastic.min)
        in_sight = batch + self.queue_length
        if self.num_prototypes > in_sight:
            scaled = f", scaled to {batch} on elastic.min {self.elastic.min}" if batch < self.global_batch_size else ""
            raise ValueError(
                f"num_prototypes {self.num_prototypes} is more than the {in_sight} rows in sight (global_batch_size "
                f"{self.global_batch_size}{scaled} + queue_length {self.queue_length}), so some would always stay empty; "
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
        if self.batch_norm_workers and (self.elastic.min < self.elastic.max or self.elastic.max % self.batch_norm_workers):
            raise ValueError(
                f"batch_norm_workers {self.batch_norm_workers} needs a fixed number of workers that it divides, not "
                f"{self.elastic.min} to {self.elastic.max}: the curve would follow them; set 0, or --workers to a multiple"
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

    def batch_on(self, workers: int) -> int:
        """Rows of a step on so many workers: always the same, or their share (2 at least) where it scales with them."""
        return max(2, round(self.global_batch_size * self.share_of(workers)))

    def share_of(self, workers: int) -> float:
        """What batch and learning rate are multiplied by on so many workers; 1 but for `elastic.scale_lr_with_batch`."""
        return workers / self.elastic.max if self.elastic.scale_lr_with_batch else 1.0

    def computed(self) -> dict[str, Any]:
        """What decides what the run computes: everything but its name, place, how and by how many it is done, and who is told.

        Where the batch follows the workers, so does the size it is a share of. `elastic.max_rows_per_device` does not: a run
        must be able to go on under another cap, on devices with less memory; what a cap changes stands in `train/step.py`.
        """
        content = self.model_dump(mode="json", exclude={"name", "storage", "elastic", "compute", "checkpoint", "trackers"})
        for where_it_is_done in ("crop_in", "bridge_seconds", "backend"):
            content["data"].pop(where_it_is_done)
        if self.elastic.scale_lr_with_batch:
            content["elastic"] = self.elastic.model_dump(mode="json", include={"scale_lr_with_batch", "max"})
        return content

    def hash(self) -> str:
        """Names what the run computes, :meth:`computed`."""
        return hashlib.sha256(json.dumps(self.computed(), sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return dump(self.model_dump(mode="json"))


@functools.cache
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


def read_recipe(recipe: str) -> tuple[dict[str, Any], Lines]:
    """The raw values of a recipe's name or a YAML path, and where they stand, for messages."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        return read_mapping(Path(recipe))
    if recipe not in recipe_names():
        near = did_you_mean(recipe, recipe_names())
        raise UserError(f"no recipe {recipe!r}{near}; recipes are {', '.join(recipe_names())}; a file ends in .yaml")
    text = importlib.resources.files("swav_ray.recipes").joinpath(f"{recipe}.yaml").read_text()
    return parse(text), Lines(f"recipe {recipe}")


def recipe_values(recipe: str) -> tuple[dict[str, Any], str]:
    """The raw values of a recipe's name or a YAML path, and what to call their source in messages."""
    values, lines = read_recipe(recipe)
    return values, lines.file


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
        value = parse(raw)
    except NOT_YAML:
        raise UserError(f"--set {text}: the value is not valid YAML") from None
    return key.strip(), value


def build_config(values: dict[str, Any], source: Place) -> Config:
    """A checked configuration from raw values.

    Raises:
        UserError: the first mistake in one line: source, key, value, nearest known key or the mend.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, source, known_keys())) from None


def load_config(recipe: str, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration of a recipe's name or a YAML file, with dotted overrides on top."""
    values, lines = read_recipe(recipe)
    overrides = overrides or {}
    for key, value in overrides.items():
        set_dotted(values, key, value, "--set")

    def where(path: tuple[Any, ...]) -> str:
        keys = [".".join(map(str, path[:length])) for length in range(1, len(path) + 1)]
        if any(key in overrides for key in keys):
            return "--set"
        within = any(not keys or key.startswith(f"{keys[-1]}.") for key in overrides)
        return lines.place(path) + (" with --set" if within else "")

    return build_config(values, where)


def config_schema_text() -> str:
    """JSON schema of a configuration, for editors; ``recipes/config.schema.json`` holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
