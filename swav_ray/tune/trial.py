"""One trial: a whole single-worker run inside the trial's own process."""

from __future__ import annotations

import time
from typing import Any

from swav_ray.config import Config
from swav_ray.errors import UserError


def run_trial(task: dict[str, Any], configs: Any) -> None:
    """Train one configuration and report to Ray Tune: each epoch's figures, then the probe's.

    A run of this trial begun before goes on from its checkpoint. The user's mistakes and divergence end the trial with an
    ``error`` instead of a value.

    Args:
        task: ``number`` of the trial and its dotted ``settings``.
        configs: called with a task, gives its resolved :class:`Config`.
    """
    import ray.tune
    import torch

    from swav_ray.train.loop import Training
    from swav_ray.train.trainer import open_run
    from swav_ray.train.world import World

    config: Config = configs(task)
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {"run": f"{config.storage}/{config.name}", "number": task["number"]}

    def report(row: dict[str, Any]) -> None:
        if "epochs_done" in row and row["epochs_done"] < config.epochs:
            ray.tune.report({**about, **latest, **row, "seconds": time.monotonic() - started})
        latest.update({key: row[key] for key in ("loss", "verdict", "prototypes_in_use") if key in row})

    latest: dict[str, Any] = {}
    try:
        training = Training(config, open_run(config), World(device=device), report)
        figures, _ = training.run_to_end(training.stream.local(training.position))
        if not figures:  # finished in an earlier life, killed before its result was told
            from swav_ray.train.metrics import read_metrics

            figures = read_metrics(training.run)[-1]
    except UserError as error:
        figures = {"error": str(error)}
    ray.tune.report({**about, **latest, **figures, "seconds": time.monotonic() - started})
