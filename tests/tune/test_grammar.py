"""What a space can say beyond ranges and choices, and the line that each mistake in it gets."""

from __future__ import annotations

import copy
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from swav_ray.errors import UserError
from swav_ray.tune.constraints import Constraint
from swav_ray.tune.params import Param
from swav_ray.tune.sampling import propose
from swav_ray.tune.space import Space, difference, load_space

VALID: dict[str, Any] = {
    "name": "mine",
    "recipe": "demo-digits",
    "overrides": {"epochs": 12, "warmup_epochs": 2, "queue_start_epoch": 2},
    "params": {
        "num_prototypes": {"logint": [20, 400]},
        "queue_length": {"choice": [0, 128, 512], "ordered": True},
        "queue_start_epoch": {"int": [2, 6], "step": 2, "when": {"queue_length": [128, 512]}},
        "augment.rotation": {"uniform": [0, 20], "step": 5},
    },
    "constraints": ["num_prototypes <= global_batch_size + queue_length"],
    "baseline": [{"num_prototypes": 60, "queue_length": 0, "augment.rotation": 10}],
    "budget": {"trials": 8},
}

NO_QUEUE: dict[str, Any] = {"params.queue_start_epoch": None, "baseline": None, "constraints": None}


def written(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """The valid space with dotted entries replaced, or dropped for None; a ~ stands for a dot within a name."""
    values = copy.deepcopy(VALID)
    for path, value in changes.items():
        *sections, leaf = [part.replace("~", ".") for part in path.split(".")]
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
        if value is None:
            del inner[leaf]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000), encoding="utf-8")
    return file


def loaded(tmp_path: Path, **changes: Any) -> Space:
    return load_space(written(tmp_path, changes))


# --- one param


