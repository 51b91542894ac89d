"""The schema: every mistake is one clear line, every setting that matters is in the hash, nothing is lost in YAML."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_ray.config import (
    Config,
    build_config,
    known_keys,
    load_config,
    parse_assignment,
    recipe_names,
    recipe_values,
    set_dotted,
)
from swav_ray.errors import UserError, did_you_mean
from swav_ray.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
RECIPE = str(Path(__file__).with_name("recipe.yaml"))
KEYS = sorted(known_keys())
# What a run computes depends on none of these: its name, its place, who does it, how often it is saved, who is told.
NOT_IN_HASH = {"name", "storage", "trackers", "data.crop_in", "data.backend", "data.bridge_seconds"}
NOT_IN_HASH |= {key for key in KEYS if key.startswith(("elastic.", "checkpoint.", "compute."))}
NOT_IN_HASH -= {"elastic.scale_lr_with_batch"}  # who does it then decides what it computes


def line_of(function: Any, *args: Any) -> str:
    """The one line of the UserError that ``function`` must raise."""
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert message.strip() and len(message.splitlines()) == 1, message
    return message


def with_settings(**dotted: Any) -> Config:
    """The small recipe with settings; ``__`` stands for a dot."""
    return load_config(RECIPE, {key.replace("__", "."): value for key, value in dotted.items()})


def value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


# --- one line for each mistake


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_prototype", "num_prototypes"),
        ("temprature", "temperature"),
        ("epoch", "epochs"),
        ("augment.blurr", "augment.blur"),
        ("data.trian", "data.train"),
        ("elastic.maximum", "elastic.max"),
        ("backbone.width", "backbone.base_width"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key: str, nearest: str, tmp_path: Path) -> None:
    assert f"unknown key {key!r} (did you mean {nearest!r}?)" in line_of(load_config, RECIPE, {key: 1})
    *sections, leaf = key.split(".")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{sections[0]}: {{{leaf}: 1}}" if sections else f"{leaf}: 1")
    line = line_of(load_config, str(path))
    assert line.startswith(f"{path}:1: ") and f"unknown key {key!r} (did you mean {nearest!r}?)" in line


def test_a_key_like_no_other_is_named_without_a_guess() -> None:
    assert line_of(load_config, RECIPE, {"zzzzzz": 1}) == "--set: unknown key 'zzzzzz'"
    assert did_you_mean("zzzzzz", KEYS) == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", "many", "valid integer"),
        ("epochs", 1.5, "valid integer"),
        ("epochs", None, "valid integer"),
        ("epochs", [3], "valid integer"),
        ("temperature", "warm", "valid number"),
        ("optimizer", "larss", "'lars', 'sgd' or 'adamw'"),
        ("prototype_init", "zeros", "'random' or 'samples'"),
        ("backbone.stem", "tiny", "'imagenet' or 'small'"),
        ("data.crop_in", "cloud", "'ray' or 'worker'"),
        ("data.train", 5, "valid string"),
        ("data.log_ids", "perhaps", "valid boolean"),
        ("crop_sizes", 224, "valid tuple"),
        ("augment.blur_sigma", [0.1, 1, 2], "at most 2 items"),
        # out of range
        ("epochs", 0, "greater than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("global_batch_size", 1, "greater than or equal to 2"),
        ("num_prototypes", 1, "greater than or equal to 2"),
        ("feature_dim", 1, "greater than or equal to 2"),
        ("temperature", 0, "greater than 0"),
        ("epsilon", -0.05, "greater than 0"),
        ("epsilon", float("nan"), "finite number"),
        ("base_lr", float("inf"), "finite number"),
        ("sinkhorn_iterations", 0, "greater than or equal to 1"),
        ("momentum", 1, "less than 1"),
        ("prototypes_lr_scale", 0, "greater than 0"),
        ("augment.flip", 1.1, "less than or equal to 1"),
        ("augment.hue", 0.6, "less than or equal to 0.5"),
        ("augment.rotation", 181, "less than or equal to 180"),
        ("probe.holdout", 1, "less than 1"),
        ("probe.holdout", 0, "greater than 0"),
        ("checkpoint.keep_last", 0, "greater than or equal to 1"),
        ("data.max_bad_fraction", 2, "less than or equal to 1"),
        ("elastic.min", 0, "greater than or equal to 1"),
        ("elastic.max_rows_per_device", -1, "greater than or equal to 0"),
        ("elastic.scale_lr_with_batch", "linear", "valid boolean"),
    ],
)
def test_a_wrong_value_is_shown_with_its_key_and_what_would_do(key: str, value: Any, said: str) -> None:
    line = line_of(load_config, RECIPE, {key: value})
    assert line.startswith(f"--set: {key}") and said in line
    assert f"{value!r}" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_counts": [2, 2, 2]}, "crop_counts has 3 entries, crop_sizes 2"),
        ({"crop_min_scales": [0.4]}, "crop_min_scales has 1 entries, crop_sizes 2"),
        ({"crop_max_scales": []}, "crop_max_scales has 0 entries, crop_sizes 2"),
        ({"crop_sizes": [28, 7]}, "crop_sizes 7 with crop_counts 2"),
        ({"crop_counts": [2, 0]}, "crop_sizes 20 with crop_counts 0"),
        ({"crop_min_scales": [0.4, 0.7]}, "crop scales 0.7 to 0.6"),
        ({"crop_min_scales": [0, 0.25]}, "crop scales 0.0 to 1.0"),
        ({"crop_max_scales": [1.1, 0.6]}, "crop scales 0.4 to 1.1"),
        ({"crop_sizes": [28, 28]}, "crop_sizes [28, 28] repeats a size"),
        (
            {"crop_sizes": [28], "crop_counts": [1], "crop_min_scales": [0.4], "crop_max_scales": [1], "crops_for_assign": [0]},
            "crop_counts must sum to at least 2",
        ),
        ({"crops_for_assign": []}, "crops_for_assign [] must name each crop once"),
        ({"crops_for_assign": [0, 0]}, "crops_for_assign [0, 0] must name each crop once"),
        ({"crops_for_assign": [0, 4]}, "crops_for_assign [0, 4] names a crop that is not there"),
        ({"crops_for_assign": [-1]}, "crops_for_assign [-1] names a crop that is not there"),
        ({"crops_for_assign": [0, 2]}, "a queue needs all crops_for_assign of one size"),
        ({"queue_length": 124}, "queue_length 124 is shorter than one batch of 125"),
        ({"num_prototypes": 626}, "num_prototypes 626 is more than the 625 rows in sight"),
        ({"num_prototypes": 126, "queue_length": 0}, "num_prototypes 126 is more than the 125 rows in sight"),
        ({"warmup_epochs": 20}, "warmup_epochs 20 must be below epochs 20"),
        ({"warmup_epochs": 30}, "warmup_epochs 30 must be below epochs 20"),
        ({"data.block_rows": 126}, "data.block_rows 126 is more than global_batch_size 125"),
        ({"elastic.max": 9}, "9 workers cannot share 8 blocks a step"),
        ({"augment.blur_sigma": [2.0, 0.1]}, "augment.blur_sigma 2.0 to 0.1"),
        ({"augment.blur_sigma": [0, 1]}, "augment.blur_sigma 0.0 to 1.0"),
        ({"elastic.min": 3, "elastic.max": 2}, "elastic.min 3 is above elastic.max 2"),
        ({"elastic.max_rows_per_device": 2}, "elastic.max_rows_per_device 2 could make passes of one row"),
        ({"batch_norm_workers": 2, "elastic.min": 1, "elastic.max": 4}, "batch_norm_workers 2 needs a fixed number of workers"),
        ({"batch_norm_workers": 2, "elastic.min": 3, "elastic.max": 3}, "batch_norm_workers 2 needs a fixed number of workers"),
        (
            {"num_prototypes": 532, "elastic.min": 1, "elastic.max": 4, "elastic.scale_lr_with_batch": True},
            "num_prototypes 532 is more than the 531 rows in sight (global_batch_size 125, scaled to 31 on elastic.min 1 + ",
        ),
    ],
)
def test_an_impossible_combination_is_said_with_its_numbers(changes: dict[str, Any], said: str) -> None:
    line = line_of(load_config, RECIPE, changes)
    assert line.startswith((f"{RECIPE} with --set: ", "--set: ", f"{RECIPE}:")) and said in line


@pytest.mark.parametrize(
    "changes",
    [
        {"num_prototypes": 625},  # exactly the rows in sight
        {"num_prototypes": 125, "queue_length": 0},
        {"queue_length": 125, "num_prototypes": 250},  # exactly one batch
        {"queue_length": 0, "crops_for_assign": [0, 1, 2, 3]},  # two sizes get codes, no queue
        {"crops_for_assign": [2, 3]},
        {"crops_for_assign": [1]},
        {"warmup_epochs": 19},
        {"warmup_epochs": 0, "epochs": 1},
        {"data.block_rows": 125},
        {"elastic.max": 8},
        {"elastic.min": 2, "elastic.max": 2},
        {"augment.blur_sigma": [1, 1]},
        {"crop_sizes": [28, 8]},
        {"crop_min_scales": [1, 0.6]},
        {"crop_counts": [1, 1], "queue_length": 0},
        {"hidden_dim": 0},
        {"elastic.gpus_per_worker": None},
        {"elastic.max_rows_per_device": 3},
        {"elastic.min": 1, "elastic.max": 4, "elastic.scale_lr_with_batch": True, "num_prototypes": 531},
    ],
)
def test_the_last_possible_value_is_taken(changes: dict[str, Any]) -> None:
    config = load_config(RECIPE, changes)
    for key, value in changes.items():
        found = value_at(config.model_dump(), key)
        assert (list(found) if isinstance(value, list) else found) == value


def test_several_mistakes_are_counted_and_a_misspelt_key_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 0\nseed: -1\nepsillon: 0.1\n")
    assert line_of(load_config, str(path)) == f"{path}:3: unknown key 'epsillon' (did you mean 'epsilon'?) (and 2 more)"


def test_an_impossible_section_is_found_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("elastic: {min: 3, max: 2}\n")
    assert line_of(load_config, str(path)) == f"{path}:1: elastic.min 3 is above elastic.max 2; swap them"
    path.write_text("data: 3\n")
    assert f"{path}:1: data = 3: " in line_of(load_config, str(path))


# --- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"epochs: [1", "not valid YAML"),
        (b"epochs: 1\n  seed: 2", "not valid YAML"),
        (b"epochs: *nothing", "not valid YAML"),
        (b"epochs: !!python/object:os.system 1", "not valid YAML"),
        (b"epochs: 2001-99-99", "not valid YAML"),  # PyYAML itself raises ValueError here, and other errors below
        (b"epochs: !!int many", "not valid YAML"),
        (b"epochs: !!timestamp many", "not valid YAML"),
        (b"epochs: !!bool many", "not valid YAML"),
        (b"epochs: " + b"[" * 3000, "not valid YAML"),
        (b"{[]: 1}", "not valid YAML"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read"),
        (b"\xff\xd8\xff\xe0", "cannot be read"),
        (b"", "must hold keys and values, found NoneType"),
        (b"# nothing but a comment", "must hold keys and values, found NoneType"),
        (b"- epochs", "must hold keys and values, found list"),
        (b"epochs", "must hold keys and values, found str"),
        (b"3", "must hold keys and values, found int"),
        (b"3: 4", "keys should be strings"),
        (b'"a\\nb": 4', "unknown key"),
        (b'epochs: "1\\n2"', "epochs = "),
    ],
)
def test_a_file_that_is_no_configuration_is_named_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    line = line_of(load_config, str(path))
    assert line.startswith((f"{path}: ", f"{path}:1: ", f"{path}:2: ")) and said in line


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert line_of(load_config, str(tmp_path / "none.yaml")) == f"{tmp_path}/none.yaml: no such file"
    (tmp_path / "folder.yaml").mkdir()
    assert line_of(load_config, f"{tmp_path}/folder.yaml").startswith(f"{tmp_path}/folder.yaml: cannot be read")
    assert line_of(read_yaml, tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_a_list_that_is_too_short_names_the_missing_place() -> None:
    line = line_of(load_config, RECIPE, {"augment.mean": [0.5, 0.5]})
    assert line == "--set: augment.mean.2 is missing"


def test_files_are_read_as_utf8_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# ± Läufe\nnum_prototypes: 100\nname: Läufe\n", encoding="utf-8")
    script = f"from swav_ray.config import load_config; print(ascii(load_config({str(path)!r}).name))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == ascii("Läufe"), done.stderr


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    line = line_of(load_config, "demo-digit")
    assert line.startswith("no recipe 'demo-digit' (did you mean 'demo-digits'?)")
    assert all(name in line for name in recipe_names())


# --- --set


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("base_lr=0.5", "base_lr", 0.5),
        ("crop_counts=[2, 6]", "crop_counts", [2, 6]),
        ("data.train=s3://bucket/a=b", "data.train", "s3://bucket/a=b"),  # only the first = divides
        ("data.log_ids=true", "data.log_ids", True),
        ("elastic.gpus_per_worker=null", "elastic.gpus_per_worker", None),
        (" name = mine ", "name", "mine"),
        ("name=", "name", None),
    ],
)
def test_an_assignment_is_a_key_and_a_yaml_value(text: str, key: str, value: Any) -> None:
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["epochs", "", "epochs:3", "epochs=[1", "epochs=2001-99-99", "epochs=!!int x", "epochs=*a"])
def test_a_malformed_assignment_is_shown(text: str) -> None:
    assert line_of(parse_assignment, text).startswith(f"--set {text}: ")


@pytest.mark.parametrize("key", ["", "data", "augment", "data.train.x", "epochs.x", ".epochs", "data..train"])
def test_only_a_setting_can_be_set_not_a_section_or_a_part_of_a_setting(key: str) -> None:
    assert line_of(load_config, RECIPE, {key: 1}).startswith(f"--set: unknown key {key!r}")


def test_an_override_of_a_section_leaves_the_rest_of_it(tmp_path: Path) -> None:
    plain, changed = load_config(RECIPE), with_settings(augment__rotation=30, data__block_rows=8)
    assert changed.augment == plain.augment.model_copy(update={"rotation": 30.0})
    assert changed.data == plain.data.model_copy(update={"block_rows": 8})
    path = tmp_path / "mine.yaml"
    path.write_text("num_prototypes: 100\n")  # no section there yet
    assert load_config(str(path), {"probe.resize": 32}).probe.resize == 32


def test_an_override_into_what_is_no_section_is_refused() -> None:
    assert line_of(set_dotted, {"data": 3}, "data.train", "x", "mine.yaml") == "mine.yaml: 'data' must be a section, found 3"


def test_a_recipe_is_read_anew_each_time() -> None:
    first = recipe_values(RECIPE)[0]
    first["augment"]["rotation"] = 90
    assert load_config(RECIPE).augment.rotation == 15


# --- frozen, hashed, written out


def test_nothing_changes_after_the_checks() -> None:
    config = load_config(RECIPE)
    for section, key in ((config, "epochs"), (config.data, "train"), (config.augment, "mean")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, key, getattr(section, key))
    with pytest.raises(AttributeError):
        config.crop_sizes.append(3)  # type: ignore[attr-defined]


def other_value(key: str, value: Any) -> Any:
    """Another value of the field's kind; it need not be possible, only different."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return (value[0] + 1, *value[1:]) if value else (1,)
    if isinstance(value, dict):
        return {**value, "slot": 1.0}
    if value is None:
        return 1
    choices = known_keys()[key].annotation
    if getattr(choices, "__args__", None):
        return next(choice for choice in choices.__args__ if choice != value)
    return f"{value}x"


