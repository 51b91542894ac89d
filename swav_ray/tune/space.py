"""A sweep as its YAML file says it: which recipe, which settings to vary and how. Checked whole before anything starts."""

from __future__ import annotations

import copy
import functools
import math
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from optuna.distributions import BaseDistribution
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from swav_ray.config import Config, Section, build_config, known_keys, read_recipe, set_dotted
from swav_ray.errors import UserError, explain
from swav_ray.tune.constraints import Constraint
from swav_ray.tune.grid import grid_points
from swav_ray.tune.params import Param, same
from swav_ray.tune.space_check import Mistake, check, under
from swav_ray.tune.space_sections import Budget, Confirm, Resources, Scheduler, either
from swav_ray.tune.study_url import check_study_url, redacted
from swav_ray.yaml_files import Lines, read_mapping

Accuracy = Literal["probe/top1", "knn/top1"]
Direction = Literal["minimize", "maximize"]
MEANS = ("budget", "concurrency", "resources", "confirm", "study")  # may change while a sweep goes on
ELSEWHERE = (
    "name",
    "storage",
    "elastic",
    "checkpoint",
    "trackers",
    "data.test",
    "data.crop_in",
    "data.bridge_seconds",
)  # these too
PLACES = ("data", "storage")  # overrides that hold for whoever comes after the trials too: where things are
constraint_of = functools.lru_cache(Constraint)