@pytest.mark.parametrize(
    ("param", "distribution", "values"),
    [
        ({"int": [2, 8], "step": 3}, IntDistribution(2, 8, step=3), [2, 5, 8]),
        ({"uniform": [0, 0.3], "step": 0.1}, FloatDistribution(0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        ({"choice": [1, 8, 3], "ordered": True}, IntDistribution(0, 2), [1, 8, 3]),
        ({"choice": [[1], [2]], "ordered": True}, IntDistribution(0, 1), [[1], [2]]),
        ({"int": [2, 4]}, IntDistribution(2, 4), [2, 3, 4]),
        ({"uniform": [0, 1]}, FloatDistribution(0, 1), None),
        ({"logint": [2, 4]}, IntDistribution(2, 4, log=True), None),
    ],
)
def test_a_param_is_sampled_and_listed(param: dict[str, Any], distribution: Any, values: list[Any] | None) -> None:
    found = Param.model_validate(param)
    assert (found.distribution(), found.finite()) == (distribution, values)
    for value in values or []:
        assert found.contains(value) and found.value_of(found.sampled(value)) == value


@settings(derandomize=True, deadline=None)
@given(st.integers(-50, 50), st.integers(1, 7), st.integers(1, 30), st.sampled_from([1.0, 0.1, 0.05]), st.integers())
def test_every_draw_lies_in_its_param(low: int, step: int, steps: int, scale: float, seed: int) -> None:
    ends = [round(low * scale, 9), round((low + step * steps) * scale, 9)]
    generator = random.Random(seed)
    params = [
        Param(uniform=(ends[0], ends[1]), step=round(step * scale, 9)),
        Param(uniform=(ends[0], ends[1])),
        Param(int=(low, low + step * steps), step=step),
        Param(loguniform=(scale, scale * (1 + steps))),
        Param(logint=(1, 1 + steps)),
    ]
    for param in params:
        value = param.draw(generator)
        assert param.contains(value), (param, value)
        assert param.distribution()._contains(param.distribution().to_internal_repr(param.sampled(value)))


def test_steps_give_round_numbers() -> None:
    param = Param(uniform=(0, 1), step=0.1)
    assert [str(value) for value in param.finite() or []] == [f"{number / 10}" for number in range(11)]


def test_powers_of_ten_and_whole_numbers_are_numbers_in_all_places(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text, and 1 for another thing than 1.0."""
    path = written(
        tmp_path, {"baseline": [{"base_lr": 0.001, "augment.rotation": 10}], "params.base_lr": {"loguniform": [0.0001, 1]}}
    )
    path.write_text(path.read_text().replace("base_lr: 0.001", "base_lr: 1e-3").replace("[0.0001, 1]", "[1e-4, 1]"))
    assert "1e-3" in path.read_text() and "1e-4" in path.read_text()
    (point,) = load_space(path).baseline
    assert point == {"base_lr": 0.001, "augment.rotation": 10.0} and type(point["augment.rotation"]) is float


# --- constraints

LOOK = {"num_prototypes": 100, "queue_length": 128, "global_batch_size": 64, "base_lr": 0.003, "data.block_rows": 8}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("num_prototypes <= 100", True),
        ("num_prototypes < 100", False),
        ("num_prototypes > 99.5", True),
        ("num_prototypes >= 101", False),
        ("num_prototypes == 100", True),
        ("num_prototypes != 100", False),
        ("queue_length >= 2 * num_prototypes", False),
        ("10 <= num_prototypes <= queue_length", True),
        ("10 <= num_prototypes <= 50", False),
        ("num_prototypes - 36 == global_batch_size", True),
        ("-(num_prototypes + 1) < -100", True),
        ("num_prototypes <= global_batch_size + queue_length", True),
        ("data.block_rows * 8 == global_batch_size", True),
        ("base_lr / 3 == 0.001", True),
        ("num_prototypes / (queue_length - 128) > 1", False),  # cannot be computed
        ("1e300 * num_prototypes * 1e300 > 1", True),
    ],
)
def test_a_constraint_holds_or_does_not(text: str, holds: bool) -> None:
    assert Constraint(text).holds(LOOK.__getitem__) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_prototypes", "compares nothing"),
        ("num_prototypes + 1", "compares nothing"),
        ("1 < 2", "names no setting"),
        ("num_prototype < 2", "the configuration has no key 'num_prototype' (did you mean 'num_prototypes'?)"),
        ("data < 2", "the configuration has no key 'data' (did you mean 'data."),
        ("crop_min_scales < 2", "crop_min_scales is no single number"),
        ("optimizer == 2", "optimizer is no single number"),
        ("num_prototypes < 'a'", "\"'a'\" is not allowed"),
        ("num_prototypes < None", "'None' is not allowed"),
        ("num_prototypes < True", "'True' is not allowed"),
        ("num_prototypes ** 2 < 4", "'num_prototypes ** 2' is not allowed"),
        ("num_prototypes is 2", "is no such comparison"),
        ("num_prototypes in (2, 3)", "is no such comparison"),
        ("num_prototypes < 3 and epochs < 2", "compares nothing"),
        ("abs(num_prototypes) < 3", "is not allowed"),
        ("__import__('os').system('true') < 3", "is not allowed"),
        ("num_prototypes.__class__ < 3", "the configuration has no key 'num_prototypes.__class__'"),
        ("num_prototypes[0] < 3", "is not allowed"),
        ("(lambda: 3)() < epochs", "is not allowed"),
        ("num_prototypes <", "cannot be read"),
        ("", "cannot be read"),
        ("num_prototypes\n< 3", "cannot be read"),
        ("(" * 250, "cannot be read"),
        ("epochs < " + "9" * 400, "is longer than 300 characters"),
        ("epochs = 3", "cannot be read"),
        ("epochs < 3 # or so; import os", None),
    ],
)
def test_what_is_no_constraint_is_refused(text: str, said: str | None) -> None:
    if said is None:
        assert Constraint(text).keys == ("epochs",)
        return
    with pytest.raises(ValueError) as caught:
        Constraint(text)
    assert said in str(caught.value)


@settings(derandomize=True, deadline=None)
@given(st.text(st.sampled_from("epochs_lr.<>=!+-*/() 0123456789[]{}'\"\\\n#:,@~^&|%;abé\x00"), max_size=40))
def test_any_text_is_a_constraint_or_one_value_error(text: str) -> None:
    try:
        constraint = Constraint(text)
    except ValueError:
        return
    assert constraint.holds(lambda key: 3) in (True, False)


# --- early stopping


@pytest.mark.parametrize(
    ("scheduler", "epochs", "rungs"),
    [
        (None, 30, ()),
        ("none", 30, ()),
        ("asha", 30, (7, 21)),  # after 2 epochs of warm-up and a queue that starts at the end of epoch 6
        ({"kind": "asha", "first_rung": 8, "factor": 2}, 32, (8, 16)),
        ({"kind": "asha", "first_rung": 8, "factor": 2}, 33, (8, 16, 32)),
        ("median", 12, (7, 9, 11)),
        ({"kind": "median", "first_rung": 9, "every": 1}, 12, (9, 10, 11)),
    ],
)
def test_rungs_are_after_all_is_settled_and_before_the_end(
    scheduler: Any, epochs: int, rungs: tuple[int, ...], tmp_path: Path
) -> None:
    space = loaded(tmp_path, scheduler=scheduler, **{"overrides.epochs": epochs})
    assert space.rungs(space.config({}, trial=True)) == rungs


def test_the_first_rung_is_one_for_the_whole_sweep(tmp_path: Path) -> None:
    """Trials with a shorter warm-up are judged at the same epochs, or they could not be compared."""
    space = loaded(tmp_path, scheduler="asha", **{"params.warmup_epochs": {"int": [0, 9]}, "overrides.warmup_epochs": None})
    assert {space.rungs(space.config({"warmup_epochs": epochs}, trial=True)) for epochs in (0, 9)} == {(10,)}
    space = loaded(tmp_path, scheduler="asha", **{"overrides.freeze_prototypes_epochs": 6.5})
    assert space.rungs(space.config({}, trial=True)) == (8,)
    changes = {"params.queue_length": None, "overrides.queue_length": 0, "overrides.queue_start_epoch": 7}
    changes |= {"params.num_prototypes": {"int": [20, 60]}}
    space = loaded(tmp_path, scheduler="asha", **NO_QUEUE, **changes)
    assert space.rungs(space.config({}, trial=True)) == (3, 9)


# --- budget, objective, resources, study


def test_what_is_left_out_of_the_sections_has_its_meaning(tmp_path: Path) -> None:
    space = loaded(tmp_path)
    assert (space.objectives, space.directions(), space.trials) == (("probe/top1",), ["maximize"], 8)
    assert space.resources.worker_range == (1, 1) and space.confirm.seeds_from(31) == (31, 32, 33)
    space = loaded(tmp_path, objective=["knn/top1", "gpu_hours"], resources={"workers": [1, 4]}, confirm={"seeds": [5, 7]})
    assert (space.objectives, space.directions()) == (("knn/top1", "gpu_hours"), ["maximize", "minimize"])
    assert space.resources.worker_range == (1, 4) and space.confirm.seeds_from(31) == (5, 7)
    assert loaded(tmp_path, budget={"hours": 2}).trials is None
    config = space.config({}, trial=True)
    assert (config.elastic.min, config.elastic.max, space.config({}, trial=False).elastic.max) == (1, 4, 1)


def test_the_command_line_changes_a_part_of_the_budget(tmp_path: Path) -> None:
    path = written(tmp_path, {"budget": {"trials": 8, "hours": 2}})
    budget = load_space(path, budget={"trials": 20}).budget
    assert (budget.trials, budget.hours) == (20, 2)


SECRET = "postgresql://me:s3cret@host/db"


@pytest.mark.parametrize(
    "study",
    [SECRET, [SECRET], {"url": SECRET}, "postgres://me:s3cret@host/db", f"{SECRET}: x", "mysql://me:s3cret@host:port/db"],
)
def test_a_password_is_never_shown(study: Any, tmp_path: Path) -> None:
    try:
        space = loaded(tmp_path, study=study)
    except UserError as error:
        assert "s3cret" not in str(error) and re.search(r"mine.yaml:\d+: study", str(error))
    else:
        assert "s3cret" not in f"{space!r} {space.shown_study()} {space.defining()}"


def test_a_study_in_a_database(tmp_path: Path) -> None:
    assert loaded(tmp_path, study="sqlite:///study.db").shown_study() == "sqlite:///study.db"
    assert Space.model_construct(study="mysql://me:pw:x@db@host/db?password=pw").shown_study() == "mysql://me:***@host/db"
    assert loaded(tmp_path).shown_study() is None


# --- the same sweep


def test_means_may_change_and_what_defines_the_sweep_is_named(tmp_path: Path) -> None:
    space = loaded(tmp_path)
    means = {"budget": {"hours": 3}, "concurrency": 5, "resources": {"workers": 2}, "confirm": {"top_k": 1}}
    means |= {"study": "sqlite:///x.db", "overrides.storage": "elsewhere", "overrides.data~crop_in": "ray"}
    assert loaded(tmp_path, **means).defining() == space.defining()
    changed = {"seed": 3, "overrides.epochs": 20, "params.augment~rotation": {"uniform": [0, 30]}, "scheduler": "asha"}
    changed |= {"params.epsilon": {"uniform": [0.03, 0.05]}}
    assert difference(space.defining(), loaded(tmp_path, **changed).defining()).split("; ") == [
        "scheduler: {'kind': 'none', 'factor': 3, 'every': 2, 'startup_trials': 4} -> "
        "{'kind': 'asha', 'factor': 3, 'every': 2, 'startup_trials': 4}",
        "seed: 0 -> 3",
        "params.augment.rotation: {'uniform': [0.0, 20.0], 'step': 5.0} -> {'uniform': [0.0, 30.0]}",
        "settings.epochs: 12 -> 20",
        "params.epsilon: none -> {'uniform': [0.03, 0.05]}",
    ]


def test_a_changed_recipe_is_another_sweep(tmp_path: Path) -> None:
    """The file is the same, but what it names is not."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 20\nbase_lr: 0.1\nglobal_batch_size: 64\nnum_prototypes: 60\n")
    space = loaded(tmp_path, recipe=str(recipe))
    recipe.write_text("epochs: 20\nbase_lr: 0.2\nglobal_batch_size: 64\nnum_prototypes: 60\n")
    again = loaded(tmp_path, recipe=str(recipe))
    assert difference(space.defining(), again.defining()) == "settings.base_lr: 0.1 -> 0.2"
    assert space.config({}, trial=True).base_lr == 0.1  # what was read when the sweep began


# --- each mistake with its line

ROTATION, START = "params.augment~rotation", "params.queue_start_epoch"


@pytest.mark.parametrize(
    ("changes", "line", "said"),
    [
        # step and order
        ({f"{ROTATION}.step": 0}, "step: 0", "params.augment.rotation.step = 0: "),
        (
            {f"{ROTATION}.step": 7},
            "augment.rotation:",
            "params.augment.rotation: step 7 from 0.0 does not meet 20.0; end at 14.0",
        ),
        (
            {f"{ROTATION}.step": 21},
            "augment.rotation:",
            "params.augment.rotation: step 21 is longer than uniform [0.0, 20.0]; low",
        ),
        (
            {f"{START}.step": 0.5},
            "queue_start_epoch:",
            "params.queue_start_epoch: step 0.5 with int: steps of whole numbers are",
        ),
        ({"params.num_prototypes.step": 2}, "num_prototypes:", "params.num_prototypes: step 2 does not go with logint, whose"),
        ({"params.queue_length.step": 128}, "queue_length:", "params.queue_length: step 128 does not go with choice"),
        (
            {f"{ROTATION}.ordered": True},
            "augment.rotation:",
            "params.augment.rotation: ordered goes with choice; uniform has an",
        ),
        ({"params.queue_length.choice": [0, 128, 128]}, "queue_length:", "params.queue_length: choice 128 stands twice"),
        (
            {"params.queue_length.choice": [1, True]},
            "queue_length:",
            "params.queue_length: choice True stands twice, or stands b",
        ),
        ({"params.seed": {"int": [0, 2**60]}}, "seed:", "params.seed: int [0, 1152921504606846976]: beyond"),
        # when
        (
            {f"{START}.when": {"queue_len": 1}},
            "when:",
            "params.queue_start_epoch.when.queue_len is not in params (did you mean 'q",
        ),
        (
            {f"{START}.when": {"queue_length": 64}},
            "when:",
            "params.queue_start_epoch.when.queue_length = 64 lies outside of para",
        ),
        (
            {f"{START}.when": {"queue_length": [0, 64]}},
            "queue_length:",
            "params.queue_start_epoch.when.queue_length = 64 lies outside",
        ),
        (
            {f"{START}.when": {"queue_length": []}},
            "queue_length:",
            "params.queue_start_epoch.when.queue_length = []: names no value",
        ),
        (
            {f"{START}.when": {"base_lr": 1}, "params.base_lr": {"uniform": [0.1, 1]}},
            "when:",
            "params.queue_start_epoch.when.base_lr: uniform never hits a value exactly; give params.base_lr a choice or a step",
        ),
        (
            {f"{START}.when": {"queue_start_epoch": 2}},
            "when:",
            "params.queue_start_epoch.when: asks for itself: queue_start_epoch",
        ),
        (
            {"params.queue_length.when": {"queue_start_epoch": 2}},
            "when:",
            "params.queue_length.when: asks for itself: queue_len",
        ),
        ({f"{START}.when": 3}, "when: 3", "params.queue_start_epoch.when = 3: "),
        (
            {"baseline": [{"queue_start_epoch": 4}]},
            "- {queue",
            "baseline[0].queue_start_epoch: varies only when queue_length is [1",
        ),
        (
            {"baseline": [{"queue_start_epoch": 4, "queue_length": 0}]},
            "- {queue",
            "baseline[0].queue_start_epoch: varies only wh",
        ),
        (
            {"baseline": [{"augment.rotation": 7}]},
            "- {augment",
            "baseline[0].augment.rotation = 7.0 lies outside of params.augme",
        ),
        # what stands in params and in overrides
        ({"overrides.num_prototypes": 40}, "overrides:", "num_prototypes stands in params and in overrides; keep one"),
        # constraints
        (
            {"constraints": ["epochs > 2", "epoch > 2"]},
            "constraints:",
            "constraints[1]: 'epoch > 2': the configuration has no key 'epo",
        ),
        (
            {"constraints": ["num_prototypes > 500"], "baseline": []},
            "constraints:",
            "params: none of 2,000 points is possible; most fail for constraint 'num_prototypes > 500'",
        ),
        ({"constraints": "epochs > 2"}, "constraints:", "constraints = 'epochs > 2': "),
        (
            {"baseline": [{"num_prototypes": 90, "queue_length": 0}]},
            "- {num",
            "baseline[0]: none of 2,000 points is possible; most f",
        ),
        (
            {"baseline": [{"num_prototypes": 90, "queue_length": 0, "augment.rotation": 10}]},
            "- {num",
            "baseline[0] does not satisfy the constraint 'num_prototypes <= global_batch_size + queue_length'",
        ),
        (
            {"params.momentum": {"uniform": [0.5, 1.5]}, "constraints": ["momentum < 0.9"]},
            "uniform: [0.5",
            "params.momentum = 1.5: input should be less than 1",  # though no constraint would let it through
        ),
        (
            {"constraints": None, "baseline": [{}, {"num_prototypes": 190, "queue_length": 0, "augment.rotation": 5}]},
            "- {num",
            "baseline[1]: num_prototypes 190 is more than the 64 rows in sight",
        ),
        # samplers and what they can take
        (
            {"sampler": "grid"},
            "num_prototypes:",
            "params.num_prototypes: a grid needs a choice, an int, or a uniform with a step",
        ),
        (
            {"sampler": "grid", "params.num_prototypes": {"int": [20, 60]}, "params.seed": {"int": [0, 99]}},
            "params:",
            "params: the grid has more than 10,000 points; take larger steps, or another sampler",
        ),
        ({"sampler": "cmaes"}, "when:", "params.queue_start_epoch.when: sampler cmaes needs all params in all trials; use tpe"),
        (
            {"sampler": "cmaes", "params.optimizer": {"choice": ["lars", "sgd"]}} | NO_QUEUE,
            "optimizer:",
            "params.optimizer: sampler cmaes knows numbers only; say ordered: true, or take tpe",
        ),
        (
            {"sampler": "cmaes", "params.queue_length": None, "params.augment~rotation": None} | NO_QUEUE,
            "sampler:",
            "sampler cmaes needs at least two params; take tpe",
        ),
        (
            {"sampler": "cmaes", "objective": ["probe/top1", "gpu_hours"]} | NO_QUEUE,
            "objective:",
            "objective: sampler cmaes knows only one; take tpe, nsga2 or gp",
        ),
        # scheduler
        ({"scheduler": "ash"}, "scheduler:", "scheduler.kind = 'ash': input should be 'none', 'asha' or 'median'"),
        (
            {"scheduler": {"kind": "asha", "first_rung": 6}},
            "scheduler:",
            "scheduler.first_rung 6: warm-up, frozen prototypes and queue start end with epoch 6 in some trials, so the first "
            "epoch to judge them at is 7",
        ),
        (
            {"scheduler": {"kind": "asha", "first_rung": 12}},
            "scheduler:",
            "scheduler asha: the first judgement, after epoch 12, is",
        ),
        (
            {"scheduler": {"kind": "asha", "every": 2}},
            "scheduler:",
            "scheduler: every does not go with kind asha; leave it out",
        ),
        (
            {"scheduler": {"kind": "median", "factor": 2}},
            "scheduler:",
            "scheduler: factor does not go with kind median; leave it",
        ),
        ({"scheduler": {"factor": 2}}, "scheduler:", "scheduler: factor does not go with kind none; leave it out"),
        (
            {"scheduler": "asha", "overrides.epochs": 7},
            "scheduler:",
            "scheduler asha: the first judgement, after epoch 7, is not b",
        ),
        (
            {"scheduler": "median", "overrides.epochs": 7},
            "scheduler:",
            "scheduler median: the first judgement, after epoch 7, is n",
        ),
        (
            {"scheduler": "asha", "objective": ["probe/top1", "gpu_hours"]},
            "scheduler:",
            "scheduler asha: with two objectives no tr",
        ),
        # objective and budget
        (
            {"objective": "gpu_hours"},
            "objective:",
            "objective: 'gpu_hours': needs probe/top1 or knn/top1, or [one of them, gpu_h",
        ),
        ({"objective": ["probe/top1"]}, "objective:", "objective: ['probe/top1']: needs "),
        ({"objective": ["gpu_hours", "probe/top1"]}, "objective:", "objective: ['gpu_hours', 'probe/top1']: needs "),
        ({"budget": {}}, "budget:", "budget needs at least one of trials, hours, gpu_hours"),
        ({"budget": {"hours": 0}}, "budget:", "budget.hours = 0: "),
        ({"budget": {"gpu_hour": 1}}, "budget:", "unknown key 'budget.gpu_hour' (did you mean 'budget.gpu_hours'?)"),
        # resources and confirm
        ({"resources": {"gpus": 1}}, "resources:", "resources: gpus is called gpus_per_worker, beside workers (of a trial, 1"),
        ({"resources": {"workers": 0}}, "resources:", "resources.workers: 0: needs a number of workers from 1 on, or [min, m"),
        ({"resources": {"workers": [2, 1]}}, "resources:", "resources: workers [2, 1]: the first must not be above the second"),
        ({"resources": {"workers": [1, 2, 3]}}, "workers:", "resources.workers: [1, 2, 3]: needs a number"),
        ({"resources": {"workers": 9}}, "resources:", "resources.workers 9: 9 workers cannot share 8 blocks a step"),
        (
            {"overrides.elastic~scale_lr_with_batch": True, "resources": {"workers": [1, 2]}},
            "workers:",
            "resources.workers [1, 2] with elastic.scale_lr_with_batch: a trial's batch would follow its workers, and",
        ),
        ({"confirm": {"seeds": 0}}, "confirm:", "confirm.seeds: 0: needs a number of seeds from 1 on, or a list of seeds from"),
        ({"confirm": {"seeds": [3, 3]}}, "confirm:", "confirm: seeds [3, 3] must name at least one seed, and each once"),
        ({"confirm": {"seeds": []}}, "confirm:", "confirm: seeds [] must name at least one seed, and each once"),
        (
            {"study": "runs/x.db"},
            "study:",
            "study: is no address of a database; write one of sqlite://..., postgresql://..., mysq",
        ),
        ({"study": 3}, "study:", "study: needs the address of a database"),
        # what no trial may vary, and what the overrides may not say
        ({"params.name": {"choice": ["a", "b"]}}, "name:", "params.name cannot be varied: the sweep names its trials"),
        (
            {"params.data~train": {"choice": ["a", "b"]}},
            "data.train:",
            "params.data.train cannot be varied: trials on different i",
        ),
        (
            {"params.elastic~max": {"int": [1, 2]}},
            "elastic.max:",
            "params.elastic.max cannot be varied: resources.workers says",
        ),
        (
            {"params.checkpoint~keep_last": {"int": [1, 2]}},
            "checkpoint.keep",
            "params.checkpoint.keep_last cannot be varied: it",
        ),
        ({"params.storage": {"choice": ["a", "b"]}}, "storage:", "params.storage cannot be varied: all trials are kept in one"),
        (
            {"params.probe~resize": {"int": [28, 32]}},
            "probe.resize:",
            "params.probe.resize cannot be varied: trials that are me",
        ),
        ({"overrides.elastic~max": 2}, "overrides:", "overrides.elastic.max: resources.workers says it for trials; set that"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_entry(changes: dict[str, Any], line: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(UserError) as caught:
        load_space(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}:"), message
    number, rest = message.removeprefix(f"{path}:").split(": ", 1)
    assert rest.startswith(said), rest
    named = path.read_text().splitlines()[int(number) - 1]
    assert named.strip().startswith(line), f"{named}: {rest}"


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    changes = {"sampler": "cmaes"} | NO_QUEUE
    with pytest.raises(UserError, match="sampler cmaes needs the package cmaes: pip install cmaes"):
        load_space(written(tmp_path, changes))


def test_a_seed_may_vary_and_chains_of_conditions_hold(tmp_path: Path) -> None:
    chain = {"params.seed": {"int": [0, 9]}, "params.momentum": {"uniform": [0, 0.9], "when": {"queue_start_epoch": 4}}}
    space = loaded(tmp_path, **chain)
    for number in range(12):
        point = propose(space, number, [])
        assert point is not None and ("momentum" in point.settings) == (point.settings.get("queue_start_epoch") == 4)
    assert math.isclose(space.config({}, trial=True).momentum, 0.9)
