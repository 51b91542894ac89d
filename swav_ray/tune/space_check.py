"""What can be wrong with a sweep beyond its single entries: found before anything starts, with the entry it stands in."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from collections.abc import Iterable
from graphlib import CycleError
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

from swav_ray.config import known_keys
from swav_ray.errors import UserError, did_you_mean, explain, shown
from swav_ray.tune.constraints import Constraint
from swav_ray.tune.grid import grid_points

if TYPE_CHECKING:
    from swav_ray.tune.space import Space

DRAWS = 2000  # points tried before a space is said to have none
NOT_SWEPT = {
    "name": "the sweep names its trials",
    "storage": "all trials are kept in one place",
    "data.train": "trials on different images cannot be compared",
    "data.test": "no trial looks at the test images",
    "data.crop_in": "it changes nothing that is computed",
    "data.bridge_seconds": "it changes nothing that is computed",
    "data.log_ids": "it changes nothing that is computed",
    "elastic": "resources.workers says how many workers a trial has",
    "checkpoint": "it changes nothing that is computed",
    "probe": "trials that are measured differently cannot be compared",
}
FROM_RESOURCES = {
    "elastic.min": "workers",
    "elastic.max": "workers",
    "elastic.cpus_per_worker": "cpus_per_worker",
    "elastic.gpus_per_worker": "gpus_per_worker",
}
PACKAGES = {"cmaes": "cmaes", "gp": "scipy"}


class Mistake(Exception):  # noqa: N818  a user's, on its way to becoming a UserError
    """What is wrong, and the path of the entry it stands in."""

    def __init__(self, path: tuple[Any, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


def check(space: Space) -> None:
    """Find the first mistake of a sweep whose entries are right one by one.

    Raises:
        Mistake: and where it stands.
    """
    _keys(space)
    _conditions(space)
    _constraints(space)
    _ways(space)
    _points(space)
    if space.sampler == "grid":
        try:
            space._grid = grid_points(space)
        except ValueError as error:
            raise Mistake(("params",), str(error)) from None
    _rungs(space)


def _keys(space: Space) -> None:
    known = known_keys()
    for kind, keys in (("params", space.params), ("overrides", space.overrides)):
        for key in keys:
            if key not in known:
                raise Mistake((kind, key), f"{kind}.{key}: the configuration has no such key{did_you_mean(key, known)}")
    for key in space.params:
        if key in space.overrides:
            raise Mistake(("overrides", key), f"{key} stands in params and in overrides; keep one")
        name = under(key, NOT_SWEPT)
        if name is not None:
            raise Mistake(("params", key), f"params.{key} cannot be varied: {NOT_SWEPT[name]}")
    for key in space.overrides:
        if key in FROM_RESOURCES:
            raise Mistake(("overrides", key), f"overrides.{key}: resources.{FROM_RESOURCES[key]} says it for trials; set that")


def under(key: str, names: Iterable[str]) -> str | None:
    """Which of ``names`` the dotted ``key`` is, or lies in."""
    return next((name for name in names if key == name or key.startswith(f"{name}.")), None)


def _conditions(space: Space) -> None:
    for key, param in space.params.items():
        for other, values in param.when.items():
            path, what = ("params", key, "when", other), f"params.{key}.when.{other}"
            if other not in space.params:
                raise Mistake(path, f"{what} is not in params{did_you_mean(other, space.params)}")
            asked = space.params[other]
            if asked.choice is None and not asked.whole and asked.step is None:
                raise Mistake(path, f"{what}: {asked.kind} never hits a value exactly; give params.{other} a choice or a step")
            for value in asked.listed(values):
                if not asked.contains(value):
                    raise Mistake(path, f"{what} = {shown(value)} lies outside of params.{other}")
            if values == []:
                raise Mistake(path, f"{what} = []: names no value")
    try:
        space.order()
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        raise Mistake(("params", cycle[0], "when"), f"params.{cycle[0]}.when: asks for itself: {' -> '.join(cycle)}") from None


def _constraints(space: Space) -> None:
    for number, text in enumerate(space.constraints):
        try:
            Constraint(text)
        except ValueError as error:
            raise Mistake(("constraints", number), f"constraints[{number}]: {error}") from None


def _ways(space: Space) -> None:
    """Sampler, scheduler, objective and budget must fit each other and what varies."""
    several = len(space.objectives) > 1
    if space.sampler == "cmaes":
        for key, param in space.params.items():
            if param.choice is not None and not param.ordered:
                raise Mistake(
                    ("params", key), f"params.{key}: sampler cmaes knows numbers only; say ordered: true, or take tpe"
                )
            if param.when:
                raise Mistake(
                    ("params", key, "when"), f"params.{key}.when: sampler cmaes needs all params in all trials; use tpe"
                )
        if len(space.params) < 2:
            raise Mistake(("sampler",), "sampler cmaes needs at least two params; take tpe")
        if several:
            raise Mistake(("objective",), "objective: sampler cmaes knows only one; take tpe, nsga2 or gp")
    package = PACKAGES.get(space.sampler)
    if package is not None and importlib.util.find_spec(package) is None:
        raise Mistake(("sampler",), f"sampler {space.sampler} needs the package {package}: pip install {package}")
    if several and space.scheduler.kind != "none":
        raise Mistake(
            ("scheduler",),
            f"scheduler {space.scheduler.kind}: with two objectives no trial is clearly worse; set it to none",
        )
    budget = space.budget
    if space.sampler != "grid" and budget.trials is None and budget.hours is None and budget.gpu_hours is None:
        raise Mistake(("budget",), "budget needs at least one of trials, hours, gpu_hours")


def _points(space: Space) -> None:
    """The baselines, each end and choice of each param, all ends together: the schema must take what the constraints do."""
    first = space.baseline[0] if space.baseline else {}
    for number, point in enumerate(space.baseline):
        _baseline(space, number, point)
    start = ("baseline[0]" if space.baseline else "the recipe") + " with the overrides"
    _take(space, first, start, ("baseline", 0) if space.baseline else ("recipe",))
    for number, point in enumerate(space.baseline):
        _possible(space, number, point)
    scaled = space.config(first, trial=True).elastic
    if scaled.scale_lr_with_batch and scaled.min < scaled.max:
        raise Mistake(
            ("resources", "workers"),
            f"resources.workers [{scaled.min}, {scaled.max}] with elastic.scale_lr_with_batch: a trial's batch would follow "
            "its workers, and trials could not be compared; give one number of workers",
        )
    for key, param in space.params.items():
        for position, value in enumerate(param.extremes()):
            path = ("params", key, param.kind, position)
            _field(key, value, path)
            _take(space, _with(space, first, key, value), f"params.{key} = {shown(value)}", path)
    for end in (0, -1):
        corner: dict[str, Any] = {}
        for key in space.order():
            if space.active(key, corner):
                corner[key] = space.params[key].extremes()[end]
        _take(space, corner, f"all params at their {'first' if end == 0 else 'last'} value", ("params",))
    _some_point(space, {}, ("constraints",) if space.constraints else ("params",), "params")


def _baseline(space: Space, number: int, point: dict[str, Any]) -> None:
    for key, value in point.items():
        path, what = ("baseline", number, key), f"baseline[{number}].{key}"
        if key not in space.params:
            raise Mistake(path, f"{what} is not in params{did_you_mean(key, space.params)}")
        if not space.params[key].contains(value):
            raise Mistake(path, f"{what} = {shown(value)} lies outside of params.{key}")
        if not space.active(key, point):
            raise Mistake(path, f"{what}: varies only when {_when(space, key)}; give that too, or leave it out")


def _possible(space: Space, number: int, point: dict[str, Any]) -> None:
    """A whole baseline must be a point that a trial can have; the rest of another one must be found."""
    if set(point) == {key for key in space.params if space.active(key, point)}:
        violated = space.violated(point)
        if violated is not None:
            raise Mistake(("baseline", number), f"baseline[{number}] does not satisfy the constraint {violated!r}")
        _take(space, point, f"baseline[{number}]", ("baseline", number))
    else:
        _some_point(space, point, ("baseline", number), f"baseline[{number}]")


def _when(space: Space, key: str) -> str:
    return " and ".join(f"{other} is {shown(values)}" for other, values in space.params[key].when.items())


def _field(key: str, value: Any, path: tuple[Any, ...]) -> None:
    """The schema's entry of ``key`` alone must take the value."""
    field = known_keys()[key]
    try:
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        mistake = error.errors()[0]
        message = mistake["msg"]
        raise Mistake(path, f"params.{key} = {shown(value)}: {message[0].lower()}{message[1:]}") from None