def changed(config: Config, key: str) -> Config:
    """``config`` with another value at ``key``, past the checks: the hash must notice what the checks might refuse."""
    values = config.model_dump(mode="json")
    *sections, leaf = key.split(".")
    value = other_value(key, value_at(values, key))
    for section in reversed(sections):
        leaf, value = section, getattr(config, section).model_copy(update={leaf: value})
    return config.model_copy(update={leaf: value})


@pytest.mark.parametrize("key", KEYS)
def test_the_hash_notices_every_setting_but_name_place_and_workers(key: str) -> None:
    config = load_config(RECIPE)
    other = changed(config, key)
    assert value_at(other.model_dump(mode="json"), key) != value_at(config.model_dump(mode="json"), key)
    assert (other.hash() == config.hash()) == (key in NOT_IN_HASH)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
def test_the_hash_notices_any_set_of_changes_with_one_that_counts(keys: list[str]) -> None:
    config = other = load_config("imagenet-400ep")
    for key in keys:
        other = changed(other, key)
    assert (other.hash() == config.hash()) == (set(keys) <= NOT_IN_HASH)


def test_the_size_that_batch_and_learning_rate_are_a_share_of_is_in_the_hash_where_they_are() -> None:
    def hashes(scaled: bool) -> set[str]:
        return {
            with_settings(elastic__scale_lr_with_batch=scaled, elastic__min=low, elastic__max=high).hash()
            for low, high in ((1, 4), (2, 4), (1, 8))
        }

    assert len(hashes(False)) == 1
    assert len(hashes(True)) == 2, "elastic.max, not elastic.min"


