"""The grammar of a sweep: every mistake is one line before anything starts, every value survives Optuna."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from swav_ray.config import load_config
from swav_ray.errors import UserError
from swav_ray.tune.params import Param
from swav_ray.tune.sampling import propose, settings_of
from swav_ray.tune.schema import schema, schema_text
from swav_ray.tune.space import Space, load_space
from swav_ray.tune.study import SweepFolder, open_study

SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
RECIPE = str(Path(__file__).parents[1] / "recipe.yaml")
VALID: dict[str, Any] = {
    "name": "mine",
    "recipe": RECIPE,
    "overrides": {"epochs": 4},
    "params": {
        "num_prototypes": {"logint": [30, 400]},
        "temperature": {"loguniform": [0.05, 0.3]},
        "optimizer": {"choice": ["adamw", "lars"]},
    },
    "baseline": [{"num_prototypes": 100, "temperature": 0.1}],
    "sampler": "tpe",
    "seed": 0,
    "budget": {"trials": 8},
    "concurrency": 2,
    "resources": {"cpus_per_worker": 1},
}


def written(tmp_path: Path, values: dict[Any, Any]) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def valid(**changes: Any) -> dict[str, Any]:
    """The valid space with other top-level entries; None drops one."""
    values = copy.deepcopy(VALID) | changes
    return {key: value for key, value in values.items() if value is not None}


def line_of(path: Path, *args: Any, **kwargs: Any) -> str:
    """What follows the file's name in the one line of the UserError that loading must raise."""
    with pytest.raises(UserError) as caught:
        load_space(path, *args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return re.sub(rf"^{re.escape(str(path))}(:\d+)?: ", "", message)


# --- what is right


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_loads(path: Path) -> None:
    space = load_space(path)
    assert space.name == path.stem
    for number in range(6):
        proposal = propose(space, number, [])
        for trial in (True, False):
            assert proposal is not None
            space.config(proposal.settings, trial=trial)


def test_a_space_is_read_as_written(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, VALID))
    assert space.distributions() == {
        "num_prototypes": IntDistribution(30, 400, log=True),
        "temperature": FloatDistribution(0.05, 0.3, log=True),
        "optimizer": CategoricalDistribution(["adamw", "lars"]),
    }
    assert (space.budget.trials, space.concurrency, space.sampler, space.resources.cpus_per_worker) == (8, 2, "tpe", 1)


@pytest.mark.parametrize(
    ("param", "distribution"),
    [
        ({"int": [2, 9]}, IntDistribution(2, 9)),
        ({"logint": [2, 9]}, IntDistribution(2, 9, log=True)),
        ({"uniform": [0, 1]}, FloatDistribution(0, 1)),
        ({"loguniform": ["1e-3", 1]}, FloatDistribution(1e-3, 1, log=True)),  # YAML 1.1 reads 1e-3 as text
        ({"choice": [3]}, CategoricalDistribution([3])),
        ({"choice": [None, True, "a", 0.5]}, CategoricalDistribution([None, True, "a", 0.5])),
    ],
)
def test_each_kind_has_its_distribution(param: dict[str, Any], distribution: Any) -> None:
    assert Param.model_validate(param).distribution() == distribution


def test_trials_have_the_overrides_and_the_best_configuration_has_the_recipes_own_length(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, VALID))
    settings_ = {"num_prototypes": 64, "temperature": 0.2}
    trial, best = space.config(settings_, trial=True), space.config(settings_, trial=False)
    plain = load_config(RECIPE)
    assert (trial.epochs, best.epochs) == (4, plain.epochs)
    assert best == plain.model_copy(update=settings_)
    assert trial == best.model_copy(update={"epochs": 4})


def test_a_sampled_value_wins_over_the_recipe_not_over_nothing(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, valid(params={"data.window_groups": {"int": [28, 40]}}, baseline=None)))
    assert space.config({"data.window_groups": 33}, trial=True).data.window_groups == 33
    assert space.config({}, trial=True).data == load_config(RECIPE).data


def test_settings_on_the_command_line_lie_on_top_of_the_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, VALID)
    space = load_space(path, {"epochs": 3, "data.block_rows": 8}, budget={"trials": 5}, concurrency=1)
    assert space.overrides == {"epochs": 3, "data.block_rows": 8}
    assert (space.budget.trials, space.concurrency) == (5, 1)
    assert load_space(path, {}, budget=None, concurrency=None) == load_space(path)


