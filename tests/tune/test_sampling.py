"""Which point comes next: a function of the space, the number and the settled trials; each sampler learns, none forgets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from swav_ray.errors import UserError
from swav_ray.tune.sampling import Proposal, make_sampler, propose, settings_of
from swav_ray.tune.space import Space

K_TAU: dict[str, Any] = {"num_prototypes": {"logint": [20, 190]}, "temperature": {"loguniform": [0.05, 0.3]}}
QUEUE: dict[str, Any] = {
    "queue_length": {"choice": [0, 64, 256], "ordered": True},
    "queue_start_epoch": {"int": [3, 9], "step": 2, "when": {"queue_length": [64, 256]}},
}
FIT = "num_prototypes <= global_batch_size + queue_length"
Settings = dict[str, Any]


def make_space(**changes: Any) -> Space:
    values: dict[str, Any] = {"name": "x", "recipe": "demo-digits", "params": K_TAU | QUEUE, "constraints": [FIT]}
    return Space.model_validate(values | {"budget": {"trials": 30}} | changes)


def accuracy(point: Settings) -> float:
    return 0.9 - 0.05 * math.log(point["num_prototypes"] / 100) ** 2 - 0.1 * math.log(point["temperature"] / 0.12) ** 2


def ended(space: Space, proposal: Proposal, number: int) -> FrozenTrial:
    """How a made-up trial ends: most complete, some are stopped at epoch 3, some diverge, some lose their process."""
    attributes: dict[str, Any] = {}
    how: dict[str, Any] = {"state": TrialState.COMPLETE, "values": [accuracy(proposal.settings)]}
    if len(space.objectives) > 1:
        how["values"].append(proposal.settings["num_prototypes"] / 100)
    elif number % 7 == 3:
        how = {"state": TrialState.PRUNED, "intermediate_values": {3: accuracy(proposal.settings) - 0.1}}
    if number % 7 == 5:
        how, attributes = {"state": TrialState.FAIL}, {"verdict": "diverged"} if number % 2 else {}
    parts = {"params": proposal.params, "distributions": proposal.distributions, "system_attrs": proposal.system_attrs}
    return optuna.trial.create_trial(**how, **parts, user_attrs=attributes)


def swept(space: Space, count: int, lag: int = 2) -> tuple[list[FrozenTrial], list[Proposal]]:
    """``count`` trials, each sampled when those of so many numbers before had ended, and what was proposed."""
    trials: list[FrozenTrial] = []
    proposals = []
    for number in range(count):
        proposal = propose(space, number, trials[: max(0, number - lag + 1)])
        assert proposal is not None
        proposals.append(proposal)
        trials.append(ended(space, proposal, number))
    return trials, proposals


def without_queue(**changes: Any) -> Space:
    return make_space(params=K_TAU | {"epsilon": {"loguniform": [0.02, 0.1]}}, constraints=[], **changes)


ALL = [
    make_space(sampler="tpe"),
    make_space(sampler="random"),
    make_space(sampler="nsga2"),
    make_space(sampler="tpe", objective=["probe/top1", "gpu_hours"]),
    make_space(sampler="nsga2", objective=["probe/top1", "gpu_hours"]),
    without_queue(sampler="cmaes"),
]


@pytest.mark.parametrize("space", ALL, ids=lambda space: f"{space.sampler}-{len(space.objectives)}")
def test_every_point_is_possible_and_the_same_again(space: Space) -> None:
    trials, proposals = swept(space, 24)
    for number, (trial, proposal) in enumerate(zip(trials, proposals, strict=True)):
        assert space.refuses(proposal.settings) is None
        queue = proposal.settings.get("queue_length", 0)
        assert ("queue_start_epoch" in proposal.settings) == (queue > 0)
        assert proposal.settings.get("queue_start_epoch", 3) in (3, 5, 7, 9)
        assert settings_of(space, trial) == proposal.settings
        if number % 6 == 0:
            again = propose(space, number, trials[: max(0, number - 1)])
            # The pickle of CMA-ES holds memory that it has not written yet.
            assert again is not None and replace(again, system_attrs={}) == replace(proposal, system_attrs={})
            assert again.system_attrs.keys() == proposal.system_attrs.keys()


@pytest.mark.parametrize("space", ALL, ids=lambda space: f"{space.sampler}-{len(space.objectives)}")
def test_a_point_depends_on_no_trial_that_was_not_settled(space: Space) -> None:
    trials, proposals = swept(space, 20)
    assert propose(space, 19, trials[:18]) == proposals[19]
    assert (propose(space, 19, trials[:6]) == proposals[19]) == (space.sampler == "random")


@pytest.mark.parametrize(
    "space", [s for s in ALL if s.sampler != "random" and s.objectives == ("probe/top1",)], ids=lambda s: s.sampler
)
def test_a_sampler_learns(space: Space) -> None:
    count = 60
    trials, _ = swept(space, count)
    drawn, _ = swept(space.model_copy(update={"sampler": "random"}), count)
    late, chance = ([t.values[0] for t in some[20:] if t.state == TrialState.COMPLETE] for some in (trials, drawn))
    assert sum(late) / len(late) > sum(chance) / len(chance)


def test_a_gaussian_process_learns_and_is_pure() -> None:
    space = without_queue(sampler="gp")
    trials, _ = swept(space.model_copy(update={"sampler": "random"}), 12)
    first, again = propose(space, 12, trials), propose(space, 12, trials)
    assert first == again and first is not None and first != propose(space, 12, trials[:10])
    assert accuracy(first.settings) > sum(t.value for t in trials if t.value) / sum(t.value is not None for t in trials)


def test_cma_es_and_nsga2_go_on_from_what_the_journal_holds() -> None:
    trials, _ = swept(without_queue(sampler="cmaes"), 30)
    assert len({t.system_attrs["cma:generation"] for t in trials if t.system_attrs}) > 1
    assert any(key.startswith("cma:optimizer") for t in trials for key in t.system_attrs)
    point = {"num_prototypes": 60, "temperature": 0.1, "epsilon": 0.05}
    trials, _ = swept(without_queue(sampler="cmaes", baseline=[point, {"epsilon": 0.04}]), 3, lag=1)
    assert [bool(t.system_attrs) for t in trials] == [False, False, True]  # a baseline is not of its drawing
    whole = {"num_prototypes": 60, "temperature": 0.1, "queue_length": 0}
    trials, _ = swept(make_space(sampler="nsga2", baseline=[whole]), 40)
    assert {t.system_attrs["NSGAIISampler:generation"] for t in trials} == {0, 1, 2}


def test_a_diverged_trial_is_the_worst_and_a_lost_one_teaches_nothing() -> None:
    """All that diverged lie at high temperatures: a sampler that is told keeps away from there."""
    space = make_space(params=K_TAU, constraints=[], sampler="tpe")
    trials, _ = swept(space.model_copy(update={"sampler": "random"}), 20, lag=1)
    shown: dict[str, list[float]] = {}
    for verdict in ("diverged", "lost"):
        known = []
        for trial in trials:
            parts = {"params": trial.params, "distributions": trial.distributions}
            if trial.params["temperature"] > 0.12:
                known.append(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"verdict": verdict}, **parts))
            else:
                known.append(optuna.trial.create_trial(state=TrialState.COMPLETE, value=0.9, **parts))
        points = [propose(space, number, known) for number in range(20, 60)]
        shown[verdict] = [point.settings["temperature"] for point in points if point is not None]
    hot = {verdict: sum(value > 0.12 for value in values) for verdict, values in shown.items()}
    assert hot["diverged"] < 8 and hot["diverged"] < hot["lost"] / 2, hot
    without = [trial for trial in known if trial.state == TrialState.COMPLETE]
    assert propose(space, 20, known) == propose(space, 20, without)


def test_params_that_come_and_go_are_modelled_in_groups() -> None:
    assert make_sampler(make_space(), 0)._group and not make_sampler(without_queue(), 0)._group  # type: ignore[attr-defined]


def test_baselines_come_first_and_what_they_leave_open_is_found() -> None:
    baseline = [{"num_prototypes": 150}, {"num_prototypes": 60, "temperature": 0.1, "queue_length": 64, "queue_start_epoch": 5}]
    space = make_space(baseline=baseline)
    _, (first, second, third) = swept(space, 3)
    assert first.baseline and first.settings["num_prototypes"] == 150 and first.settings["queue_length"] == 256
    assert second.baseline and second.settings == baseline[1] and not third.baseline


# --- grid


GRID: dict[str, Any] = {
    "num_prototypes": {"int": [20, 200], "step": 60},
    "queue_length": {"choice": [0, 128]},
    "queue_start_epoch": {"choice": [3, 5], "when": {"queue_length": 128}},
    "temperature": {"uniform": [0.1, 0.2], "step": 0.05},
}


def grid(**changes: Any) -> Space:
    return make_space(**{"params": GRID, "sampler": "grid", "budget": {}} | changes)


def key_of(point: Settings) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(point.items()))


def test_a_grid_is_every_possible_point_once_and_then_nothing() -> None:
    space = grid()
    wanted = []
    for k, tau, (queue, start) in itertools.product((20, 80, 140, 200), (0.1, 0.15, 0.2), ((0, 0), (128, 3), (128, 5))):
        if k <= 64 + queue:
            point = {"num_prototypes": k, "temperature": tau, "queue_length": queue}
            wanted.append(key_of(point | ({"queue_start_epoch": start} if queue else {})))
    assert space.trials == len(wanted) == 3 * (1 + 3 * 2)
    found = [propose(space, number, []) for number in range(len(wanted))]
    assert sorted(key_of(one.settings) for one in found if one is not None) == sorted(wanted)
    assert propose(space, len(wanted), []) is None
    assert [propose(space, 0, []), propose(grid(seed=1), 0, [])].count(found[0]) == 1  # the order is the seed's


def test_a_baseline_of_a_grid_is_not_run_again() -> None:
    first = {"num_prototypes": 20, "temperature": 0.15, "queue_length": 0}
    space = grid(baseline=[first, {"num_prototypes": 80}])
    found = [propose(space, number, []) for number in range(space.trials or 0)]
    points = [one.settings for one in found if one is not None]
    assert len(points) == len(found) and points[0] == first and points.count(first) == 1


def test_a_smaller_budget_ends_a_grid() -> None:
    assert grid(budget={"trials": 5}).trials == 5
    assert grid(budget={"trials": 500}).trials == 21


# --- what cannot be


def test_a_space_without_points_ends_in_one_line() -> None:
    space = make_space(constraints=["num_prototypes > 500"])
    with pytest.raises(UserError, match=r"constraints: none of 20,000 points drawn for trial 0 is possible"):
        propose(space, 0, [])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from(["tpe", "random", "nsga2"]),
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.lists(st.sampled_from(["c", "o", "i", "s", "l", "u", "w"]), min_size=1, max_size=4, unique=True),
)
def test_any_space_gives_points_inside_it(sampler: str, seed: int, lag: int, kinds: list[str]) -> None:
    kinds_of: dict[str, dict[str, Any]] = {
        "c": {"crop_counts": {"choice": [[2, 2], [2, 4]]}},
        "o": {"num_prototypes": {"choice": [20, 40, 60], "ordered": True}},
        "i": {"sinkhorn_iterations": {"int": [1, 9], "step": 4}},
        "s": {"augment.flip": {"uniform": [0, 0.5], "step": 0.1}},
        "l": {"hidden_dim": {"logint": [16, 512]}},
        "u": {"base_lr": {"loguniform": [0.001, 0.01]}},
        "w": {"optimizer": {"choice": ["adamw", "sgd"]}, "momentum": {"uniform": [0, 0.9], "when": {"optimizer": "sgd"}}},
    }
    params: dict[str, Any] = {}
    for kind in kinds:
        params |= kinds_of[kind]
    space = Space.model_validate(
        {"name": "x", "recipe": "demo-digits", "params": params, "sampler": sampler, "seed": seed, "budget": {"trials": 9}}
    )
    trials: list[FrozenTrial] = []
    for number in range(9):
        proposal = propose(space, number, trials[: max(0, number - lag + 1)])
        assert proposal is not None
        for key, value in proposal.settings.items():
            assert space.params[key].contains(value), (key, value)
            assert space.params[key].value_of(space.params[key].sampled(value)) == value
        assert ("momentum" in proposal.settings) == (proposal.settings.get("optimizer") == "sgd")
        space.config(proposal.settings, trial=True)
        parts = {"params": proposal.params, "distributions": proposal.distributions, "system_attrs": proposal.system_attrs}
        trials.append(optuna.trial.create_trial(state=TrialState.COMPLETE, value=number / 9, **parts))
