"""A sweep on Ray: Tune schedules, Optuna samples and judges, every trial is a run of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.cluster import cluster_slots
from swav_ray.train.shares import drop_share, set_share, shares
from swav_ray.train.trainer import resolve, worker_resources
from swav_ray.tune.baselines import measure_baselines
from swav_ray.tune.importances import importances, save_importances
from swav_ray.tune.leaderboard import leaderboard, save
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.report import write_report
from swav_ray.tune.running import run_trials, trial_resources, view_of
from swav_ray.tune.sampling import propose
from swav_ray.tune.space import Space
from swav_ray.tune.study import FINISHED, JOURNAL, SweepFolder, open_study

REPORT = "report.html"
FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.parquet", "best.yaml", "importances.json", REPORT)
COOLDOWN_SECONDS = 5.0  # of a trial's growth: its share changes whenever another trial ends
DIVIDE_SECONDS = 10.0  # between looks at how many workers the cluster can hold


@dataclass(frozen=True)
class Outcome:
    """What a sweep found; `best` is None if no trial completed. `stopped`: it was asked to end before its budget."""

    table: pd.DataFrame
    best: Path | None
    folder: str
    baselines: list[dict[str, Any]]
    stopped: bool = False


def sweep_folder(space: Space) -> str:
    """The sweep's folder, `STORAGE/NAME`."""
    return (Storage(space.config(_point(space), trial=True).storage) / space.name).uri


def _point(space: Space) -> dict[str, Any]:
    return dict(space.baseline[0]) if space.baseline else {}


def sample(space: Space, count: int) -> list[dict[str, Any]]:
    """Settings of the first ``count`` trials, as sampled were no results to come; nothing is run."""
    proposals = (propose(space, number, []) for number in range(count))
    return [proposal.settings for proposal in proposals if proposal is not None]


class Sweep:
    """A sweep opened in its folder: what it was, what it is, and running it on.

    Raises:
        UserError: another space under this name, data that is not there, or a sweep that another process runs.
    """

    ledger_class: type[Ledger] = Ledger  # a benchmark measures out its budget in other units

    def __init__(self, space: Space) -> None:
        self.space = space
        self.base = resolve(space.config(_point(space), trial=True))
        low, high = space.resources.worker_range
        if self.base.elastic.scale_lr_with_batch and low < high:
            raise UserError(
                f"elastic.scale_lr_with_batch with resources.workers [{low}, {high}]: a trial's batch would follow its share "
                "of the cluster, and trials could not be compared; fix the number of workers"
            )
        self.folder = SweepFolder(sweep_folder(space))
        self._configs: dict[int, Config] = {}
        self._divided, self._shared = 0.0, set[int]()  # when shares were last given, and to which trials
        try:
            where = space.study or self.folder.journal()
            self.study = open_study(where, space.name, space.directions(), space.defining())
        except BaseException:
            self.folder.close()
            raise

    def config_of(self, number: int, settings: dict[str, Any]) -> Config:
        """A trial's whole configuration: its own run under `trials/`, judged at the space's rungs, blind to the test data."""
        if number not in self._configs:
            config = self.space.config(settings, trial=True)
            data = {"train": self.base.data.train, "test": ""}
            elastic: dict[str, Any] = {}
            if self.space.resources.worker_range[1] > 1:
                data["crop_in"] = "worker"  # Ray Data's tasks would find no processor that is not some trial's
                elastic["cooldown_seconds"] = min(config.elastic.cooldown_seconds, COOLDOWN_SECONDS)
            self._configs[number] = config.model_copy(
                update={
                    "storage": (self.folder.storage / "trials").uri,
                    "name": f"{number:04d}",
                    "data": config.data.model_copy(update=data),
                    "probe": config.probe.model_copy(update={"at_epochs": self.space.rungs(config)}),
                    "elastic": config.elastic.model_copy(update=elastic),
                }
            )
        return self._configs[number]

    def divide(self, running: list[int]) -> None:
        """Give each running trial of several workers its fair share of the cluster, as trials and nodes come and go."""
        low, high = self.space.resources.worker_range
        self._divided = time.monotonic()
        if high == 1:
            return
        for number in self._shared - set(running):
            drop_share(self._address(number))
        self._shared = set(running)
        if running:
            slots = cluster_slots(worker_resources(self._configs[running[0]]))
            for number, workers in shares(slots, running, low, high).items():
                set_share(self._address(number), workers)

    def _address(self, number: int) -> str:
        config = self._configs[number]
        return (Storage(config.storage) / config.name).uri

    def _divide_now_and_then(self, running: list[int]) -> None:
        if time.monotonic() - self._divided > DIVIDE_SECONDS:
            self.divide(running)

    def run(self) -> Outcome:
        """Run on to the budget's end, on the connected Ray cluster; or until asked to stop (Ctrl-C, SIGTERM).

        Raises:
            UserError: the cluster cannot hold a trial.
        """
        baselines = measure_baselines(self.base, self.folder.storage)
        need, gpus = trial_resources(self.space)
        budget = self.space.budget
        if budget.gpu_hours is not None and not gpus and self.space.trials is None and budget.hours is None:
            raise UserError("budget.gpu_hours: trials use no GPUs here, so the sweep would never end; give trials or hours too")
        ledger = self.ledger_class(
            self.study,
            self.space,
            self.config_of,
            gpus_per_worker=gpus,
            keep=lambda: self._keep(baselines),
            on_change=self.divide,
            on_row=self._divide_now_and_then,
        )
        stopped = False
        if not ledger.spent() or any(trial.state not in FINISHED for trial in ledger.trials()):
            stopped = run_trials(ledger, view_of(ledger, self.base.epochs), need)
        return self._outcome(baselines, stopped)

    def _keep(self, baselines: list[dict[str, Any]]) -> None:
        self.folder.keep(JOURNAL)
        save(leaderboard(self.study, self.space, baselines, self.base.seed), self.folder.local, f"Sweep {self.space.name}")

    def _outcome(self, baselines: list[dict[str, Any]], stopped: bool) -> Outcome:
        place = self.folder.local
        table = leaderboard(self.study, self.space, baselines, self.base.seed)
        save(table, place, f"Sweep {self.space.name}")
        best = write_best(self.study, self.space, place)
        save_importances(importances(self.study, self.space), place)
        write_report(self.study, self.space, baselines, table, place / REPORT)
        for name in (*FILES, JOURNAL):
            self.folder.keep(name)
        return Outcome(table, best, self.folder.storage.uri, baselines, stopped)

    def close(self) -> None:
        self.folder.close()


def write_best(study: optuna.Study, space: Space, folder: Path) -> Path | None:
    """`best.yaml`: the recipe with the settings of the trial with the highest objective; None if no trial completed."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial.values[0], -trial.number))
    config = space.config(best.user_attrs["settings"], trial=False)
    config = config.model_copy(update={"name": f"{space.name}-best"})
    value, error = best.values[0], best.user_attrs.get("top1_stderr", 0.0)
    header = f"# Best of sweep {space.name}: trial {best.number}, held-out {space.objectives[0]} {value:.4f} +- {error:.4f}\n"
    path = folder / "best.yaml"
    path.write_text(header + config.to_yaml())
    return path