def test_lists_among_the_choices_survive_the_trip_to_optuna_and_back(tmp_path: Path) -> None:
    values = valid(
        params={
            "crop_counts": {"choice": [[2, 2], [2, 4], [2, 6]]},
            "crop_min_scales": {"choice": [[0.4, 0.25], [0.3, 0.2]]},
            "backbone.arch": {"choice": ["resnet10", "[1, 2]x", "null"]},  # text that only looks like JSON stays text
            "hidden_dim": {"choice": [256, 0], "ordered": True},
            "precision": {"choice": ["float32", "float64"]},
        },
        baseline=[{"crop_counts": [2, 4], "backbone.arch": "null"}, {"crop_min_scales": [0.3, 0.2]}],
        sampler="random",
    )
    space = load_space(written(tmp_path, values))
    folder = SweepFolder(str(tmp_path / "study"))
    study = open_study(folder.journal(), space.name, space.directions(), space.defining())
    for number in range(25):
        proposal = propose(space, number, [])
        assert proposal is not None
        asked = {"params": proposal.params, "distributions": proposal.distributions}
        study.add_trial(create_trial(state=TrialState.RUNNING, **asked))
    again = open_study(folder.journal(), space.name, space.directions(), space.defining())
    drawn = [settings_of(space, trial) for trial in again.trials]  # from the journal
    for key, param in space.params.items():
        assert {json.dumps(point[key]) for point in drawn} == {json.dumps(value) for value in param.choice or []}
    assert (drawn[0]["crop_counts"], drawn[0]["backbone.arch"], drawn[1]["crop_min_scales"]) == ([2, 4], "null", [0.3, 0.2])
    for point in drawn:
        config = space.config(point, trial=True)
        assert list(config.crop_counts) == point["crop_counts"] and config.backbone.arch == point["backbone.arch"]


def test_the_schema_can_be_given_to_an_editor() -> None:
    assert json.loads(json.dumps(schema()))["additionalProperties"] is False
    file = Path(__file__).parents[2] / "search_spaces" / "space.schema.json"
    assert file.read_text() == schema_text(), f"python -m swav_ray.tune.schema > {file}"


# --- what is wrong


