"""From the start of a trial to its first training step: processes that stay, against a new process for each trial.

    python -m benchmarks.trial_startup [--quick] [--trials 6]

Two sweeps of the same one-worker trials on small digits, one trial at a time: ours (the next trial starts in a process that has
everything imported) and the peer (Ray Tune's default, an actor of its own for each trial). The first trial of each is left out:
it pays for the process in both. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from typing import Any

from swav_ray.tune import running
from swav_ray.tune.space import Space
from swav_ray.tune.sweep import Sweep

GOAL = 3.0  # seconds


def startups(trials: int, reuse: bool, storage: str) -> list[float]:
    """Seconds to the first step of each trial but the first."""
    values: dict[str, Any] = {
        "name": f"startup-{'ours' if reuse else 'stock'}",
        "recipe": "demo-digits",
        "overrides": {"storage": storage, "epochs": 2, "warmup_epochs": 0, "queue_start_epoch": 0, "backbone.base_width": 4},
        "params": {"temperature": {"loguniform": [0.05, 0.3]}},
        "sampler": "random",
        "budget": {"trials": trials + 1},
    }
    running.REUSE = reuse
    sweep = Sweep(Space.model_validate(values))
    sweep.run()
    found = [trial.user_attrs["startup_seconds"] for trial in sweep.study.get_trials(deepcopy=False)]
    sweep.close()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="two trials")
    options = parser.parse_args()
    from swav_ray.train.session import connect

    trials, storage = (2 if options.quick else options.trials), tempfile.mkdtemp(prefix="swav-ray-")
    connect(cpus=2)
    ours, stock = startups(trials, True, storage), startups(trials, False, storage)
    for name, seconds in (("ours", ours), ("a process each", stock)):
        print(f"{name}: median {statistics.median(seconds):.2f} s of {[round(s, 2) for s in seconds]}")
    mine, theirs = statistics.median(ours), statistics.median(stock)
    print(json.dumps({"seconds": mine, "stock_seconds": theirs, "ratio": mine / theirs, "goal_seconds": GOAL}))


if __name__ == "__main__":
    main()
