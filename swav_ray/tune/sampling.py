"""The next point of a sweep: a function of the space, the trial's number and the settled results before it, of nothing else.

Optuna's samplers draw it in a private study in memory that knows those results. What a sampler must find again in later
trials (the state of CMA-ES, the generation in NSGA-II) travels in `Proposal.system_attrs`, and from there in the journal.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from swav_ray.errors import UserError
from swav_ray.tune.space_check import draw

if TYPE_CHECKING:
    from swav_ray.tune.space import Space

ASKED = {"gp": 5}  # points a sampler may offer that no trial can have; a Gaussian process offers nearly the same again
ASKED_OTHERS = 30
DRAWN = 20_000  # then so many are drawn at random
POPULATION = 10  # of NSGA-II; Optuna's 50 is more than most sweeps' trials
DIVERGED = "diverged"


@dataclass(frozen=True)
class Proposal:
    """A trial to be: what Optuna stores of it, and the configuration's settings."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    system_attrs: dict[str, Any]
    settings: dict[str, Any]
    baseline: bool


def propose(space: Space, number: int, settled: Sequence[FrozenTrial]) -> Proposal | None:
    """Trial ``number`` of a sweep: the baselines first, then the sampler's.

    Args:
        settled: earlier trials, by number, that have ended; the caller must take them by number, not by who was quicker.

    Returns:
        None when a grid has no more points.

    Raises:
        UserError: no possible point found; :func:`~swav_ray.tune.space.load_space` makes this unlikely.
    """
    baseline = number < len(space.baseline)
    given = space.baseline[number] if baseline else {}
    if space.sampler == "grid" and not baseline:
        position = number - len(space.baseline)
        return _proposal(space, space.grid[position]) if position < len(space.grid) else None
    if space.sampler != "grid":
        for asked, attributes in _offers(space, number, settled, given):
            settings = space.values_of(asked)
            if space.refuses(settings) is None:
                return _proposal(space, settings, attributes, baseline)
    generator = random.Random(f"{space.seed} {number}")
    for _ in range(DRAWN):
        settings = draw(space, given, generator)
        if space.refuses(settings) is None:
            return _proposal(space, settings, baseline=baseline)
    raise UserError(f"constraints: none of {DRAWN:,} points drawn for trial {number} is possible; widen them")


def settings_of(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """The dotted settings of a trial of the study."""
    return space.values_of(trial.params)


def _proposal(
    space: Space, settings: dict[str, Any], attributes: dict[str, Any] | None = None, baseline: bool = False
) -> Proposal:
    return Proposal(
        params={key: space.params[key].sampled(value) for key, value in settings.items()},
        distributions={key: space.params[key].distribution() for key in settings},
        system_attrs=attributes or {},
        settings=settings,
        baseline=baseline,
    )


def _offers(
    space: Space, number: int, settled: Sequence[FrozenTrial], given: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Points the sampler suggests, as Optuna samples them, each with the sampler's attributes."""
    order, distributions = space.order(), space.distributions()
    fixed = {key: space.params[key].sampled(value) for key, value in given.items()}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=space.directions())
    study.add_trials(list(_known(space, settled)))
    for attempt in range(ASKED.get(space.sampler, ASKED_OTHERS)):
        study.sampler = make_sampler(space, number, attempt)
        if fixed:
            study.enqueue_trial(fixed)
        with warnings.catch_warnings(action="ignore"):  # of what Optuna calls experimental
            trial = study.ask()
            for key in order:
                if space.active(key, space.values_of(trial.params)):
                    _suggest(trial, key, distributions[key])
        attributes = dict(study.get_trials(deepcopy=False)[-1].system_attrs)
        attributes.pop("fixed_params", None)
        if fixed:  # CMA-ES must not take a point for its own that it did not draw
            attributes = {key: value for key, value in attributes.items() if not key.startswith("cma")}
        yield dict(trial.params), attributes
        study.tell(trial, state=TrialState.FAIL)


def _known(space: Space, settled: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """What the sampler learns from: values, rungs of stopped trials, and that a diverged one was worse than any."""
    several = len(space.objectives) > 1
    for trial in settled:
        if trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and not several):
            yield trial
        elif trial.state == TrialState.FAIL and trial.user_attrs.get("verdict") == DIVERGED and not several:
            yield optuna.trial.create_trial(
                state=TrialState.PRUNED,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=trial.system_attrs,
            )


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def make_sampler(space: Space, number: int, attempt: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of trial ``number``: its randomness is keyed by (seed, number), so a resumed sweep samples alike."""
    seed = (space.seed * 1_000_003 + number + attempt * 7_919) % 2**32
    startup = max(5, len(space.baseline) + 3)
    conditional = any(param.when for param in space.params.values())
    with warnings.catch_warnings(action="ignore"):
        if space.sampler == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=startup,
                constant_liar=False,
                group=conditional,
                multivariate=True if conditional else None,
                warn_independent_sampling=False,
            )
        if space.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)
        if space.sampler == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, deterministic_objective=False, warn_independent_sampling=False
            )
        if space.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        return optuna.samplers.RandomSampler(seed=seed)
