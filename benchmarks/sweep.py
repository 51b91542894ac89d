"""Better for the same money? TPE with early stopping, random search without, and the published defaults, on real digits.

    python -m benchmarks.sweep [--quick] [--seeds 3] [--cpu-seconds 600]

For each seed two sweeps of the same space get the same CPU-seconds of training: ours (TPE + ASHA) and the peer (random search,
every trial to its end). Each chooses by its held-out probe. The chosen configurations and the published defaults (temperature
0.1, epsilon 0.05, K scaled from 3000 for 1000 classes to 30 for 10) are then trained again, once a seed and for as long as a
trial, and scored on test digits no choice has seen. Differences are paired by seed and image; intervals of 95 % resample both.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.tune.confirm import interval
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.running import run_trials, trial_resources, view_of
from swav_ray.tune.sampling import Proposal
from swav_ray.tune.space import Space
from swav_ray.tune.study import open_study
from swav_ray.tune.sweep import Sweep

ARMS: dict[str, dict[str, Any]] = {
    "tpe + asha": {"sampler": "tpe", "scheduler": {"kind": "asha", "first_rung": 3, "factor": 3}},
    "random": {"sampler": "random", "scheduler": "none"},
}
DEFAULTS = {"num_prototypes": 30, "temperature": 0.1, "epsilon": 0.05}
PARAMS = {
    "num_prototypes": {"logint": [10, 190]},
    "temperature": {"loguniform": [0.03, 0.5]},
    "epsilon": {"loguniform": [0.01, 0.3]},
    "base_lr": {"loguniform": [0.0003, 0.03]},
}
SHORT = {"epochs": 9, "warmup_epochs": 1, "queue_start_epoch": 2, "backbone.base_width": 8, "probe.every_epochs": 0}


class MeteredLedger(Ledger):
    """A budget of the trials' CPU-seconds; who runs when it is spent may end. Without a scheduler nothing is stopped at all."""

    cpu_seconds = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stops = self.space.scheduler.kind != "none"  # nor by the collapse watch

    def spent(self) -> str:
        used = sum(trial.user_attrs.get("cpu_seconds", 0.0) for trial in self.trials())
        return f"{self.cpu_seconds:g} CPU-seconds" if used >= self.cpu_seconds else ""


def space_of(arm: str, seed: int, storage: str, **changes: Any) -> Space:
    values = {
        "name": f"{arm.replace(' + ', '-')}-{seed}",
        "recipe": "demo-digits",
        "overrides": {**SHORT, "storage": storage, **changes},
        "params": PARAMS,
        "seed": seed,
        "budget": {"hours": 100},
        "concurrency": 2,
        **ARMS[arm],
    }
    return Space.model_validate(values)


def run_sweep(space: Space) -> dict[str, Any]:
    """The settings a sweep chooses, and what it spent."""
    sweep = Sweep(space)
    sweep.ledger_class = MeteredLedger
    sweep.run()
    trials = sweep.study.get_trials(deepcopy=False)
    best = max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    sweep.close()
    states = {state.name.lower(): sum(t.state == state for t in trials) for state in {t.state for t in trials}}
    cpu = sum(trial.user_attrs.get("cpu_seconds", 0.0) for trial in trials)
    probes = sum(rung["seconds"] or 0.0 for trial in trials for rung in trial.user_attrs.get("rungs", {}).values())
    return {
        "settings": best.user_attrs["settings"],
        "held_out": best.value,
        "trials": len(trials),
        "states": states,
        "cpu": cpu,
        "probes": probes,
    }


def train(chosen: dict[tuple[str, int], dict[str, Any]], storage: str, **changes: Any) -> dict[tuple[str, int], Any]:
    """(N,) hits on the test data of each (arm, seed)'s configuration, trained anew."""
    entries = list(chosen)
    space = space_of("random", 0, storage, **changes)
    base = Sweep(space)
    data = base.base.data
    base.close()
    epochs = {**SHORT, **changes}["epochs"]
    study = open_study(base.folder.journal(f"final-{epochs}.journal"), f"final-{epochs}", ["maximize"], {})
    plain = space.model_copy(
        update={"objective": "test/top1", "sampler": "random", "budget": type(space.budget)(trials=len(entries))}
    )

    def config_of(number: int, settings: dict[str, Any]) -> Config:
        config = space.config({**SHORT, **changes, **settings}, trial=False)
        where = {"storage": f"{storage}/final-{config.epochs}", "name": f"{number:04d}"}
        return config.model_copy(
            update={**where, "data": config.data.model_copy(update={"train": data.train, "test": data.test})}
        )

    def entry(_space: Space, number: int, _earlier: Any) -> Proposal:
        return Proposal({}, {}, {}, chosen[entries[number]] | {"seed": 31 + entries[number][1]}, False)

    ledger = Ledger(study, plain, config_of, propose=entry, stops=False)
    run_trials(
        ledger, view_of(ledger, config_of(0, chosen[entries[0]] | {"seed": 31}).epochs), trial_resources(space)[0], test=True
    )
    hits = {}
    for trial in study.get_trials(deepcopy=False):
        text = Storage(trial.user_attrs["run"]).read("test_hits.txt")
        hits[entries[trial.number]] = np.frombuffer(text, dtype=np.uint8).astype(np.float64) - ord("0")
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpu-seconds", type=float, default=600.0, help="of training, for each sweep")
    parser.add_argument("--final-epochs", type=int, default=0, help="of the chosen configurations; 0: the trials' own number")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works; its numbers mean nothing")
    parser.add_argument("--storage", default="", help="folder to work in; one that was begun goes on")
    options = parser.parse_args()
    from swav_ray.train.session import connect

    changes: dict[str, Any] = {}
    if options.quick:
        options.seeds, options.cpu_seconds = 1, 5.0
        changes = {"backbone.base_width": 4, "global_batch_size": 256, "queue_length": 256, "epochs": 4}
    MeteredLedger.cpu_seconds = options.cpu_seconds
    storage = options.storage or tempfile.mkdtemp(prefix="swav-ray-")
    connect(cpus=2)
    chosen: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in range(options.seeds):
        for arm in ARMS:
            found = run_sweep(space_of(arm, seed, str(Path(storage).absolute()), **changes))
            chosen[arm, seed] = found["settings"]
            print(
                f"{arm} {seed}: {found['trials']} trials {found['states']} in {found['cpu']:.0f} CPU-s "
                f"({found['probes']:.0f} s of them for probes); held out {found['held_out']:.4f}: {found['settings']}",
                flush=True,
            )
        chosen["defaults", seed] = DEFAULTS
    if options.final_epochs:
        changes["epochs"] = options.final_epochs
    hits = train(chosen, str(Path(storage).absolute()), **changes)
    stacked = {arm: np.stack([hits[arm, seed] for seed in range(options.seeds)]) for arm in (*ARMS, "defaults")}
    for arm, hits_SN in stacked.items():
        low, high = interval(hits_SN)
        print(
            f"{arm}: test top-1 {hits_SN.mean():.4f} [{low:.4f}, {high:.4f}]; by seed {hits_SN.mean(axis=1).round(4).tolist()}"
        )
    ours = stacked["tpe + asha"]
    out: dict[str, float] = {}
    for name, peer in (("defaults", "defaults"), ("random", "random")):
        gap = ours - stacked[peer]
        out[f"gain_over_{name}"] = float(gap.mean())
        out[f"gain_over_{name}_low"], out[f"gain_over_{name}_high"] = interval(gap)
    print(json.dumps(out | {"seeds": options.seeds, "cpu_seconds": options.cpu_seconds}))


if __name__ == "__main__":
    main()
