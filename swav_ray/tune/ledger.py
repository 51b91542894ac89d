"""What is known of a sweep's trials, and what follows from it: the next trial, the verdict at a rung, the end of a trial.

Everything is written to the study at once, so that nothing is lost with this process. Nothing here knows Ray Tune; the
adapters to it are in `scheduling.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from swav_ray.config import Config
from swav_ray.tune.judge import cutoff, stop_at_rung, stop_unwell
from swav_ray.tune.sampling import Proposal, propose
from swav_ray.tune.space import Space
from swav_ray.tune.study import FINISHED

COPIED = ("epochs_done", "steps", "parameters", "verdict", "prototypes_in_use", "test/top1", "test/top1_stderr", "test/rows")


@dataclass
class Life:
    """A trial's present life: when it began, and what the study held of its costs then."""

    number: int
    started: float
    before: dict[str, Any]  # seconds, cpu_seconds, gpu_hours, spans of earlier lives
    gpu_hours: float = 0.0  # of this life
    seen: float = 0.0  # when the last row came
    cpu_seconds: float = 0.0  # of the process that runs it now
    stop: str = ""  # why it was told to stop


class Ledger:
    """The trials of a sweep.

    Args:
        study: where they stand.
        space: the grammar they are sampled from.
        config_of: (number, settings) to a trial's whole configuration.
        gpus_per_worker: for the GPU-hours.
        keep: called after each change that must not be lost with this machine.
        propose: gives the next trial's parameters from those of earlier ones; None if there is no more.
        stops: whether a trial may be stopped before its end, at a rung or for its health.
        on_change, on_row: called with the numbers of the running trials whenever one begins or ends, and with each row.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        config_of: Callable[[int, dict[str, Any]], Config],
        *,
        gpus_per_worker: float = 0.0,
        keep: Callable[[], None] = lambda: None,
        propose: Callable[[Space, int, list[FrozenTrial]], Proposal | None] = propose,
        on_change: Callable[[list[int]], None] = lambda running: None,
        on_row: Callable[[list[int]], None] = lambda running: None,
        stops: bool = True,
    ) -> None:
        self.study, self.space, self.config_of, self._keep = study, space, config_of, keep
        self._gpus, self._propose, self._on_change = gpus_per_worker, propose, on_change
        self._on_row, self._stops = on_row, stops
        self.lives: dict[int, Life] = {}
        self._unfinished = [trial.number for trial in self.trials() if trial.state not in FINISHED]
        self._hours_before, self._opened = float(study.user_attrs.get("hours", 0.0)), time.monotonic()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def hours(self) -> float:
        """Of this sweep so far, over all its drivers."""
        return self._hours_before + (time.monotonic() - self._opened) / 3600

    def spent(self) -> str:
        """Which part of the budget is used up, in words; running trials end all the same. Empty if there is some left."""
        budget, trials = self.space.budget, self.trials()
        if self.space.trials is not None and len(trials) >= self.space.trials:
            return f"all {self.space.trials} trials"
        if budget.hours is not None and self.hours >= budget.hours:
            return f"{budget.hours:g} hours"
        gpu_hours = sum(trial.user_attrs.get("gpu_hours", 0.0) for trial in trials)
        if budget.gpu_hours is not None and gpu_hours >= budget.gpu_hours:
            return f"{budget.gpu_hours:g} GPU-hours"
        return ""

    def settled(self, number: int) -> list[FrozenTrial]:
        """The trials that number ``number`` is sampled from and judged by: all but those that may still run beside it."""
        return self.trials()[: max(0, number - lag(self.space) + 1)]

    def claim(self) -> tuple[int, dict[str, Any]] | None:
        """(number, settings) of the trial to run next; None while an earlier one must end first.

        Trial n waits for all trials up to n - lag, and is sampled from those alone: the same seed gives the same trials,
        whichever was quicker and however often the sweep was stopped.

        Raises:
            StopIteration: the budget is spent, or a grid is complete.
        """
        while self._unfinished:
            number = self._unfinished.pop(0)
            trial = self.trials()[number]
            settings = trial.user_attrs["settings"]
            why = stop_at_rung(self.space, self.rungs(number, settings), trial.intermediate_values, self.settled(number))
            if why:  # the driver died between the rung and the verdict
                self._finish(trial, TrialState.PRUNED, {"ended": why})
                continue
            self._begin(trial)
            return number, settings
        if self.spent():
            raise StopIteration
        number = len(self.trials())
        earlier = self.settled(number)
        if any(trial.state not in FINISHED for trial in earlier):
            return None
        proposal = self._propose(self.space, number, earlier)
        if proposal is None:
            raise StopIteration
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=proposal.params,
                distributions=proposal.distributions,
                system_attrs=proposal.system_attrs,
                user_attrs={"settings": proposal.settings, "baseline": proposal.baseline},
            )
        )
        self._begin(self.trials()[number])
        self._keep()
        return number, proposal.settings

    def rungs(self, number: int, settings: dict[str, Any]) -> tuple[int, ...]:
        return self.space.rungs(self.config_of(number, settings))

    def _begin(self, trial: FrozenTrial) -> None:
        attrs = trial.user_attrs
        before = {key: attrs.get(key, 0.0) for key in ("seconds", "cpu_seconds", "gpu_hours")} | {
            "spans": attrs.get("spans", [])
        }
        now = time.time()
        self.lives[trial.number] = Life(trial.number, now, before, seen=now)
        config = self.config_of(trial.number, attrs["settings"])
        self._note(trial, {"run": f"{config.storage}/{config.name}", "seed": config.seed, "epochs": config.epochs})
        self._on_change(sorted(self.lives))

    def record(self, number: int, row: dict[str, Any]) -> str:
        """Write down a row of a trial's; why the trial should stop now, or an empty string."""
        life = self.lives[number]
        self._account(life, row)
        self._on_row(sorted(self.lives))
        if "epochs_done" not in row or row.get("beat"):
            return ""
        trial = self.trials()[number]
        rungs = self.rungs(number, trial.user_attrs["settings"])
        epoch, value = row["epochs_done"], row.get(self.space.objectives[0])
        measured = trial.user_attrs.get("rungs", {})
        if value is not None and str(epoch) not in measured:
            self._note(trial, {"rungs": measured | {str(epoch): _measured(row)}})
            if epoch in rungs and math.isfinite(value):
                self.study._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        self._note(trial, {key: row[key] for key in COPIED if key in row} | self._costs(life))
        if row.get("first_step_at"):  # of its newest life
            self._note(trial, {"startup_seconds": row["first_step_at"] - life.started})
        life.stop = stop_unwell(row) if self._stops else ""
        if self._stops and not life.stop and epoch in rungs:
            values = self.trials()[number].intermediate_values
            life.stop = stop_at_rung(self.space, rungs, values, self.settled(number))
        self.study.set_user_attr("hours", self.hours)
        return life.stop

    def cutoff(self, number: int, row: dict[str, Any]) -> dict[str, float]:
        """``{"cutoff": value}``, what the rung of a trial's row asked for; empty between rungs."""
        trial, epoch = self.trials()[number], row.get("epochs_done")
        if row.get("beat") or epoch not in trial.intermediate_values:
            return {}
        return {"cutoff": cutoff(self.space, epoch, trial.intermediate_values[epoch], self.settled(number))}

    def end(self, number: int, row: dict[str, Any]) -> TrialState:
        """Write down how a trial ended: by its last ``row``, an empty one if Ray gave up on it."""
        trial, life = self.trials()[number], self.lives.pop(number)
        row = row or {"error": "Ray could not run it; see the trial's log"}
        attrs = {key: row[key] for key in COPIED if key in row}
        values = [row.get(key) for key in self.space.objectives if key != "gpu_hours"]
        if life.stop:
            state, attrs = TrialState.PRUNED, attrs | {"ended": life.stop}
        elif row.get("error"):
            state, attrs = TrialState.FAIL, attrs | {"error": row["error"]}
        elif not all(value is not None and math.isfinite(value) for value in values):
            state, attrs = TrialState.FAIL, attrs | {"error": f"no {self.space.objectives[0]}: {values[0]}"}
        else:
            measured = trial.user_attrs.get("rungs", {}) | {str(row["epochs_done"]): _measured(row)}
            state, attrs = TrialState.COMPLETE, attrs | {"rungs": measured}
            attrs["top1_stderr"] = row.get(f"{self.space.objectives[0]}_stderr")
        self._account(life, row)
        self._finish(trial, state, attrs | self._costs(life), values)
        self._on_change(sorted(self.lives))
        return state

    def _finish(self, trial: FrozenTrial, state: TrialState, attrs: dict[str, Any], values: list[Any] | None = None) -> None:
        self._note(trial, attrs)
        if state == TrialState.COMPLETE:
            assert values is not None
            costs = [attrs["gpu_hours"]] if "gpu_hours" in self.space.objectives else []
            self.study.tell(trial.number, [*values, *costs])
        else:
            self.study.tell(trial.number, state=state)
        self.study.set_user_attr("hours", self.hours)
        self._keep()

    def _account(self, life: Life, row: dict[str, Any]) -> None:
        now = time.time()
        life.gpu_hours += (now - life.seen) / 3600 * self._gpus * row.get("workers", 1)
        life.seen = now
        if row.get("cpu_seconds", life.cpu_seconds) < life.cpu_seconds:  # another process went on with it
            life.before["cpu_seconds"] += life.cpu_seconds
        life.cpu_seconds = row.get("cpu_seconds", life.cpu_seconds)

    def _costs(self, life: Life) -> dict[str, Any]:
        return {
            "seconds": life.before["seconds"] + life.seen - life.started,
            "cpu_seconds": life.before["cpu_seconds"] + life.cpu_seconds,
            "gpu_hours": life.before["gpu_hours"] + life.gpu_hours,
            "spans": [*life.before["spans"], [life.started, life.seen]],
        }

    def _note(self, trial: FrozenTrial, attrs: dict[str, Any]) -> None:
        for key, value in attrs.items():
            if value is not None:
                self.study._storage.set_trial_user_attr(trial._trial_id, key, value)


def lag(space: Space) -> int:
    """How many trials a trial may run ahead of the oldest unfinished one, itself included.

    Where trials are stopped early their lengths differ, so a place may run further ahead than it would wait otherwise.
    """
    return space.concurrency * (2 if space.scheduler.kind != "none" and space.concurrency > 1 else 1)


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("probe/top1", "probe/top1_stderr", "knn/top1", "knn/top1_stderr")
    return {key: row[key] for key in keys if key in row} | {"seconds": row.get("probe/seconds")}