@pytest.mark.parametrize(("workers", "rows", "share"), [(1, 31, 0.25), (2, 62, 0.5), (3, 94, 0.75), (4, 125, 1.0)])
def test_a_scaled_batch_is_the_workers_share_and_the_whole_one_at_full_size(workers: int, rows: int, share: float) -> None:
    config = with_settings(elastic__scale_lr_with_batch=True, elastic__max=4)
    assert (config.batch_on(workers), config.share_of(workers)) == (rows, share)
    constant = with_settings(elastic__max=4)
    assert (constant.batch_on(workers), constant.share_of(workers)) == (125, 1.0)


def test_a_scaled_batch_is_two_rows_at_least() -> None:
    config = with_settings(
        global_batch_size=8, data__block_rows=1, elastic__max=8, elastic__scale_lr_with_batch=True, num_prototypes=20
    )
    assert config.batch_on(1) == 2


def test_the_hash_is_the_same_in_another_process_and_way_of_writing() -> None:
    config = load_config(RECIPE)
    assert config.hash() == pickle.loads(pickle.dumps(config)).hash()
    assert config.hash() == with_settings(temperature=0.1, crop_sizes=(28, 20)).hash()
    assert with_settings(base_lr=1).hash() == with_settings(base_lr=1.0).hash()
    assert len(config.hash()) == 16 and int(config.hash(), 16) >= 0