K, TAU = VALID["params"]["num_prototypes"], VALID["params"]["temperature"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # which setting
        ({"params": {"num_prototype": K}}, "params.num_prototype: the configuration has no such key (did you mean 'num_pro"),
        ({"params": {"data": K}}, "params.data: the configuration has no such key (did you mean 'data."),
        (
            {"params": {"augment.blurr": TAU}},
            "params.augment.blurr: the configuration has no such key (did you mean 'augment.blur'",
        ),
        ({"overrides": {"epoch": 3}}, "overrides.epoch: the configuration has no such key (did you mean 'epochs'?)"),
        ({"overrides": {"temperature": 0.1}}, "temperature stands in params and in overrides; keep one"),
        # how it varies
        ({"params": {"num_prototypes": K | {"choice": [3]}}}, "params.num_prototypes: needs exactly one of choice, int,"),
        ({"params": {"num_prototypes": {}}}, "params.num_prototypes: needs exactly one of choice, int, logint, uniform, logun"),
        ({"params": {"num_prototypes": {"int": [9, 3]}}}, "params.num_prototypes: int [9, 3]: the first must be below the"),
        ({"params": {"num_prototypes": {"int": [3, 3]}}}, "params.num_prototypes: int [3, 3]: the first must be below the"),
        ({"params": {"temperature": {"uniform": [0.3, 0.1]}}}, "params.temperature: uniform [0.3, 0.1]: the first must be"),
        ({"params": {"num_prototypes": {"logint": [0, 9]}}}, "params.num_prototypes: logint [0, 9]: both must be positive"),
        ({"params": {"temperature": {"loguniform": [0, 1]}}}, "params.temperature: loguniform [0.0, 1.0]: both must be pos"),
        ({"params": {"temperature": {"loguniform": [-1, 1]}}}, "params.temperature: loguniform [-1.0, 1.0]: both must be"),
        ({"params": {"temperature": {"uniform": [0.1, float("inf")]}}}, "params.temperature.uniform.1 = inf: "),
        ({"params": {"num_prototypes": {"int": [3]}}}, "params.num_prototypes.int.1 is missing"),
        ({"params": {"num_prototypes": {"int": [3, 4, 5]}}}, "params.num_prototypes.int = [3, 4, 5]: "),
        ({"params": {"num_prototypes": {"int": [30.5, 40]}}}, "params.num_prototypes.int.0 = 30.5: "),
        ({"params": {"num_prototypes": {"int": "30-40"}}}, "params.num_prototypes.int = '30-40': "),
        ({"params": {"num_prototypes": {"logit": [3, 9]}}}, "unknown key 'params.num_prototypes.logit' (did you mean 'params."),
        ({"params": {"num_prototypes": 100}}, "params.num_prototypes = 100: "),
        ({"params": {"num_prototypes": {"choice": []}}}, "params.num_prototypes.choice = []: "),
        ({"params": {"num_prototypes": {"choice": 100}}}, "params.num_prototypes.choice = 100: "),
        ({"params": {}}, "params = {}: "),
        ({"params": None}, "params is missing"),
        ({"params": {"a\nb": {"int": [1, 2]}}}, "params.a b: the configuration has no such key"),
        # points tried first
        ({"baseline": [{"num_prototypes": 401}]}, "baseline[0].num_prototypes = 401 lies outside of params.num_prototypes"),
        ({"baseline": [{}, {"temperature": 0.01}]}, "baseline[1].temperature = 0.01 lies outside of params.temperature"),
        ({"baseline": [{"optimizer": "sgd"}]}, "baseline[0].optimizer = 'sgd' lies outside of params.optimizer"),
        ({"baseline": [{"num_prototypes": 100.5}]}, "baseline[0].num_prototypes = 100.5 lies outside of params.num_prototypes"),
        (
            {"params": {"queue_start_epoch": {"int": [0, 3]}}, "baseline": [{"queue_start_epoch": True}]},
            "baseline[0].queue_start_epoch = True lies outside of params.queue_start_epoch",
        ),
        ({"baseline": [{"temperature": "warm"}]}, "baseline[0].temperature = 'warm' lies outside of params.temperature"),
        ({"baseline": [{"num_proto": 100}]}, "baseline[0].num_proto is not in params (did you mean 'num_prototypes'?)"),
        ({"baseline": [{"epochs": 4}]}, "baseline[0].epochs is not in params"),
        ({"baseline": {"num_prototypes": 100}}, "baseline = {'num_prototypes': 100}: "),
        ({"baseline": [100]}, "baseline.0 = 100: "),
        # what the configuration refuses
        ({"params": {"optimizer": {"choice": ["lars", "larss"]}}, "baseline": []}, "params.optimizer = 'larss': "),
        ({"params": {"temperature": {"uniform": [0, 0.3]}}, "baseline": []}, "params.temperature = 0.0: "),
        ({"params": {"augment.flip": {"uniform": [0.5, 1.5]}}, "baseline": []}, "params.augment.flip = 1.5: "),
        ({"params": {"crop_counts": {"choice": [[2, 2], [2]]}}, "baseline": []}, "params.crop_counts = [2]: crop_counts has 1"),
        ({"params": {"temperature": {"choice": [0.1, None]}}, "baseline": []}, "params.temperature = None: "),
        (
            {"params": {"num_prototypes": {"int": [30, 626]}}, "baseline": []},
            "params.num_prototypes = 626: num_prototypes 626 is",
        ),
        ({"overrides": {"epochs": "abc"}}, "baseline[0] with the overrides: epochs = 'abc': input should be a valid integer"),
        ({"overrides": {"epochs": 1}}, "baseline[0] with the overrides: warmup_epochs 1 must be below epochs 1"),
        ({"overrides": {"queue_length": 0}}, "params.num_prototypes = 400: num_prototypes 400 is more than the 125 rows in"),
        ({"overrides": {"epochs": 0}, "baseline": []}, "the recipe with the overrides: epochs = 0: "),
        # where from
        ({"recipe": "demo-digit"}, "recipe: no recipe 'demo-digit' (did you mean 'demo-digits'?)"),
        ({"recipe": "/none/there.yaml"}, "recipe: /none/there.yaml: no such file"),
        ({"recipe": 3}, "recipe = 3: "),
        ({"recipe": None}, "recipe is missing"),
        # the rest
        ({"name": "a/b"}, "name = 'a/b': "),
        ({"name": ".."}, "name = '..': "),
        ({"name": "two words"}, "name = 'two words': "),
        ({"name": "line\n"}, "name = 'line\\n': "),
        ({"name": ""}, "name = '': "),
        ({"name": None}, "name is missing"),
        ({"budget": {"trials": 0}}, "budget.trials = 0: "),
        ({"budget": {"trial": 8}}, "unknown key 'budget.trial' (did you mean 'budget.trials'?)"),
        ({"budget": {}}, "budget needs at least one of trials, hours, gpu_hours"),
        ({"budget": 8}, "budget = 8: "),
        ({"budget": None}, "budget needs at least one of trials, hours, gpu_hours"),
        ({"sampler": "tpee"}, "sampler = 'tpee': input should be 'tpe', 'random', 'grid', 'cmaes', 'gp' or 'nsga2'"),
        ({"samplr": "tpe"}, "unknown key 'samplr' (did you mean 'sampler'?)"),
        ({"objective": "loss"}, "objective: 'loss': needs probe/top1 or knn/top1, or [one of them, gpu_hours]"),
        ({"seed": -1}, "seed = -1: "),
        ({"concurrency": 0}, "concurrency = 0: "),
        ({"resources": {"cpus_per_worker": 0}}, "resources.cpus_per_worker = 0: "),
        ({"resources": {"cpus": 1}}, "resources: cpus is called cpus_per_worker"),
        ({"resources": {"worker": 1}}, "unknown key 'resources.worker' (did you mean 'resources.workers'?)"),
        ({"overrides": [1]}, "overrides = [1]: "),
    ],
)
def test_a_mistake_is_one_line_with_file_place_and_value(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "params" in changes and "baseline" not in changes:
        changes = changes | {"baseline": []}
    assert line_of(written(tmp_path, valid(**changes))).startswith(said)


def test_ends_that_only_together_are_impossible_are_refused(tmp_path: Path) -> None:
    params = {"num_prototypes": {"int": [30, 500]}, "queue_length": {"choice": [500, 0]}}
    line = line_of(written(tmp_path, valid(params=params, baseline=[{"num_prototypes": 100, "queue_length": 500}])))
    assert line.startswith("all params at their last value: num_prototypes 500 is more than the 125 rows in sight")


def test_the_best_configuration_must_be_possible_too_not_only_the_trials(tmp_path: Path) -> None:
    """Trials with a longer queue than the recipe may have more prototypes; the winner then could not be trained."""
    values = valid(overrides={"queue_length": 1000}, params={"num_prototypes": {"int": [30, 700]}}, baseline=[])
    assert line_of(written(tmp_path, values)).startswith("params.num_prototypes = 700: num_prototypes 700 is more than the 625")


def test_settings_of_the_command_line_are_checked_like_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, VALID)
    assert line_of(path, {"epoch": 3}).startswith("--set: epoch: the configuration has no such key")
    assert line_of(path, {"temperature": 0.1}) == "--set: temperature stands in params and in overrides; keep one"
    assert "epochs = 'x'" in line_of(path, {"epochs": "x"})
    assert line_of(path, budget={"trials": 0}).startswith("the command line: budget.trials = 0: ")
    assert line_of(path, concurrency=-1).startswith("the command line: concurrency = -1: ")


