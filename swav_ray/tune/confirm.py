"""Is the winner better, or was it lucky? The best configurations and the baseline again, over seeds, on the test data.

The sweep ranked on held-out training images, and whoever comes first of many is partly lucky. Here each candidate is
trained in full once a seed and scored on test images that no step and no choice has seen.

Shapes: S seeds, N test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from swav_ray.config import Config
from swav_ray.data.shards import Shards
from swav_ray.errors import UserError
from swav_ray.train.labelled import check_classes
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.running import run_trials, trial_resources, view_of
from swav_ray.tune.sampling import Proposal
from swav_ray.tune.space import Space
from swav_ray.tune.study import FINISHED, open_study
from swav_ray.tune.sweep import Sweep

JOURNAL = "confirm.journal"
OBJECTIVE = "test/top1"
RESAMPLES = 4000


@dataclass(frozen=True)
class Candidate:
    """A configuration to confirm: trial ``number`` of the sweep, or None for the recipe as it is."""

    number: int | None
    settings: dict[str, Any]
    baseline: bool = False

    @property
    def name(self) -> str:
        known = "the recipe" if self.number is None else f"trial {self.number}"
        return f"{known} (baseline)" if self.baseline else known


def candidates(study: optuna.Study, top_k: int) -> list[Candidate]:
    """The ``top_k`` best complete trials beside the first baseline, best first, and that baseline (or the recipe) last."""
    trials = study.get_trials(deepcopy=False)
    base = next((trial for trial in trials if trial.user_attrs.get("baseline")), None)
    complete = sorted(
        (trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: (-trial.values[0], trial.number)
    )
    best = [trial for trial in complete if base is None or trial.number != base.number][:top_k]
    found = [Candidate(trial.number, trial.user_attrs["settings"]) for trial in best]
    if base is None:
        return [*found, Candidate(None, {}, baseline=True)]
    return [*found, Candidate(base.number, base.user_attrs["settings"], baseline=True)]


def confirm(sweep: Sweep) -> tuple[pd.DataFrame, bool]:
    """Train and score every candidate over the seeds of `confirm.seeds`; what was done before stays done.

    Returns:
        A row for each candidate (see :func:`summary`), also written to `confirm.md` and `.csv`; and whether it was asked to
        stop before the end, with rows of what is there.

    Raises:
        UserError: the recipe names no test data, or the sweep has no complete trial.
    """
    space, folder = sweep.space, sweep.folder
    if not sweep.base.data.test:
        raise UserError(f"data.test of {space.recipe} is not set; give labelled test shards with --set data.test=FOLDER")
    check_classes(Shards(sweep.base.data.train), Shards(sweep.base.data.test))  # now, not after the trainings
    found = candidates(sweep.study, space.confirm.top_k)
    if len(found) < 2:
        raise UserError(f"sweep {space.name}: nothing to confirm, no trial but the baseline is complete; run the sweep first")
    study = open_study(folder.journal(JOURNAL), f"{space.name}-confirm", ["maximize"], {})
    there = {_key(trial) for trial in study.get_trials(deepcopy=False)}
    seeds = space.confirm.seeds_from(sweep.base.seed)
    wanted = [(candidate, seed) for seed in seeds for candidate in found]
    new = [(candidate, seed) for candidate, seed in wanted if (candidate.number, seed) not in there]
    before = len(study.get_trials(deepcopy=False))

    def next_entry(_space: Space, number: int, _earlier: list[FrozenTrial]) -> Proposal | None:
        candidate, seed = new[number - before]
        return Proposal(params={}, distributions={}, system_attrs={}, settings=_task(candidate, seed), baseline=False)

    def config_of(number: int, settings: dict[str, Any]) -> Config:
        given = {key: value for key, value in settings.items() if key != "confirm"}
        config = space.config(given, trial=False)
        name = "recipe" if settings["confirm"] is None else f"{settings['confirm']:04d}"
        data = config.data.model_copy(update={"train": sweep.base.data.train, "test": sweep.base.data.test})
        where = (folder.storage / "confirm").uri
        return config.model_copy(update={"storage": where, "name": f"{name}-seed{settings['seed']}", "data": data})

    plain = space.model_copy(
        update={
            "objective": OBJECTIVE,
            "sampler": "random",
            "scheduler": type(space.scheduler)(),
            "budget": type(space.budget)(trials=before + len(new)),
        }
    )
    need, gpus = trial_resources(space)
    ledger = Ledger(
        study,
        plain,
        config_of,
        gpus_per_worker=gpus,
        keep=lambda: folder.keep(JOURNAL),
        propose=next_entry,
        stops=False,  # whoever is compared is trained to the end
    )
    stopped = False
    if any(trial.state not in FINISHED for trial in ledger.trials()) or new:
        epochs = space.config({}, trial=False).epochs
        stopped = run_trials(ledger, view_of(ledger, epochs), need, test=True)
    table = summary(found, seeds, lambda candidate, seed: _hits(sweep, study, candidate, seed))
    _write(table, sweep)
    return table, stopped


def _task(candidate: Candidate, seed: int) -> dict[str, Any]:
    return {**candidate.settings, "seed": seed, "confirm": candidate.number}


def _key(trial: FrozenTrial) -> tuple[int | None, int]:
    settings = trial.user_attrs["settings"]
    return settings["confirm"], settings["seed"]


def _hits(sweep: Sweep, study: optuna.Study, candidate: Candidate, seed: int) -> NDArray[np.float64] | None:
    """(N,) 1.0 where the run's probe was right; None if the run did not complete."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE and _key(trial) == (candidate.number, seed):
            name = trial.user_attrs["run"].rsplit("/", 1)[-1]
            text = (sweep.folder.storage / "confirm").read(f"{name}/test_hits.txt").decode()
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.float64) - ord("0")
    return None


