"""The memory of a sweep: an Optuna study in a journal file, and the searcher through which Ray Tune asks it.

The journal is the truth. A sweep that is run again reads it: finished trials stay, those that were running go on under
their own number, new ones are sampled. Ray Tune's own state is never restored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.searcher import Searcher

from swav_ray.errors import UserError
from swav_ray.tune.sampling import propose
from swav_ray.tune.space import Space, difference

JOURNAL = "study.journal"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_study(space: Space, folder: Path | None) -> optuna.Study:
    """The study of a sweep, from ``folder``'s journal or, for a dry run, in memory.

    Raises:
        UserError: the folder holds a study of another space.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if folder is None:
        return optuna.create_study(directions=space.directions())
    folder.mkdir(parents=True, exist_ok=True)
    _drop_half_line(folder / JOURNAL)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(study_name=space.name, storage=storage, directions=space.directions(), load_if_exists=True)
    defining = space.defining()
    known = study.user_attrs.get("space")
    if known is None:
        study.set_user_attr("space", defining)
    elif known != defining:
        raise UserError(
            f"{folder}: holds a sweep of another space ({difference(known, defining)}); give the space another name, or delete "
            "the folder"
        )
    return study


def _drop_half_line(journal: Path) -> None:
    """Cut off the entry that a crash or a full disk left unfinished; Optuna would write its next one onto the same line."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


def next_trial(study: optuna.Study, space: Space) -> FrozenTrial:
    """Sample the next trial from the results of trials 0 to n - concurrency; it enters the journal whole, in one entry."""
    trials = study.get_trials(deepcopy=False)
    number = len(trials)
    proposal = propose(space, number, trials[: _settled(number, space)])
    if proposal is None:
        raise UserError(f"space {space.name}: the grid has no point for trial {number}")
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=proposal.params,
            distributions=proposal.distributions,
            system_attrs=proposal.system_attrs,
        )
    )
    return study.get_trials(deepcopy=False)[number]


def _settled(number: int, space: Space) -> int:
    """How many trials must have ended, the earliest ones, before trial ``number`` is sampled."""
    return max(0, number - space.concurrency + 1)


class StudySearcher(Searcher):
    """Ray Tune's view of the study.

    Trial n is sampled when all trials up to n - concurrency have ended, and from those alone (:func:`next_trial`): the same
    seed gives the same configurations, whichever trial was quicker and however often the sweep was stopped.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        super().__init__(metric=space.objectives[0], mode="max")
        self.study, self.space = study, space
        trials = study.get_trials(deepcopy=False)
        self._unfinished = [trial for trial in trials if trial.state not in FINISHED]
        self._numbers: dict[str, int] = {}  # Tune's trial id -> the study's number

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Settings of the next trial; None while an earlier one must end first; FINISHED when the budget is spent."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
        else:
            trials = self.study.get_trials(deepcopy=False)
            if len(trials) >= (self.space.trials or math.inf):
                return Searcher.FINISHED
            if any(trial.state not in FINISHED for trial in trials[: _settled(len(trials), self.space)]):
                return None
            trial = next_trial(self.study, self.space)
        self._numbers[trial_id] = trial.number
        return {"number": trial.number, "settings": self.space.values_of(trial.params)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study at once, so that nothing finished is lost with this process."""
        ended = {"error": "the trial's process died"} if error or result is None else result
        tell(self.study, self._numbers.pop(trial_id), ended, self.space.objectives[0])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate results stand in the trials' own metrics."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


def tell(study: optuna.Study, number: int, result: dict[str, Any], objective: str) -> None:
    """Record how a trial ended: COMPLETE with its value, or FAIL with the reason."""
    trial_id = study.get_trials(deepcopy=False)[number]._trial_id
    value = result.get(objective)
    if not result.get("error") and (value is None or not math.isfinite(value)):
        result = result | {"error": f"no {objective}: {'it is missing' if value is None else value}"}
    for key in ("top1_stderr", "epochs_done", "seconds", "run", "error", "step"):
        attribute = result.get(key, result.get(f"probe/{key}"))
        if attribute is not None:
            study._storage.set_trial_user_attr(trial_id, key, attribute)
    if result.get("error"):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, value)