class Space(Section):
    """A sweep. :func:`load_space` checks it; one made otherwise is only checked entry by entry."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the sweep; its folder under `storage`")
    recipe: str = Field(..., description="base configuration: a recipe's name or a YAML")
    overrides: dict[str, Any] = Field(
        {}, description="dotted settings of the trials only, but for data.* and storage; best.yaml has the recipe's"
    )
    objective: Annotated[
        Accuracy | tuple[Accuracy, Literal["gpu_hours"]],
        either("probe/top1 or knn/top1, or [one of them, gpu_hours] for accuracy against cost"),
    ] = Field("probe/top1", description="accuracy on held-out training images; [accuracy, gpu_hours]: the best for each cost")
    params: dict[str, Param] = Field(..., min_length=1, description="dotted settings of the configuration that vary")
    constraints: list[str] = Field([], description="comparisons of settings, as queue_length >= 2 * num_prototypes")
    baseline: list[dict[str, Any]] = Field([], description="points tried first")
    sampler: Literal["tpe", "random", "grid", "cmaes", "gp", "nsga2"] = "tpe"
    scheduler: Scheduler = Scheduler()
    seed: int = Field(0, ge=0, description="of the sampler")
    budget: Budget = Budget()
    concurrency: int = Field(1, ge=1, description="trials at a time")
    resources: Resources = Resources()
    confirm: Confirm = Confirm()
    study: str | None = Field(
        None, repr=False, description="sqlite:///FILE, postgresql://... or mysql://...; null: a journal in the sweep's folder"
    )
    _recipe: tuple[dict[str, Any], Lines] | None = PrivateAttr(None)
    _grid: list[dict[str, Any]] | None = PrivateAttr(None)

    @field_validator("study", mode="before")
    @classmethod
    def _study(cls, value: Any) -> Any:
        return check_study_url(value)

    @model_validator(mode="after")
    def _plain(self) -> Self:
        for point in self.baseline:  # 3 for a number is 3.0: the journal and the tables have one form of a value
            for key, value in point.items():
                param = self.params.get(key)
                if param is not None and param.choice is None and not param.whole and type(value) is int:
                    point[key] = float(value)
        return self

    # --- what is wanted

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    def directions(self) -> list[Direction]:
        """Of the objectives, as Optuna names them."""
        return ["minimize" if name == "gpu_hours" else "maximize" for name in self.objectives]

    @property
    def trials(self) -> int | None:
        """How many trials end the sweep; None where only time does."""
        if self.sampler != "grid":
            return self.budget.trials
        points = len(self.grid) + len(self.baseline)
        return min(points, self.budget.trials or points)

    @property
    def grid(self) -> list[dict[str, Any]]:
        """Settings of all points of a grid beside the baselines, in the seed's order.

        Raises:
            ValueError: too many points.
        """
        if self._grid is None:
            self._grid = grid_points(self)
        return self._grid

    # --- which settings

    def distributions(self) -> dict[str, BaseDistribution]:
        return {key: param.distribution() for key, param in self.params.items()}

    def order(self) -> list[str]:
        """The params, each after those its `when` asks for.

        Raises:
            graphlib.CycleError: there is no such order.
        """
        return list(TopologicalSorter({key: list(param.when) for key, param in self.params.items()}).static_order())

    def active(self, key: str, settings: dict[str, Any]) -> bool:
        """Whether param ``key`` varies, given the settings sampled before it."""
        return all(
            other in settings and any(same(settings[other], value) for value in self.params[other].listed(values))
            for other, values in self.params[key].when.items()
        )

    def values_of(self, sampled: dict[str, Any]) -> dict[str, Any]:
        """Dotted settings of sampled parameters."""
        return {key: self.params[key].value_of(value) for key, value in sampled.items()}

    def look(self, settings: dict[str, Any], key: str) -> Any:
        """The value of dotted ``key`` in a trial with ``settings``, as it stands before the schema has read it."""
        for values in (settings, self.overrides):
            if key in values:
                return values[key]
        value: Any = self._read_recipe()[0]
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return known_keys()[key].get_default(call_default_factory=True)
            value = value[part]
        return value

    def violated(self, settings: dict[str, Any]) -> str | None:
        """The first constraint that ``settings`` do not satisfy."""
        look = functools.partial(self._number, settings)
        return next((text for text in self.constraints if not constraint_of(text).holds(look)), None)

    def _number(self, settings: dict[str, Any], key: str) -> float:
        value = self.look(settings, key)
        try:
            return value if isinstance(value, int | float) else float(value)
        except (TypeError, ValueError):
            return math.nan  # compares with nothing; the schema says what is wrong with it

    def refuses(self, settings: dict[str, Any]) -> str | None:
        """Why no trial can have these settings; None if one can."""
        violated = self.violated(settings)
        if violated is not None:
            return f"constraint {violated!r}"
        try:
            for trial in (True, False):
                self.build(settings, trial=trial)
        except (UserError, ValidationError) as error:
            return explain(error, "", known_keys()).removeprefix(": ") if isinstance(error, ValidationError) else str(error)
        return None

    # --- the configuration

    def config(self, settings: dict[str, Any], *, trial: bool) -> Config:
        """The complete configuration of ``settings``: a trial's (with the overrides), or the recipe's own length."""
        values, lines = self._values(settings, trial)
        return build_config(values, f"space {self.name} ({lines.file}, {settings})")

    def build(self, settings: dict[str, Any], *, trial: bool) -> Config:
        """:meth:`config`, raising pydantic's own error."""
        return Config.model_validate(self._values(settings, trial)[0])

    def _read_recipe(self) -> tuple[dict[str, Any], Lines]:
        if self._recipe is None:
            self._recipe = read_recipe(self.recipe)
        return self._recipe

    def _values(self, settings: dict[str, Any], trial: bool) -> tuple[dict[str, Any], Lines]:
        values, lines = self._read_recipe()
        values = copy.deepcopy(values)
        lasting = {key: value for key, value in self.overrides.items() if under(key, PLACES)}
        for key, value in (self.overrides | self._workers() | settings if trial else lasting | settings).items():
            set_dotted(values, key, value, f"space {self.name}")
        return values, lines

    def _workers(self) -> dict[str, Any]:
        low, high = self.resources.worker_range
        sizes = self.look({}, "elastic.sizes")
        return {
            "elastic.min": low,
            "elastic.max": high,
            "elastic.sizes": [size for size in sizes if low <= size <= high] if isinstance(sizes, list) else sizes,
            "elastic.cpus_per_worker": self.resources.cpus_per_worker,
            "elastic.gpus_per_worker": self.resources.gpus_per_worker,
        }

    # --- early stopping

    def first_possible_rung(self) -> int:
        """The first 1-based epoch by whose end every trial's warm-up, freeze and queue start are over."""
        queue = self._ends("queue_start_epoch")[1] if self._ends("queue_length")[1] > 0 else 0
        return math.ceil(max(self._ends("warmup_epochs")[1], self._ends("freeze_prototypes_epochs")[1], queue)) + 1

    def shortest(self) -> int:
        """Epochs of the shortest trial."""
        return int(self._ends("epochs")[0])

    def _ends(self, key: str) -> tuple[float, float]:
        """The smallest and largest value that a trial may have."""
        values = [self._number({key: value}, key) for value in self.params[key].extremes()] if key in self.params else []
        if key not in self.params or self.params[key].when:
            values.append(self._number({}, key))
        return min(values), max(values)

    def rungs(self, config: Config) -> tuple[int, ...]:
        """The 1-based epochs, all below ``config.epochs``, at whose ends a trial is judged; none without a scheduler."""
        return self.scheduler.rungs(self.scheduler.first_rung or self.first_possible_rung(), config.epochs)

    # --- the same sweep

    def defining(self) -> dict[str, Any]:
        """What makes it the same sweep, as JSON takes it: all but how long, on what and where; the recipe's settings too."""
        content = self.model_dump(mode="json", exclude={*MEANS, "overrides"})
        point = self.baseline[0] if self.baseline else {}
        settings = flat(self.config(point, trial=True).model_dump(mode="json"))
        for key, param in self.params.items():
            settings.pop(key, None)
            if param.when:  # else the recipe's value is never used
                settings[key] = self.look({}, key)
        content["settings"] = {key: value for key, value in settings.items() if under(key, ELSEWHERE) is None}
        return content

    def shown_study(self) -> str | None:
        """The study's address without a password."""
        return redacted(self.study) if self.study else None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return out


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two :meth:`Space.defining`: ``seed: 0 -> 1; settings.epochs: 6 -> 3``."""
    varied = {*old.get("params", {}), *new.get("params", {})}
    if old.get("recipe") != new.get("recipe"):  # whose settings differ then needs no saying
        varied |= {*old.get("settings", {}), *new.get("settings", {})}
    sides = []
    for content in (old, new):
        side = {key: _short(value) for key, value in content.items() if key not in ("settings", "params")}
        side |= {f"params.{key}": _short(value) for key, value in content.get("params", {}).items()}
        side |= {f"settings.{key}": value for key, value in content.get("settings", {}).items() if key not in varied}
        sides.append(side)
    before, after = sides
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return "; ".join(f"{key}: {before.get(key, 'none')} -> {after.get(key, 'none')}" for key in keys)


def _short(section: Any) -> Any:
    """A section without what is not said in it."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if value is not None and value is not False and value != {}}