def summary(found: list[Candidate], seeds: Sequence[int], hits: Any) -> pd.DataFrame:
    """Accuracy of each candidate on the test data, and its difference to the baseline on the same images and seeds.

    Intervals are of 95 %, by resampling seeds and images together: they speak of other seeds and other images.

    Args:
        found: the candidates, the baseline among them.
        hits: (candidate, seed) to (N,) hits, or None where that run is missing.

    Returns:
        Columns name, seeds (how many), top1, low, high, difference, difference_low, difference_high, and top1 of each seed.
    """
    base = next(candidate for candidate in found if candidate.baseline)
    rows = []
    for candidate in found:
        pairs = [(seed, hits(candidate, seed), hits(base, seed)) for seed in seeds]
        own = [(seed, mine) for seed, mine, _ in pairs if mine is not None]
        if not own:
            rows.append({"name": candidate.name, "seeds": 0, **candidate.settings})
            continue
        ours_SN = np.stack([mine for _, mine in own])
        row: dict[str, Any] = {"name": candidate.name, "seeds": len(own), "top1": ours_SN.mean()}
        row["low"], row["high"] = interval(ours_SN)
        both = [(mine, theirs) for _, mine, theirs in pairs if mine is not None and theirs is not None]
        if both and not candidate.baseline:
            gap_SN = np.stack([mine - theirs for mine, theirs in both])
            row["difference"] = gap_SN.mean()
            row["difference_low"], row["difference_high"] = interval(gap_SN)
        rows.append(row | {f"seed {seed}": mine.mean() for seed, mine in own} | candidate.settings)
    return pd.DataFrame(rows)


def interval(values_SN: NDArray[np.float64], share: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Where the mean of (S, N) values lies with ``share`` of other seeds and images, by resampling both."""
    draw = np.random.default_rng(seed)
    seeds, images = values_SN.shape
    means = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        chosen = values_SN[draw.integers(seeds, size=seeds)].mean(axis=0)
        means[index] = chosen[draw.integers(images, size=images)].mean()
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def lines(table: pd.DataFrame) -> list[str]:
    """The table as lines for the terminal."""
    out = []
    for row in table.to_dict("records"):
        if not row["seeds"]:
            out.append(f"  {row['name']:<24} no run completed")
            continue
        line = f"  {row['name']:<24} {row['top1']:.4f} [{row['low']:.4f}, {row['high']:.4f}] over {row['seeds']} seeds"
        if pd.notna(row.get("difference")):
            line += f"; to the baseline {row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        out.append(line)
    return out


def _write(table: pd.DataFrame, sweep: Sweep) -> None:
    folder = sweep.folder
    table.to_csv(folder.local / "confirm.csv", index=False)
    title = f"# Sweep {sweep.space.name}, confirmed\n\ntop-1 on the test data ({sweep.base.data.test}), 95 % intervals over "
    text = title + "seeds and images:\n\n" + "\n".join(f"-{line[1:]}" for line in lines(table)) + "\n"
    (folder.local / "confirm.md").write_text(text)
    for name in ("confirm.csv", "confirm.md", JOURNAL):
        folder.keep(name)
