"""How one setting of a sweep varies."""

from __future__ import annotations

import json
import math
import random
from typing import Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, model_validator

from swav_ray.config import Section
from swav_ray.errors import shown

KINDS = ("choice", "int", "logint", "uniform", "loguniform")
IntPair = tuple[int, int]  # inside the class below `int` is a field
LARGEST = 2**53  # beyond it the samplers' floats skip whole numbers


def same(one: Any, other: Any) -> bool:
    """Equal, and not as ``1`` and ``True`` are."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class Param(Section):
    """How one setting varies: exactly one of choice, int, logint, uniform, loguniform; more about it beside.

    A value exists in two forms: the configuration's, and the one Optuna samples. They differ for an ordered choice, which is
    sampled as the index, and for lists and mappings among the choices, which travel as JSON text.
    """

    choice: list[Any] | None = Field(None, min_length=1, description="one of these values")
    int: IntPair | None = Field(None, description="whole number between, ends included")
    logint: IntPair | None = Field(None, description="the same, evenly by order of magnitude")
    uniform: tuple[float, float] | None = Field(None, description="number between")
    loguniform: tuple[float, float] | None = Field(None, description="number between, evenly by order of magnitude")
    ordered: bool = Field(False, description="the choices have an order, from small to large, which the sampler may use")
    step: float | None = Field(None, gt=0, description="int, uniform: from the first end in steps of so much")
    when: dict[str, Any] = Field({}, description="varies only where other params have this value, or one of these values")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}; found {', '.join(given) or 'none'}")
        if self.ordered and self.choice is None:
            raise ValueError(f"ordered goes with choice; {self.kind} has an order already")
        if self.choice is not None:
            self._check_choice(self.choice)
        else:
            self._check_range(*getattr(self, self.kind))
        return self

    def _check_choice(self, values: list[Any]) -> None:
        for position, value in enumerate(values):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"choice {shown(value)}: no number, text, true, false, null, nor a list of them") from None
            if any(_travelling(value) == _travelling(earlier) for earlier in values[:position]):
                raise ValueError(f"choice {shown(value)} stands twice, or stands beside a value that equals it")

    def _check_range(self, low: float, high: float) -> None:
        log = self.kind.startswith("log")
        if low >= high:
            raise ValueError(f"{self.kind} [{low}, {high}]: the first must be below the second")
        if log and low <= 0:
            raise ValueError(f"{self.kind} [{low}, {high}]: both must be positive")
        if self.whole and max(abs(low), abs(high)) > LARGEST:
            raise ValueError(f"{self.kind} [{low}, {high}]: beyond {LARGEST} no sampler tells whole numbers apart")
        if self.step is None:
            return
        if log:
            raise ValueError(f"step {self.step:g} does not go with {self.kind}, whose steps grow; leave it out, or use choice")
        if self.whole and not self.step.is_integer():
            raise ValueError(f"step {self.step:g} with int: steps of whole numbers are whole")
        if self.step > high - low:
            raise ValueError(f"step {self.step:g} is longer than {self.kind} [{low}, {high}]; lower it")
        steps = (high - low) / self.step
        if steps > LARGEST or abs(steps - round(steps)) > 1e-6:
            last = low + math.floor(steps) * self.step
            raise ValueError(f"step {self.step:g} from {low} does not meet {high}; end at {last:.12g}, or take another step")

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def whole(self) -> bool:
        return self.kind in ("int", "logint")

    def distribution(self) -> BaseDistribution:
        """Of the sampled values, for Optuna."""
        if self.choice is not None:
            if self.ordered:
                return IntDistribution(0, len(self.choice) - 1)
            return CategoricalDistribution([_travelling(value) for value in self.choice])
        low, high = getattr(self, self.kind)
        log = self.kind.startswith("log")
        if self.whole:
            return IntDistribution(low, high, log=log, step=round(self.step or 1))
        return FloatDistribution(low, high, log=log, step=self.step)

    def extremes(self) -> list[Any]:
        """Values that, if the schema takes them, it takes all."""
        return list(self.choice) if self.choice is not None else list(getattr(self, self.kind))

    def finite(self) -> list[Any] | None:
        """All values, in order; None where there is no end of them, or more than a grid takes."""
        if self.choice is not None:
            return list(self.choice)
        if self.kind.startswith("log") or (self.kind == "uniform" and self.step is None):
            return None
        low, high = getattr(self, self.kind)
        count = round((high - low) / (self.step or 1)) + 1
        return [self.value_of(low + number * (self.step or 1)) for number in range(count)] if count <= 100_000 else None

    def contains(self, value: Any) -> bool:
        """Whether ``value``, in the configuration's form, can be sampled."""
        if self.choice is not None:
            return any(same(value, one) for one in self.choice)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        low, high = getattr(self, self.kind)
        if not low <= value <= high:
            return False
        steps = (value - low) / (self.step or 1)
        return self.step is None or abs(steps - round(steps)) < 1e-6

    def listed(self, values: Any) -> list[Any]:
        """The values that ``values`` of a `when` names: one, or a list of them."""
        return values if isinstance(values, list) and not self.contains(values) else [values]

    def value_of(self, sampled: Any) -> Any:
        """The configuration's form of a sampled value."""
        if self.choice is not None:
            if self.ordered:
                return self.choice[sampled]
            return next(value for value in self.choice if same(_travelling(value), sampled))
        if self.whole:
            return round(sampled)
        return float(f"{sampled:.12g}") if self.step else sampled  # 0.3, not 0.30000000000000004

    def sampled(self, value: Any) -> Any:
        """The sampled form of a configuration's value, the inverse of :meth:`value_of`."""
        if self.choice is None:
            return value
        position = next(number for number, one in enumerate(self.choice) if same(one, value))
        return position if self.ordered else _travelling(value)

    def draw(self, generator: random.Random) -> Any:
        """A value at random, in the configuration's form."""
        if self.choice is not None:
            return generator.choice(self.choice)
        low, high = getattr(self, self.kind)
        if self.kind == "logint":
            return min(high, max(low, round(math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        if self.kind == "loguniform":
            return min(high, max(low, math.exp(generator.uniform(math.log(low), math.log(high)))))
        if self.whole or self.step:
            step = self.step or 1
            return self.value_of(low + generator.randint(0, round((high - low) / step)) * step)
        return generator.uniform(low, high)


def _travelling(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