def load_space(path: Path, overrides: dict[str, Any] | None = None, **changes: Any) -> Space:
    """A checked sweep from its file.

    Args:
        overrides: dotted settings of `--set`, on top of the file's own.
        changes: top-level keys to replace (`budget`, `concurrency`); of a section, the entries given.

    Raises:
        UserError: the first mistake, with file, line, key, value and the mend; every bound, choice and baseline has been
            tried against the schema.
    """
    values, lines = read_mapping(path)
    overrides = overrides or {}
    changes = {key: value for key, value in changes.items() if value is not None}
    values = merged(values, overrides, changes)

    def place(entry: tuple[Any, ...]) -> str:
        if len(entry) > 1 and entry[0] == "overrides" and entry[1] in overrides:
            return "--set"
        if entry and entry[0] in changes:
            change = changes[entry[0]]
            if not isinstance(change, dict) or not entry[1:] or entry[1] in change:
                return "the command line"
        return lines.place(entry)

    try:
        space = Space.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, place, _space_keys())) from None
    try:
        space._read_recipe()
    except UserError as error:
        raise UserError(f"{place(('recipe',))}: recipe: {error}") from None
    try:
        check(space)
    except Mistake as mistake:
        source = place(mistake.path)
        message = str(mistake).removeprefix("overrides.") if source == "--set" else str(mistake)
        raise UserError(f"{source}: {message}") from None
    return space


def merged(values: dict[str, Any], overrides: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A space file's ``values`` with what the command line says on top, as :func:`load_space` takes it."""
    for key, value in changes.items():
        if value is not None:
            inside = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = values[key] | value if inside else value
    if overrides and isinstance(values.get("overrides", {}), dict):
        values["overrides"] = values.get("overrides", {}) | overrides
    return values


def _space_keys() -> dict[str, Any]:
    return known_keys(Space) | dict.fromkeys(Space.model_fields) | {f"params.x.{name}": None for name in Param.model_fields}
