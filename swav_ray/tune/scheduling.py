"""Ray Tune's view of the ledger: a searcher that hands out trials, and a scheduler that passes on verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.searcher import Searcher

from swav_ray.config import Config
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.live import LiveView


class LedgerSearcher(Searcher):
    """Gives Ray Tune the ledger's next trial, and the ledger how each one ended.

    Args:
        view: is told of the ends.
        task_of: (number, settings, config) to what the trial's process gets.
    """

    def __init__(
        self, ledger: Ledger, view: LiveView, task_of: Callable[[int, dict[str, Any], Config], dict[str, Any]]
    ) -> None:
        super().__init__(metric=ledger.space.objectives[0], mode="max")
        self.ledger, self._view, self._task_of = ledger, view, task_of
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
        number, row = self.numbers[trial_id], {} if error or result is None else result
        state = self.ledger.end(number, row)
        about = self.ledger.trials()[number].user_attrs
        self._view.trial_ended(number, state.name, row | {key: about[key] for key in ("ended", "error") if key in about})

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which is asked first, has recorded it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""


class LedgerScheduler(FIFOScheduler):
    """Records each row, and stops a trial when the ledger says so."""

    def __init__(self, ledger: Ledger, view: LiveView) -> None:
        super().__init__()
        self._ledger, self._view = ledger, view

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        stop = self._ledger.record(number, result)
        if not stop:  # the row of one that stops comes with its end
            self._view.trial_row(number, result | self._ledger.cutoff(number, result))
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
