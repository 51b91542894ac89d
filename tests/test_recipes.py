"""The recipes that are shipped: all load, and the published ones hold the published numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from swav_ray.config import Config, build_config, known_keys, load_config, recipe_names, recipe_values
from swav_ray.yaml_files import read_yaml


class Published(NamedTuple):
    """A script of the authors."""

    epochs: int
    batch: int
    crops: tuple[tuple[int, int], ...]  # (count, size)
    scales: tuple[tuple[float, float], ...]
    base_lr: float
    final_lr: float
    warmup: tuple[int, float]  # (epochs, learning rate at the start)
    queue: tuple[int, int]  # (rows, first epoch)
    freeze_iterations: int
    hidden_dim: int = 2048
    base_width: int = 64


LARGE, SMALL = (0.14, 1.0), (0.05, 0.14)
EIGHT, SIX = ((2, 224), (6, 96)), ((2, 224), (4, 96))
# What all the scripts share.
ALL = {
    "num_prototypes": 3000,
    "feature_dim": 128,
    "temperature": 0.1,
    "epsilon": 0.05,
    "sinkhorn_iterations": 3,
    "weight_decay": 1e-6,
    "crops_for_assign": (0, 1),
    "momentum": 0.9,
    "optimizer": "lars",
    "prototype_init": "random",
    "prototypes_lr_scale": 1.0,
}
PUBLISHED = {
    "100ep": Published(100, 4096, EIGHT, (LARGE, SMALL), 4.8, 0.0048, (10, 0.3), (0, 0), 313),
    "200ep": Published(200, 4096, EIGHT, (LARGE, SMALL), 4.8, 0.0048, (10, 0.3), (0, 0), 313),
    "400ep": Published(400, 4096, EIGHT, (LARGE, SMALL), 4.8, 0.0048, (10, 0.3), (0, 0), 313),
    "800ep": Published(800, 4096, EIGHT, (LARGE, SMALL), 4.8, 0.0048, (10, 0.3), (0, 0), 313),
    "200ep-bs256": Published(200, 256, EIGHT, (LARGE, SMALL), 0.6, 0.0006, (0, 0.0), (3840, 15), 5005),
    "400ep-bs256": Published(400, 256, EIGHT, (LARGE, SMALL), 0.6, 0.0006, (0, 0.0), (3840, 15), 5005),
    "400ep-2x224": Published(400, 4096, ((2, 224),), ((0.08, 1.0),), 4.8, 0.0048, (10, 0.3), (0, 0), 313),
    "400ep-rn50w2": Published(400, 4096, SIX, (LARGE, SMALL), 4.8, 0.0048, (10, 0.3), (0, 0), 313, 8192, 128),
    "400ep-rn50w4": Published(400, 2560, SIX, ((0.08, 1.0), (0.08, 0.14)), 4.8, 0.0048, (10, 0.3), (2560, 0), 313, 8192, 256),
}
IMAGENET_ROWS = 1_281_167


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_holds_the_published_numbers(name: str) -> None:
    config, script = load_config(f"imagenet-{name}"), PUBLISHED[name]
    assert {key: getattr(config, key) for key in ALL} == ALL
    assert (config.epochs, config.global_batch_size) == (script.epochs, script.batch)
    assert tuple(zip(config.crop_counts, config.crop_sizes, strict=True)) == script.crops
    assert tuple(zip(config.crop_min_scales, config.crop_max_scales, strict=True)) == script.scales
    assert (config.base_lr, config.final_lr) == (script.base_lr, script.final_lr)
    assert (config.warmup_epochs, config.start_warmup) == script.warmup
    assert (config.queue_length, config.queue_start_epoch) == script.queue
    assert (config.hidden_dim, config.feature_dim) == (script.hidden_dim, 128)
    assert (config.backbone.arch, config.backbone.base_width, config.backbone.stem) == (
        "resnet50",
        script.base_width,
        "imagenet",
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_prototypes_are_frozen_for_the_published_number_of_iterations(name: str) -> None:
    config = load_config(f"imagenet-{name}")
    steps_per_epoch = math.ceil(IMAGENET_ROWS / config.global_batch_size)
    frozen = math.ceil(config.freeze_prototypes_epochs * steps_per_epoch)  # steps below this number
    assert frozen == PUBLISHED[name].freeze_iterations


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_augments_as_published(name: str) -> None:
    augment = load_config(f"imagenet-{name}").augment
    assert (augment.flip, augment.jitter, augment.grey, augment.blur) == (0.5, 0.8, 0.2, 0.5)
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.8, 0.8, 0.8, 0.2)
    assert augment.blur_sigma == (0.1, 2.0)
    assert (augment.mean, augment.std) == ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
    assert augment.rotation == 0


def test_the_list_of_recipes_is_the_table_and_the_demo() -> None:
    assert recipe_names() == sorted(["demo-digits", *(f"imagenet-{name}" for name in PUBLISHED)])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_names_only_what_the_schema_has(name: str) -> None:
    values, source = recipe_values(name)
    assert source == f"recipe {name}"
    assert load_config(name) == build_config(values, source)
    dotted = {
        key if not isinstance(value, dict) else f"{key}.{inner}"
        for key, value in values.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert dotted <= set(known_keys())


def test_the_demo_is_for_small_grey_pictures_and_brings_its_own_data() -> None:
    config = load_config("demo-digits")
    assert config.data.train == "demo:digits"
    assert config.augment.flip == 0  # a flipped 2 is no digit
    assert config.augment.hue == config.augment.saturation == config.augment.grey == 0
    assert config.crop_sizes[0] == config.probe.resize == 28
    assert config.queue_length % config.global_batch_size == 0  # whole batches, so all of it is used
    assert config.backbone.stem == "small"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_written_out_whole_is_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "written.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(str(path))
    assert again == config
    assert again.hash() == config.hash()
    complete: dict[str, Any] = read_yaml(path)
    assert set(complete) == set(Config.model_fields)  # nothing is left to a later version's defaults
