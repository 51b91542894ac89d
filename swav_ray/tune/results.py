"""What the journal says of each trial, in one shape for the leaderboard, the page, its words and the live view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from swav_ray.tune.space import Space

STATUS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Result:
    """One trial. Accuracies are shares between 0 and 1; `curve` has the accuracy at each epoch (1-based) it was judged at.

    `value` is the accuracy at the end of a complete trial, at the last rung of any other; None if it was never judged.
    """

    number: int
    status: str
    value: float | None
    stderr: float | None
    other: float | None  # the accuracy that is not the objective (:func:`other_accuracy`)
    epochs_done: int | None
    curve: dict[int, float]
    settings: dict[str, Any]
    trial: FrozenTrial

    @property
    def attrs(self) -> dict[str, Any]:
        """The journal's other facts: `seconds`, `gpu_hours`, `spans`, `run`, `verdict`, `ended`, `error`, `baseline`, ..."""
        return self.trial.user_attrs

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    @property
    def reason(self) -> str:
        """Why it ended before its time, in one line; empty if it did not."""
        return " ".join(str(self.attrs.get("error") or self.attrs.get("ended") or "").split())


def objectives(space: Space) -> list[str]:
    """The objectives' names; more than one in a sweep that also minds its cost."""
    return [space.objective] if isinstance(space.objective, str) else list(space.objective)


def accuracy(space: Space) -> str:
    """The objective that is an accuracy: `probe/top1` or `knn/top1`."""
    return next((name for name in objectives(space) if name.endswith("/top1")), objectives(space)[0])


def other_accuracy(space: Space) -> str:
    """The accuracy that is measured and not the objective."""
    return "probe/top1" if accuracy(space) == "knn/top1" else "knn/top1"


def results(study: optuna.Study, space: Space) -> list[Result]:
    """All trials of the study, by number."""
    return [_result(trial, space) for trial in study.get_trials(deepcopy=False)]


def ranked(rows: list[Result]) -> list[Result]:
    """The complete ones, best first; equal ones in the order they were tried."""
    complete = [row for row in rows if row.status == "complete" and row.value is not None]
    return sorted(complete, key=lambda row: (-(row.value or 0.0), row.number))


def _result(trial: FrozenTrial, space: Space) -> Result:
    name, attrs, status = accuracy(space), trial.user_attrs, STATUS[trial.state]
    rungs = {int(epoch): dict(figures) for epoch, figures in sorted(attrs.get("rungs", {}).items(), key=lambda it: int(it[0]))}
    # Optuna takes no intermediate values in a sweep of several objectives; there the rungs alone tell.
    seen = {epoch: figures.get(name) for epoch, figures in rungs.items()} | trial.intermediate_values
    curve = {epoch: float(value) for epoch, value in sorted(seen.items()) if value is not None and math.isfinite(value)}
    done = attrs.get("epochs_done") or max([*rungs, *curve], default=None)
    last = rungs[max(rungs)] if rungs else {}
    value = curve[max(curve)] if curve else None
    stderr = rungs.get(max(curve), {}).get(f"{name}_stderr") if curve else None
    if status == "complete" and trial.values:
        value = trial.values[objectives(space).index(name)]
        stderr = attrs.get("top1_stderr", stderr)
        if done:
            curve[int(done)] = value
    other = last.get(other_accuracy(space), attrs.get(other_accuracy(space)))
    settings = attrs.get("settings", trial.params)
    return Result(trial.number, status, value, stderr, other, done, curve, settings, trial)