NUMBERS = st.floats(1e-12, 1e12, allow_nan=False)
ROUND_TRIPS = {
    "name": st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
    "seed": st.integers(0, 2**63),
    "temperature": NUMBERS,
    "epsilon": NUMBERS,
    "base_lr": NUMBERS,
    "weight_decay": NUMBERS | st.just(0),
    "freeze_prototypes_epochs": NUMBERS,
    "data.train": st.sampled_from(
        ["", "demo:digits", "s3://bucket/a b", "1e3", "null", "yes", "0x10", "~", "- a", "2001-01-01"]
    ),
    "data.log_ids": st.booleans(),
    "elastic.gpus_per_worker": st.none() | st.floats(0, 8),
    "augment.mean": st.tuples(NUMBERS, NUMBERS, NUMBERS),
    "crops_for_assign": st.sampled_from([(0,), (1,), (0, 1), (1, 0), (2, 3)]),
    "backbone.arch": st.sampled_from(["resnet50", "package.module:factory"]),
}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.fixed_dictionaries({}, optional=ROUND_TRIPS))
def test_a_configuration_survives_yaml(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    config = load_config(RECIPE, changes)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(str(path))
    assert again == config and again.hash() == config.hash()


def test_known_keys_are_all_leaves_of_the_schema() -> None:
    def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in values.items():
            section = isinstance(value, dict) and prefix + key not in KEYS
            found |= leaves(value, f"{prefix}{key}.") if section else {prefix + key}
        return found

    assert set(KEYS) == leaves(Config(num_prototypes=100).model_dump(mode="json"))


def test_the_schema_can_be_given_to_an_editor() -> None:
    schema = json.loads(json.dumps(Config.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert "crops that get codes" in json.dumps(schema)


# --- any mutation of a recipe builds or is refused in one line

WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**6),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-3, 300), st.floats(allow_nan=True), st.text(max_size=3), st.none()), max_size=5),
    st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), st.integers(), max_size=2),
    st.sampled_from([{}, [[1]], b"bytes", 10**400, -0.0, "1e-3", "lars", [2, 2], [28], (1, 2)]),
)


