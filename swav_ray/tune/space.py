"""The grammar of a sweep: which recipe, which settings to vary and how. Checked whole before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, Field, ValidationError, model_validator

from swav_ray.config import Config, Section, build_config, explain, known_keys, read_yaml, recipe_values, set_dotted
from swav_ray.errors import UserError, did_you_mean

IntPair = tuple[int, int]  # inside the class below `int` is a field


class Param(Section):
    """How one setting varies: exactly one of these."""

    choice: list[Any] | None = Field(None, min_length=1, description="one of these values")
    int: IntPair | None = Field(None, description="whole number between, ends included")
    logint: IntPair | None = Field(None, description="the same, evenly by order of magnitude")
    uniform: tuple[float, float] | None = Field(None, description="number between")
    loguniform: tuple[float, float] | None = Field(None, description="number between, evenly by order of magnitude")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in Param.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(Param.model_fields)}; found {', '.join(given) or 'none'}")
        if given[0] != "choice":
            low, high = getattr(self, given[0])
            if low >= high:
                raise ValueError(f"{given[0]} [{low}, {high}]: the first must be below the second")
            if given[0].startswith("log") and low <= 0:
                raise ValueError(f"{given[0]} [{low}, {high}]: both must be positive")
        return self

    def distribution(self) -> BaseDistribution:
        """The same for Optuna; lists among the choices travel as JSON text (see :func:`value_of`)."""
        if self.choice is not None:
            return CategoricalDistribution([json.dumps(v) if isinstance(v, list | dict) else v for v in self.choice])
        if self.int is not None or self.logint is not None:
            low, high = self.int or self.logint or (0, 0)
            return IntDistribution(low, high, log=self.logint is not None)
        low_f, high_f = self.uniform or self.loguniform or (0.0, 0.0)
        return FloatDistribution(low_f, high_f, log=self.loguniform is not None)

    def extremes(self) -> list[Any]:
        """Values that, if the schema takes them, it takes all."""
        if self.choice is not None:
            return list(self.choice)
        return list(self.int or self.logint or self.uniform or self.loguniform or ())

    def value_of(self, sampled: Any) -> Any:
        """The configuration's value of an Optuna value."""
        if self.choice is not None and isinstance(sampled, str) and sampled not in self.choice:
            return json.loads(sampled)
        return sampled


class Resources(Section):
    """What each trial takes of the cluster."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)


class Budget(Section):
    trials: int = Field(..., ge=1)


class Space(Section):
    """A sweep, as its YAML file says it."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    recipe: str = Field(..., description="base configuration: a recipe's name or a YAML")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="dotted settings of the trials only; best.yaml has the recipe's"
    )
    objective: Literal["probe/top1"] = "probe/top1"
    params: dict[str, Param] = Field(..., min_length=1)
    baseline: list[dict[str, Any]] = Field(default_factory=list, description="points tried first")
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0, description="of the sampler")
    budget: Budget
    concurrency: int = Field(1, ge=1)
    resources: Resources = Resources()

    def distributions(self) -> dict[str, BaseDistribution]:
        return {key: param.distribution() for key, param in self.params.items()}

    def values_of(self, sampled: dict[str, Any]) -> dict[str, Any]:
        """Dotted settings of sampled parameters."""
        return {key: self.params[key].value_of(value) for key, value in sampled.items()}

    def config(self, settings: dict[str, Any], *, trial: bool) -> Config:
        """The complete configuration of ``settings``: a trial's (with the overrides), or the recipe's own length."""
        values, source = recipe_values(self.recipe)
        for key, value in (self.overrides | settings if trial else settings).items():
            set_dotted(values, key, value, f"space {self.name}")
        return build_config(values, f"space {self.name} ({source}, {settings})")


def load_space(path: Path, overrides: dict[str, Any] | None = None, **changes: Any) -> Space:
    """A checked sweep from its file.

    Args:
        overrides: dotted settings of `--set`, on top of the file's own.
        changes: top-level keys to replace (`budget`, `concurrency`).

    Raises:
        UserError: the first mistake, with file, key, value and the mend; every bound, choice and baseline has been tried
            against the schema.
    """
    values = read_yaml(path) | {key: value for key, value in changes.items() if value is not None}
    try:
        space = Space.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, str(path), _space_keys())) from None
    if overrides:
        space = space.model_copy(update={"overrides": space.overrides | overrides})
    known = known_keys()
    for kind, keys in (("params", space.params), ("overrides", space.overrides)):
        for key in keys:
            if key not in known:
                raise UserError(f"{path}: {kind}.{key}: the configuration has no such key{did_you_mean(key, known)}")
    both = sorted(set(space.params) & set(space.overrides))
    if both:
        raise UserError(f"{path}: {both[0]} stands in params and in overrides; keep one")
    for number, point in enumerate(space.baseline):
        for key, value in point.items():
            if key not in space.params:
                raise UserError(f"{path}: baseline[{number}].{key} is not in params{did_you_mean(key, space.params)}")
            if not _contains(space.params[key], value):
                raise UserError(f"{path}: baseline[{number}].{key} = {value!r} lies outside of params.{key}")
    _check(space, path)
    return space


def _space_keys() -> dict[str, Any]:
    keys = known_keys(Space)
    return keys | dict.fromkeys(Space.model_fields) | {f"params.x.{name}": None for name in Param.model_fields}


def _contains(param: Param, value: Any) -> bool:
    if param.choice is not None:
        return value in param.choice
    low, high = param.extremes()
    whole = param.int is not None or param.logint is not None
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high


def _check(space: Space, path: Path) -> None:
    """Try each end and choice of each parameter, the others at a baseline or the recipe's value, and all ends together."""
    try:
        recipe_values(space.recipe)
    except UserError as error:
        raise UserError(f"{path}: recipe: {error}") from None
    point = space.baseline[0] if space.baseline else {}
    space_config = _Checked(space, path)
    space_config(point, ("baseline[0]" if space.baseline else "the recipe") + " with the overrides")
    for key, param in space.params.items():
        for value in param.extremes():
            space_config(point | {key: value}, f"params.{key} = {value!r}")
    for end in (0, -1):
        corner = {key: param.extremes()[end] for key, param in space.params.items()}
        space_config(corner, f"all params at their {'first' if end == 0 else 'last'} value")


class _Checked:
    def __init__(self, space: Space, path: Path) -> None:
        self.space, self.path = space, path

    def __call__(self, settings: dict[str, Any], what: str) -> None:
        for trial in (True, False):
            try:
                self.space.config(settings, trial=trial)
            except UserError as error:
                reason = str(error).split("): ", 1)[-1].split("}): ", 1)[-1]
                raise UserError(f"{self.path}: {what}: {reason}") from None


def make_sampler(space: Space, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of trial ``number``: its randomness is keyed by (seed, number), so a resumed sweep samples alike."""
    seed = (space.seed * 1_000_003 + number) % 2**32
    if space.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, len(space.baseline) + 3), constant_liar=False)


def schema() -> dict[str, Any]:
    """JSON schema of a sweep file, for editors."""
    model: type[BaseModel] = Space
    return model.model_json_schema()
