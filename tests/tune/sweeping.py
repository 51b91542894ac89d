"""Sweeps as users run them: the command in a process of its own, on small digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from swav_ray.data.storage import Storage
from swav_ray.train.metrics import read_metrics
from tests.train.small import small_config, small_shards

ROOT = Path(__file__).parents[2]
SPACE: dict[str, Any] = {
    "name": "small",
    "recipe": "recipe.yaml",
    "params": {"num_prototypes": {"int": [10, 30]}, "temperature": {"loguniform": [0.05, 0.3]}},
    "baseline": [{"num_prototypes": 20, "temperature": 0.1}],
    "overrides": {"epochs": 2},
    "budget": {"trials": 2},
    "concurrency": 2,
}


def prepare(place: Path, shards: str = "", **recipe: Any) -> Path:
    """A folder with `recipe.yaml` of our own (330 digits, 4 epochs)."""
    place.mkdir(parents=True, exist_ok=True)
    config = small_config(shards or small_shards(str(place / "shards")), str(place / "runs"), "")
    values = config.model_dump(mode="json") | {"epochs": 4, "precision": "float32"} | recipe
    (place / "recipe.yaml").write_text(yaml.safe_dump(values))
    return place


def write_space(place: Path, **changes: Any) -> None:
    (place / "space.yaml").write_text(yaml.safe_dump(SPACE | changes))


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "swav_ray", "tune", *arguments]


def tune(place: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `swav-ray tune ARGUMENTS` in ``place`` to its end."""
    return subprocess.run(command(*arguments), cwd=place, env=environment(**env), capture_output=True, text=True, timeout=240)


def start(place: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """The same in the background, its lines on stdout, in a session of its own."""
    return subprocess.Popen(
        command(*arguments),
        cwd=place,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_driver(driver: subprocess.Popen[str], seconds: float = 60.0) -> list[psutil.Process]:
    """SIGKILL the driver alone, as a crash would; what of its cluster still lives ``seconds`` later."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert driver.stdout is not None
    driver.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=seconds)
    return alive


def trials_of(place: Path, name: str = "small", journal: str = "study.journal", study: str = "") -> list[Any]:
    storage = JournalStorage(JournalFileBackend(str(place / "runs" / name / journal)))
    return optuna.load_study(study_name=study or name, storage=storage).get_trials()


def log_of(trial: Any) -> list[dict[str, Any]]:
    """The trial's own log."""
    return read_metrics(Storage(trial.user_attrs["run"]))