def test_a_file_that_is_no_space_is_named(tmp_path: Path) -> None:
    assert line_of(tmp_path / "none.yaml") == "no such file"
    for content, said in ((b"params: [1", "not valid YAML"), (b"\xff\xfe", "cannot be read"), (b"- 1", "must hold keys and")):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content)
        assert line_of(path).startswith(said)


# --- any faulty mutation is refused in one line

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1000),
    st.floats(allow_nan=True),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=6),
    st.lists(st.one_of(st.integers(-3, 900), st.floats(allow_nan=True), st.text("ab\n", max_size=3), st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["choice", "int", "uniform", "x"]), st.lists(st.integers(-3, 900), max_size=3), max_size=2),
)


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside ``values``."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else []
    return [found for key in keys for found in [(values, key), *places(values[key])]]


@st.composite
def mutated_spaces(draw: st.DrawFn) -> dict[str, Any]:
    """The valid space with one or two entries, at any depth, dropped, renamed or replaced by anything."""
    values = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(places(values) or [(values, "name")]))
        how = draw(st.sampled_from(["drop", "rename", "replace"]))
        if how == "replace" or isinstance(container, list):
            container[key] = draw(JUNK)
        elif how == "drop":
            container.pop(key, None)
        else:
            container[draw(st.sampled_from([f"{key}s", "", 3, None, "a\nb", "epochs", "seed", "data.train"]))] = container.pop(
                key, 1
            )
    return values


@settings(derandomize=True, deadline=None, max_examples=200)
@given(mutated_spaces())
def test_any_mutated_space_loads_or_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        space = load_space(path)
    except UserError as error:
        message = str(error)
        assert message.startswith((f"{path}: ", f"{path}:")) and len(message.splitlines()) == 1, message
    else:
        assert isinstance(space, Space)
        for number in range(2):  # what loads can be sampled, and what is sampled can be trained
            proposal = propose(space, number, [])
            if proposal is not None:
                space.config(proposal.settings, trial=True)


@pytest.mark.parametrize("key", ["name", "recipe", "params", "budget"])
@pytest.mark.parametrize("how", ["drop", "rename", "null"])
def test_a_space_without_what_it_needs_is_always_refused(key: str, how: str, tmp_path: Path) -> None:
    values = copy.deepcopy(VALID)
    value = values.pop(key)
    if how != "drop":
        values[f"{key}_" if how == "rename" else key] = value if how == "rename" else None
    assert key in line_of(written(tmp_path, values))
