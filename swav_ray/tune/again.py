"""The page of a sweep written anew from its folder alone, also while the sweep runs: it is read from a copy of the journal."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pydantic import BaseModel, ValidationError

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.tune.baselines import FILE as BASELINES
from swav_ray.tune.leaderboard import leaderboard
from swav_ray.tune.params import Param
from swav_ray.tune.report import write_report
from swav_ray.tune.space import Space
from swav_ray.tune.space_sections import Scheduler
from swav_ray.tune.study import JOURNAL


def is_sweep(uri: str) -> bool:
    """Whether a folder is a sweep's."""
    return Storage(uri).exists(JOURNAL)


def sweep_page(uri: str) -> str:
    """The HTML page of the sweep in a folder or at an `s3://` address.

    Raises:
        UserError: its journal holds no sweep of this version.
    """
    folder = Storage(uri)
    with tempfile.TemporaryDirectory(prefix="swav-ray-") as scratch:
        copy = Path(scratch) / JOURNAL
        content = folder.read(JOURNAL)
        copy.write_bytes(content[: content.rfind(b"\n") + 1])  # an entry that is just being written is not whole
        study, space = _open(uri, copy)
        baselines = json.loads(folder.read(BASELINES)) if folder.exists(BASELINES) else []
        seed = study.user_attrs["space"].get("settings", {}).get("seed", 0)
        write_report(study, space, baselines, leaderboard(study, space, baselines, seed), copy.with_name("report.html"))
        return copy.with_name("report.html").read_text(encoding="utf-8")


def _open(uri: str, journal: Path) -> tuple[optuna.Study, Space]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    for name in names:
        study = optuna.load_study(study_name=name, storage=storage)
        defining = study.user_attrs.get("space")
        if defining is None:
            continue
        try:
            return study, Space.model_validate(_given(defining))
        except ValidationError:
            break
    raise UserError(f"{uri}/{JOURNAL}: holds no sweep of this version; run `swav-ray tune` with its space again")


def _given(defining: dict[str, Any]) -> dict[str, Any]:
    """What a space's file said, of the study's definition, which fills in what it left out."""

    def said(section: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
        fields = section.model_fields
        return {key: value for key, value in values.items() if value != fields[key].get_default(call_default_factory=True)}

    values = said(Space, {key: value for key, value in defining.items() if key != "settings"})
    values["params"] = {key: said(Param, param) for key, param in values["params"].items()}
    return values | {"scheduler": said(Scheduler, values["scheduler"])}
