"""A sweep on Ray: Tune schedules, Optuna samples, every trial is a run of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.trainer import resolve
from swav_ray.tune.baselines import measure_baselines
from swav_ray.tune.leaderboard import leaderboard, save
from swav_ray.tune.live import LiveView
from swav_ray.tune.results import results
from swav_ray.tune.space import Space
from swav_ray.tune.study import FINISHED, StudySearcher, next_trial, open_study
from swav_ray.tune.trial import run_trial


@dataclass(frozen=True)
class Outcome:
    """What a sweep found; `best` is None if no trial completed."""

    table: pd.DataFrame
    best: Path | None
    folder: Path
    baselines: list[dict[str, Any]]


def sweep_folder(space: Space) -> Path:
    """The sweep's folder, `STORAGE/NAME`.

    Raises:
        UserError: the storage is not a local folder.
    """
    storage = Storage(space.config(_point(space), trial=True).storage)
    if storage.is_s3:
        raise UserError(f"storage = {storage.uri}: a sweep's study needs a local (or shared) folder")
    return Path(storage.root) / space.name


def _point(space: Space) -> dict[str, Any]:
    return space.baseline[0] if space.baseline else {key: param.extremes()[0] for key, param in space.params.items()}


def sample(space: Space, count: int) -> list[dict[str, Any]]:
    """Settings of ``count`` trials as the sweep would start with, were no results to come; nothing is run."""
    study = open_study(space, None)
    return [space.values_of(next_trial(study, space).params) for _ in range(count)]


def run_sweep(space: Space) -> Outcome:
    """Run a sweep to its budget on the connected Ray cluster; one begun before goes on.

    Raises:
        UserError: another space under this name, the cluster cannot hold a trial, or a batch that no trial would have.
    """
    from ray import tune

    folder = sweep_folder(space)
    base = resolve(space.config(_point(space), trial=True))
    if base.elastic.scale_lr_with_batch and base.elastic.max > 1:
        raise UserError(
            f"elastic.scale_lr_with_batch with elastic.max {base.elastic.max}: a trial has one worker and would train on "
            f"1/{base.elastic.max} of the batch; set elastic.max 1 in the space's overrides"
        )
    study = open_study(space, folder)
    baselines = measure_baselines(base, Storage(str(folder)))
    _check_resources(space)

    def configs(task: dict[str, Any]) -> Config:
        config = space.config(task["settings"], trial=True)
        return config.model_copy(
            update={
                "storage": str(folder / "trials"),
                "name": f"{task['number']:04d}",
                "data": config.data.model_copy(update={"train": base.data.train, "test": ""}),
            }
        )

    ended = sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))
    left = space.budget.trials - ended
    if left > 0:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # the probe comes with the last result only
        view = LiveView(epochs=base.epochs, trials=space.budget.trials, earlier=results(study, space))
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, configs=configs), {"CPU": space.resources.cpus, "GPU": space.resources.gpus}
            ),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, space), num_samples=left, max_concurrent_trials=space.concurrency
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder / "ray"), verbose=0, callbacks=[view]),
        )
        try:
            tuner.fit()
        finally:
            view.close()
    table = leaderboard(study, space, baselines, base.seed)
    save(table, folder)
    return Outcome(table, _write_best(study, space, folder), folder, baselines)


def _check_resources(space: Space) -> None:
    import ray

    have = ray.cluster_resources()
    for key, need in (("CPU", space.resources.cpus), ("GPU", space.resources.gpus)):
        if need > have.get(key, 0):
            raise UserError(f"resources: a trial needs {need:g} {key} and the cluster has {have.get(key, 0):g}; lower it")


def _write_best(study: optuna.Study, space: Space, folder: Path) -> Path | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))
    config = space.config(space.values_of(best.params), trial=False)
    config = config.model_copy(update={"name": f"{space.name}-best"})
    value, error = best.value or 0.0, best.user_attrs.get("top1_stderr", 0.0)
    header = f"# Best of sweep {space.name}: trial {best.number}, held-out probe/top1 {value:.4f} +- {error:.4f}\n"
    path = folder / "best.yaml"
    path.write_text(header + config.to_yaml())
    return path
