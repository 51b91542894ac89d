"""Ray Tune's view of the ledger: a searcher that hands out trials, and a scheduler that passes on verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.searcher import Searcher

from swav_ray.config import Config
from swav_ray.tune.ledger import Ledger


class LedgerSearcher(Searcher):
    """Gives Ray Tune the ledger's next trial, and the ledger how each one ended.

    Args:
        task_of: (number, settings, config) to what the trial's process gets.
    """

    def __init__(self, ledger: Ledger, task_of: Callable[[int, dict[str, Any], Config], dict[str, Any]]) -> None:
        super().__init__(metric=ledger.space.objectives[0], mode="max")
        self.ledger, self._task_of = ledger, task_of
        self.numbers: dict[str, int] = {}  # Ray Tune's trial id to the study's number

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        try:
            claimed = self.ledger.claim()
        except StopIteration:
            return Searcher.FINISHED
        if claimed is None:
            return None
        number, settings = claimed
        self.numbers[trial_id] = number
        return self._task_of(number, settings, self.ledger.config_of(number, settings))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.ledger.end(self.numbers[trial_id], None if error else result)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which is asked first, has recorded it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""


class LedgerScheduler(FIFOScheduler):
    """Records each row, and stops a trial when the ledger says so."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        why = self._ledger.record(trial.config["number"], result)
        return TrialScheduler.STOP if why else TrialScheduler.CONTINUE