@st.composite
def mutated_recipes(draw: st.DrawFn) -> dict[Any, Any]:
    """A recipe's values with one to three keys dropped, renamed, or given a value of any kind."""
    values = copy.deepcopy(recipe_values(draw(st.sampled_from(recipe_names())))[0])
    for _ in range(draw(st.integers(1, 3))):
        sections = [values, *(value for value in values.values() if isinstance(value, dict) and value)]
        place = draw(st.sampled_from(sections))
        if not place:
            continue
        key = draw(st.sampled_from(sorted(place, key=str)))
        how = draw(st.sampled_from(["drop", "rename", "retype", "add"]))
        if how == "drop":
            del place[key]
        elif how == "rename":
            place[draw(st.sampled_from([f"{key}s", str(key)[:-1], "", 3, None, "a\nb", *KEYS]))] = place.pop(key)
        elif how == "retype":
            place[key] = draw(WRONG)
        else:
            place[draw(st.sampled_from(KEYS)).split(".")[-1]] = draw(WRONG)
    return values


@settings(derandomize=True, deadline=None, max_examples=300)
@given(mutated_recipes())
def test_any_mutated_recipe_builds_or_is_refused_in_one_line(values: dict[Any, Any]) -> None:
    try:
        config = build_config(values, "mutant.yaml")
    except UserError as error:
        message = str(error)
        assert message.startswith("mutant.yaml: ") and len(message.splitlines()) == 1, message
    else:
        assert build_config(config.model_dump(mode="json"), "again") == config


def test_a_user_error_is_one_line_and_survives_pickling() -> None:
    error = UserError("first\nsecond\r\nthird\u2028fourth")
    assert str(error) == "first second third fourth"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
