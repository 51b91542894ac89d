"""Real Optuna studies in a journal, as a sweep leaves them: every state, rungs, lives, reasons."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from swav_ray.tune.results import objectives
from swav_ray.tune.space import Space

BASELINES = [
    {"name": "random init", "probe/top1": 0.82, "stderr": 0.013},
    {"name": "raw 16x16 pixels", "probe/top1": 0.91, "stderr": 0.01},
]
PARAMS: dict[str, Any] = {
    "num_prototypes": {"logint": [30, 400]},
    "temperature": {"loguniform": [0.05, 0.3]},
    "crop_counts": {"choice": [[2, 2], [2, 4]]},
    "optimizer": {"choice": ["adamw", "lars"]},
}
STATES = {"C": TrialState.COMPLETE, "P": TrialState.PRUNED, "F": TrialState.FAIL, "R": TrialState.RUNNING}
START = 1_700_000_000.0


def make_space(params: dict[str, Any] | None = None, *, objective: Any = "probe/top1", name: str = "board") -> Space:
    """A space; other objectives than the first slice's are put in unchecked."""
    values = {"name": name, "recipe": "demo-digits", "params": params or PARAMS, "budget": {"trials": 40}}
    space = Space.model_validate(values)
    return space if objective == "probe/top1" else space.model_copy(update={"objective": objective})


def open_journal(space: Space, folder: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    ways = ["minimize" if name == "gpu_hours" else "maximize" for name in objectives(space)]
    return optuna.create_study(study_name=space.name, storage=storage, directions=ways, load_if_exists=True)


def trial(space: Space, number: int, kind: str, *, value: float | None = None, epochs: int = 12, **attrs: Any) -> Any:
    """A frozen trial: kind C(omplete), P(runed), F(ailed) or R(unning), its settings drawn by ``number``.

    ``settings`` and ``params``, if given, are its own; everything else goes into the attributes.
    """
    rng = np.random.default_rng(number)
    spread = attrs.pop("distributions", None) or {key: param.distribution() for key, param in space.params.items()}
    params = attrs.pop("params", None) or {key: _draw(one, rng) for key, one in spread.items()}
    settings = {key: json.loads(v) if isinstance(v, str) and v.startswith("[") else v for key, v in params.items()}
    top = value if value is not None else 0.86 + 0.1 * rng.random()
    reach = {"C": epochs, "P": 6 if number % 2 else 3, "R": 3, "F": 0}[kind]
    names = objectives(space)
    rungs = {
        str(epoch): {
            "probe/top1": round(top - 0.25 * math.exp(-epoch / 3), 4),
            "probe/top1_stderr": 0.011,
            "knn/top1": round(top - 0.02 - 0.25 * math.exp(-epoch / 3), 4),
            "knn/top1_stderr": 0.012,
            "seconds": 0.6,
        }
        for epoch in (3, 6)
        if epoch <= reach
    }
    begin = START + 95 * number
    spans = [[begin, begin + 100 + 14 * reach]]
    if number % 7 == 3:  # two lives
        spans = [[begin, begin + 40], [begin + 60, begin + 130 + 14 * reach]]
    user: dict[str, Any] = {
        "settings": settings,
        "baseline": number == 0,
        "seed": 31,
        "run": f"runs/board/trials/{number:04d}",
        "rungs": rungs,
        "epochs_done": reach or None,
        "epochs": epochs,
        "parameters": 11_200_000,
        "seconds": sum(end - start for start, end in spans),
        "gpu_hours": 0.01 * (1 + number % 5),
        "spans": spans,
        "verdict": "healthy",
    }
    if kind == "C":
        user["top1_stderr"] = 0.008
    if kind == "P":
        user["ended"] = f"rung {reach}: {top:.4f} below the cut-off 0.9300"
    if kind == "F":
        user["error"] = "the loss is nan at step 12: lower base_lr"
    user = {key: value for key, value in (user | attrs).items() if value is not None}
    values = [top if name.endswith("/top1") else user["gpu_hours"] for name in names] if kind == "C" else None
    steps = {int(epoch): figures[names[0]] for epoch, figures in user.get("rungs", {}).items()} if len(names) == 1 else {}
    return create_trial(
        state=STATES[kind], params=params, distributions=spread, values=values, user_attrs=user, intermediate_values=steps
    )


def make_study(space: Space, folder: Path, kinds: str, values: list[float | None] | None = None) -> optuna.Study:
    """A study of ``len(kinds)`` trials, read again from its journal."""
    study = open_journal(space, folder)
    for number, kind in enumerate(kinds):
        study.add_trial(trial(space, number, kind, value=values[number] if values else None))
    return open_journal(space, folder)


def _draw(spread: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(spread, CategoricalDistribution):
        return spread.choices[int(rng.integers(len(spread.choices)))]
    assert isinstance(spread, FloatDistribution | IntDistribution)
    low, high = float(spread.low), float(spread.high)
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if spread.log else rng.uniform(low, high)
    return round(value) if isinstance(spread, IntDistribution) else value
