"""When a trial is stopped before its end: Optuna's pruners at the rungs, the collapse watch everywhere.

Both are functions of the trial's own rows and of earlier trials that have ended, so a verdict does not depend on which of
two running trials was quicker, and a sweep that was killed judges alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from swav_ray.tune.space import Space

UNWELL_EPOCHS = 1.0  # of collapse without a break before a trial is ended


def stop_at_rung(space: Space, rungs: Sequence[int], values: Mapping[int, float], settled: Sequence[FrozenTrial]) -> str:
    """Why a trial with rung ``values`` {epoch: objective} should stop at the last of them; an empty string if it should not.

    Args:
        rungs: the epochs at which trials are judged.
        settled: the earlier trials to compare with, all ended.
    """
    if not values or space.scheduler.kind == "none":
        return ""
    epoch = max(values)
    known = optuna.create_study(direction=space.directions()[0])
    known.add_trials(_on_rungs(trial.state, trial.intermediate_values, rungs, trial.value) for trial in settled)
    known.add_trial(_on_rungs(TrialState.RUNNING, values, rungs, None, but=epoch))
    trial = known.get_trials(deepcopy=False)[-1]
    if not _pruner(space, rungs).prune(known, trial):
        return ""
    peers = [other.intermediate_values[epoch] for other in settled if epoch in other.intermediate_values]
    among = f"of {len(peers)} earlier trial{'s' if len(peers) != 1 else ''}"
    if space.scheduler.kind == "median":
        return f"epoch {epoch}: {values[epoch]:.4f} is below the median {among}"
    return (
        f"epoch {epoch}: {values[epoch]:.4f} is not among the best 1/{space.scheduler.factor} {among} (best {max(peers):.4f})"
    )


def cutoff(space: Space, epoch: int, value: float, settled: Sequence[FrozenTrial]) -> float:
    """The least value that goes on at ``epoch``, for a trial that has ``value`` there."""
    peers = [trial.intermediate_values[epoch] for trial in settled if epoch in trial.intermediate_values]
    if space.scheduler.kind == "median":
        return statistics.median(peers) if peers else value
    among = sorted([*peers, value], reverse=True)
    return among[max(1, len(among) // space.scheduler.factor) - 1]


def stop_unwell(row: Mapping[str, Any]) -> str:
    """Why a trial should stop for its health, by a row of an epoch's end; an empty string if it should not."""
    since = row.get("unwell_since")
    if since is None or row["epochs_done"] - since < UNWELL_EPOCHS:
        return ""
    return f"{row['verdict']} since epoch {since:.1f}: {row.get('advice') or 'see the collapse watch'}"


def _pruner(space: Space, rungs: Sequence[int]) -> BasePruner:
    scheduler = space.scheduler
    if scheduler.kind == "asha":
        return SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=scheduler.factor)
    return MedianPruner(n_startup_trials=scheduler.startup_trials, n_warmup_steps=rungs[0] - 1)


def _on_rungs(
    state: TrialState, values: Mapping[int, float], rungs: Sequence[int], value: float | None, but: int = 0
) -> FrozenTrial:
    """A trial as the pruners see it. The halving pruner knows who reached a rung by attributes of its own."""
    attrs = {
        f"completed_rung_{number}": values[epoch] for number, epoch in enumerate(rungs) if epoch in values and epoch != but
    }
    frozen = state not in (TrialState.COMPLETE, TrialState.PRUNED)
    return create_trial(
        state=state if state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) else TrialState.FAIL,
        value=None if frozen or state == TrialState.PRUNED else value,
        intermediate_values=dict(values),
        system_attrs=attrs,
    )
