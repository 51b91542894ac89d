"""Which settings mattered: importances of the swept parameters, with how far they can be trusted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import create_trial

from swav_ray.tune.results import accuracy, ranked, results
from swav_ray.tune.space import Space

FEWEST = 4  # below, no figures at all
FEW = 10  # below, a warning with them
TOP = 5  # trials in the good group that PED-ANOVA wants at least (Optuna's documentation)


def importances(study: optuna.Study, space: Space) -> dict[str, Any]:
    """The share of each swept parameter in what set the best trials apart; over complete trials only, never an exception.

    Returns:
        `evaluator`, `target` (what they are importances for), `n` (complete trials), `importances` {dotted key: share, largest
        first, sum 1} and `note`, plain words on what to mind (empty if nothing). A parameter that only some trials had counts
        among those (conditional PED-ANOVA).
    """
    # PED-ANOVA, Optuna's default, asks what tells the best trials from all that were run. Against fANOVA it needs no model
    # of the objective (a forest fitted to twenty points explains mostly itself), is the same at each call, judges relative
    # to where the sampler looked (fANOVA wants evenly spread trials, TPE's are not), and takes conditional parameters.
    rows = ranked(results(study, space))
    n = len(rows)
    quantile = min(0.5, max(0.1, TOP / n)) if n else 0.5
    answer: dict[str, Any] = {
        "evaluator": f"PED-ANOVA (Optuna {optuna.__version__}), best {quantile:.0%} against all complete trials",
        "target": accuracy(space),
        "n": n,
        "importances": {},
    }
    values = {key: [row.trial.params[key] for row in rows if key in row.trial.params] for key in space.params}
    varied = [key for key, seen in values.items() if len(set(seen)) > 1]
    fixed = [key for key, seen in values.items() if len(set(seen)) == 1 and n > 1]
    never = [key for key, seen in values.items() if not seen and n > 1]
    notes = []
    if n < FEWEST:
        notes.append(
            f"{n} complete trial{'s' * (n != 1)}: too few for importances, {FEWEST} at least and {FEW} for a first idea"
        )
    elif len({row.value for row in rows}) == 1:
        notes.append("all complete trials have the same accuracy: nothing can be told")
    elif varied:
        if n < FEW:
            notes.append(f"only {n} complete trials: a hint at most, another few trials may turn it round")
        answer["importances"] = _evaluate([(row.trial, row.value) for row in rows], varied, quantile)
        if not any(answer["importances"].values()):
            notes.append("the best trials are spread like all others: no parameter stands out")
            answer["importances"] = dict.fromkeys(answer["importances"], 0.0)
    if fixed:
        notes.append(f"never varied among complete trials: {', '.join(fixed)}")
    if never:
        notes.append(f"in no complete trial: {', '.join(never)}")
    return answer | {"note": "; ".join(notes)}


def save_importances(answer: dict[str, Any], folder: Path) -> None:
    """Write `importances.json`."""
    (folder / "importances.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")


def _evaluate(trials: list[tuple[Any, Any]], keys: list[str], quantile: float) -> dict[str, float]:
    """Shares that sum to 1, or all 0. The trials go into a study of one objective, whatever theirs has."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # scikit-learn comes with it: two seconds

    study = optuna.create_study(direction="maximize")
    study.add_trials(
        create_trial(params=trial.params, distributions=trial.distributions, value=value) for trial, value in trials
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter that one trial only had; and `normalize` is marked experimental
        found = get_param_importances(study, evaluator=evaluator, params=keys, normalize=False)
    total = sum(found.values())
    return {key: float(value / total) if total > 0 else 0.0 for key, value in found.items()}