def _with(space: Space, point: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``point`` with ``key`` at ``value``, and what its `when` asks for at the first value that will do."""
    found = {key: value}
    pending = [key]
    while pending:
        for other, values in space.params[pending.pop()].when.items():
            if other not in found:
                found[other] = space.params[other].listed(values)[0]
                pending.append(other)
    point = point | found
    joined: dict[str, Any] = {}
    for name in space.order():
        if name in point and space.active(name, joined):
            joined[name] = point[name]
    return joined


def _take(space: Space, point: dict[str, Any], what: str, path: tuple[Any, ...]) -> None:
    """The schema must take ``point``, for a trial and for the best configuration, unless a constraint excludes it."""
    if space.violated(point) is not None:
        return
    for trial in (True, False):
        try:
            space.build(point, trial=trial)
        except UserError as error:
            raise Mistake(("recipe",), str(error)) from None
        except ValidationError as error:
            loc = error.errors()[0]["loc"]
            keys = [".".join(map(str, loc[:length])) for length in range(1, len(loc) + 1)]
            blamed = next((("overrides", key) for key in keys if trial and key in space.overrides), path)
            raise Mistake(blamed, f"{what}: {explain(error, '', known_keys()).removeprefix(': ')}") from None


def _some_point(space: Space, point: dict[str, Any], path: tuple[Any, ...], what: str) -> None:
    """Of points drawn at random, with ``point`` given, some must be possible."""
    generator, reasons = random.Random(0), Counter[str]()
    for _ in range(DRAWS):
        reason = space.refuses(draw(space, point, generator))
        if reason is None:
            return
        reasons[reason if reason.startswith("constraint") else "schema"] += 1
        last = reason
    commonest = reasons.most_common(1)[0][0]
    raise Mistake(
        path, f"{what}: none of {DRAWS:,} points is possible; most fail for {last if commonest == 'schema' else commonest}"
    )


def draw(space: Space, given: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """Settings at random, those ``given`` apart."""
    point: dict[str, Any] = {}
    for key in space.order():
        if space.active(key, point):
            point[key] = given[key] if key in given else space.params[key].draw(generator)
    return point


def _rungs(space: Space) -> None:
    scheduler = space.scheduler
    if scheduler.kind == "none":
        return
    possible, shortest = space.first_possible_rung(), space.shortest()
    first = scheduler.first_rung or possible
    if first < possible:
        raise Mistake(
            ("scheduler", "first_rung"),
            f"scheduler.first_rung {first}: warm-up, frozen prototypes and queue start end with epoch {possible - 1} in some "
            f"trials, so the first epoch to judge them at is {possible}",
        )
    if not scheduler.rungs(first, shortest):
        raise Mistake(
            ("scheduler",),
            f"scheduler {scheduler.kind}: the first judgement, after epoch {first}, is not before the end of a trial of "
            f"{shortest} epochs; give trials more epochs, or set scheduler none",
        )
