"""The sections of a sweep file that say how it is run: how long, on what, what is stopped early and what is confirmed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from swav_ray.config import Section
from swav_ray.errors import shown

WorkerRange = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


def either(wanted: str) -> WrapValidator:
    """Of a field of several types: its own words instead of one message for each type."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"{shown(value)}: needs {wanted}") from None

    return WrapValidator(check)


class Budget(Section):
    """Where the sweep ends, whichever comes first."""

    trials: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0, description="of the clock, from the first trial on, over all starts of the sweep")
    gpu_hours: float | None = Field(None, gt=0)


class Resources(Section):
    """What each trial takes of the cluster."""

    workers: Annotated[
        Annotated[int, Field(ge=1)] | WorkerRange, either("a number of workers from 1 on, or [min, max] of them")
    ] = Field(1, description="of a trial: a number, or [min, max] for trials that share what is free")
    gpus_per_worker: float | None = Field(None, ge=0, description="null: 1 where the cluster has GPUs, else 0")
    cpus_per_worker: float = Field(1, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        for old in ("cpus", "gpus"):
            if isinstance(values, dict) and old in values:
                raise ValueError(f"{old} is called {old}_per_worker, beside workers (of a trial, 1 unless said)")
        return values

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.worker_range
        if low > high:
            raise ValueError(f"workers [{low}, {high}]: the first must not be above the second")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers of a trial."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


class Confirm(Section):
    """What `swav-ray tune confirm` runs again: the best trials and the first baseline, over seeds, on the test data."""

    top_k: int = Field(3, ge=1)
    seeds: Annotated[
        Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...],
        either("a number of seeds from 1 on, or a list of seeds from 0 on"),
    ] = Field(3, description="how many, from the recipe's own on; or a list of them")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if isinstance(self.seeds, tuple) and (not self.seeds or len(set(self.seeds)) != len(self.seeds)):
            raise ValueError(f"seeds {list(self.seeds)} must name at least one seed, and each once")
        return self

    def seeds_from(self, first: int) -> tuple[int, ...]:
        """The seeds, ``first`` being the recipe's."""
        return self.seeds if isinstance(self.seeds, tuple) else tuple(range(first, first + self.seeds))


class Scheduler(Section):
    """Which trials are stopped early, and at which epochs they are judged; `asha` alone stands for `{kind: asha}`.

    asha: at epochs first_rung, first_rung * factor, ... only the best 1 / factor of those judged there go on.
    median: every so many epochs, a trial below the median of the earlier ones there is stopped.
    """

    kind: Literal["none", "asha", "median"] = "none"
    first_rung: int | None = Field(
        None, ge=1, description="1-based epoch; null: the first after warm-up, freeze and queue start of every trial"
    )
    factor: int = Field(3, ge=2, description="asha")
    every: int = Field(2, ge=1, description="median: epochs from one judgement to the next")
    startup_trials: int = Field(4, ge=1, description="median: so many trials are never stopped")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, values: Any) -> Any:
        return values if isinstance(values, dict | Scheduler) else {"kind": "none" if values is None else values}

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        wrong = {"none": ("first_rung", "factor", "every", "startup_trials"), "asha": ("every", "startup_trials")}
        for name in wrong.get(self.kind, ("factor",)):
            if name in self.model_fields_set:
                raise ValueError(f"{name} does not go with kind {self.kind}; leave it out")
        return self

    def rungs(self, first: int, epochs: int) -> tuple[int, ...]:
        """1-based epochs at which a trial of ``epochs`` is judged, ``first`` being the first of the sweep."""
        if self.kind == "median":
            return tuple(range(first, epochs, self.every))
        rungs, rung = [], first
        while self.kind == "asha" and rung < epochs:
            rungs.append(rung)
            rung *= self.factor
        return tuple(rungs)
