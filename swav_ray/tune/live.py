"""The sweep's live view: a screen that redraws on a terminal, one line an event anywhere else (job logs)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swav_ray.tune.findings import settings_text
from swav_ray.tune.results import Result

ENDS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
SHOWN = {"running": "running", "complete": "done", "pruned": "stopped early", "failed": "failed", "waiting": "waiting"}
WELL = (None, "", "healthy", "warming_up")  # verdicts that need no word
KEPT = ("epochs_done", "epochs", "loss", "verdict", "gpu_hours", "ended", "error")


class LiveView(tune.Callback):
    """A view over plain events. As a callback of Ray Tune it hears of processes that start and die; rows and ends come from the
    ledger's adapters (`scheduling.py`). Pickled with the trials, so the console is made on first use.

    A row of a trial has any of `epochs_done`, `epochs`, `loss`, `verdict`, `gpu_hours`, the objective and its `_stderr`,
    `cutoff` (what a rung's last decision asked for), and at the end `state`, `ended`, `error`.

    Args:
        epochs: of each trial that does not say its own.
        trials, hours, gpu_hours: the budget, whichever is given.
        objective: the accuracy that rows carry.
        earlier: what the study held before this start.
        hours_used: of the budget, before this start.
    """

    def __init__(
        self,
        *,
        epochs: int,
        trials: int | None = None,
        hours: float | None = None,
        gpu_hours: float | None = None,
        objective: str = "probe/top1",
        earlier: Iterable[Result] = (),
        hours_used: float = 0.0,
    ) -> None:
        self.epochs, self.objective = epochs, objective
        self.budget = {"trials": trials, "h": hours, "GPU-h": gpu_hours}
        self.hours_used = hours_used
        self.started: float | None = None  # monotonic seconds of the first event
        self.trials = {result.number: self._from_result(result) for result in earlier}
        self.at_start = sum(self._share(trial) for trial in self.trials.values())
        self.cutoffs: dict[int, float] = {}
        self._live: Live | None = None
        self._console: Console | None = None

    def _from_result(self, result: Result) -> dict[str, Any]:
        state = "waiting" if result.status == "running" else result.status  # it goes on when its turn comes
        kept = {key: result.attrs[key] for key in KEPT if key in result.attrs}
        row = {"number": result.number, "settings": result.settings, "state": state, **kept}
        length = kept.get("epochs", self.epochs)
        row["rungs"] = {epoch: value for epoch, value in result.curve.items() if epoch < length}
        return row | {"value": result.value, "stderr": result.stderr}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_live": None, "_console": None}

    @property
    def console(self) -> Console:
        if self._console is None:
            self._console = Console()
            if self._console.is_terminal:
                self._live = Live(console=self._console, refresh_per_second=4)
                self._live.start()
        return self._console

    # The events.

    def trial_started(self, number: int, settings: dict[str, Any]) -> None:
        """A trial's process starts, for the first time or again."""
        self.started = self.started or time.monotonic()
        again = number in self.trials
        trial = self.trials.setdefault(number, {"number": number, "rungs": {}, "value": None, "stderr": None})
        trial |= {"settings": settings, "state": "running"}
        begins = f"goes on after epoch {trial.get('epochs_done') or 0}" if again else "started"
        self._say(f"trial {number} {begins}: {settings_text(settings)}")

    def trial_row(self, number: int, row: dict[str, Any]) -> None:
        """A result of a running trial; a line if it is a rung's, or if the collapse watch sees something new."""
        trial = self.trials[number]
        before = trial.get("verdict")
        trial |= {key: row[key] for key in KEPT if row.get(key) is not None}
        epoch, value = trial.get("epochs_done") or 0, row.get(self.objective)
        lines = []
        if value is not None:
            trial |= {"value": value, "stderr": row.get(f"{self.objective}_stderr")}
            new = epoch < self._length(trial) and epoch not in trial["rungs"] and row.get("state") != "FAIL"
            if new:
                trial["rungs"][epoch] = value
            if new and "state" not in row:
                loss = f", loss {trial['loss']:.3f}" if "loss" in trial else ""
                lines.append(f"trial {number}: epoch {epoch}/{self._length(trial)}{loss}, {self._score(trial)}")
        if row.get("cutoff") is not None:
            self.cutoffs[epoch] = row["cutoff"]
        if trial.get("verdict") not in (before, *WELL):
            lines.append(f"trial {number}: the collapse watch says {trial['verdict']} (epoch {epoch})")
        for line in lines or [""]:
            self._say(line)

    def trial_ended(self, number: int, state: str, row: dict[str, Any]) -> None:
        """A trial is over; ``state`` is COMPLETE, PRUNED or FAIL."""
        self.trial_row(number, row | {"state": state})
        trial, old = self.trials[number], self._best()
        trial["state"] = ENDS[state]
        epoch = trial.get("epochs_done") or 0
        if state == "FAIL":
            told = f"failed: {trial.get('error') or 'no reason given'}"
        elif state == "PRUNED":
            told = f"stopped early after epoch {epoch}: {trial.get('ended') or 'no reason given'}"
        else:
            told = f"done: {self._score(trial)}" + (", the best so far" if old and self._best() is trial else "")
        self._say(f"trial {number} {told} ({self._ended()}{self._eta()})")

    def trial_died(self, number: int, where: str) -> None:
        """A trial's process is gone and will be started again; ``where`` its log is."""
        trial = self.trials[number]
        trial["state"] = "waiting"
        self._say(f"trial {number} died after epoch {trial.get('epochs_done') or 0} and will go on; its log is in {where}")

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.update(self._picture())
            self._live.stop()
            self._live = None

    # Ray Tune's callbacks.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trial_started(trial.config["number"], trial.config["settings"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trial_died(trial.config["number"], trial.local_path)

    # What is shown.

    def _length(self, trial: dict[str, Any]) -> int:
        return int(trial.get("epochs") or self.epochs)

    def _share(self, trial: dict[str, Any]) -> float:
        """How much of a trial is behind it, 0 to 1."""
        over = trial["state"] in ENDS.values()
        return 1.0 if over else min(1.0, (trial.get("epochs_done") or 0) / self._length(trial))

    def _best(self) -> dict[str, Any] | None:
        complete = [trial for trial in self.trials.values() if trial["state"] == "complete" and trial["value"] is not None]
        return max(complete, key=lambda trial: (trial["value"], -trial["number"]), default=None)

    def _score(self, trial: dict[str, Any]) -> str:
        if trial["value"] is None:
            return f"no {self.objective}"
        error = f" ± {trial['stderr']:.4f}" if trial["stderr"] is not None else ""
        return f"{self.objective} {trial['value']:.4f}{error}"

    def _over(self) -> int:
        return sum(trial["state"] in ENDS.values() for trial in self.trials.values())

    def _ended(self) -> str:
        total = self.budget["trials"]
        return f"{self._over()}/{total}" if total else f"{self._over()} ended"

    def _eta(self) -> str:
        """From the share of trials done since this start; no guess before there is any."""
        elapsed = time.monotonic() - (self.started or time.monotonic())
        done = sum(self._share(trial) for trial in self.trials.values())
        left = []
        if self.budget["trials"] and done > self.at_start:
            left.append(elapsed / (done - self.at_start) * max(0.0, self.budget["trials"] - done))
        if self.budget["h"]:
            left.append(max(0.0, self.budget["h"] - self.hours_used) * 3600 - elapsed)
        if not left or min(left) <= 0 or self._over() == self.budget["trials"]:
            return ""
        minutes = min(left) / 60
        return f", about {minutes:.0f} min left" if minutes < 100 else f", about {minutes / 60:.1f} h left"

    def _budget(self) -> str:
        elapsed = time.monotonic() - (self.started or time.monotonic())
        used: dict[str, float] = {
            "trials": self._over(),
            "h": self.hours_used + elapsed / 3600,
            "GPU-h": sum(trial.get("gpu_hours") or 0.0 for trial in self.trials.values()),
        }
        parts = [
            f"{max(0, have - used[unit]):.3g} of {have:g} {unit}" for unit, have in self.budget.items() if have is not None
        ]
        return f"budget left: {', '.join(parts)}" if parts else ""

    def _say(self, line: str) -> None:
        if self.console.is_terminal:
            if self._live is not None:
                self._live.update(self._picture())
        elif line:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _picture(self) -> Group:
        counts = Counter(trial["state"] for trial in self.trials.values())
        if self.budget["trials"]:
            counts["waiting"] += max(0, int(self.budget["trials"]) - len(self.trials))
        parts: list[Any] = [
            Text(", ".join(f"{counts[state]} {word}" for state, word in SHOWN.items()), style="bold"),
            Text(f"{self._budget()}{self._eta()}"),
        ]
        if (best := self._best()) is not None:
            parts.append(Text(f"best so far: {self._score(best)}, trial {best['number']} ({settings_text(best['settings'])})"))
        for table in (self._running(), self._rungs()):
            if table.row_count:
                parts.append(table)
        return Group(*parts)

    def _running(self) -> Table:
        table = Table(box=None, padding=(0, 1))
        for name in ("trial", "epoch", "loss", self.objective, "verdict", "settings"):
            table.add_column(name, justify="left" if name in ("verdict", "settings") else "right", no_wrap=name != "settings")
        for trial in sorted(self.trials.values(), key=lambda trial: trial["number"]):
            if trial["state"] == "running":
                table.add_row(
                    str(trial["number"]),
                    f"{trial.get('epochs_done') or 0}/{self._length(trial)}",
                    f"{trial['loss']:.3f}" if "loss" in trial else "",
                    "" if trial["value"] is None else self._score(trial).removeprefix(f"{self.objective} "),
                    trial.get("verdict") or "",
                    Text(settings_text(trial["settings"])),
                )
        return table

    def _rungs(self) -> Table:
        table = Table(box=None, padding=(0, 1))
        for name in ("rung: epoch", "trials there", "best", "last cut-off"):
            table.add_column(name, justify="right")
        for epoch in sorted({epoch for trial in self.trials.values() for epoch in trial["rungs"]}):
            values = [trial["rungs"][epoch] for trial in self.trials.values() if epoch in trial["rungs"]]
            cutoff = f"{self.cutoffs[epoch]:.4f}" if epoch in self.cutoffs else "-"
            table.add_row(str(epoch), str(len(values)), f"{max(values):.4f}", cutoff)
        return table
