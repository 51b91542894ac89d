"""The sweep's live view: a table that redraws on a terminal, one line an event anywhere else (job logs)."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

OBJECTIVE = "probe/top1"


class LiveView(tune.Callback):
    """Follows Ray Tune's trials. Pickled with them, so the console is made on first use.

    Args:
        total: trials of the whole sweep.
        before: trials that had ended before this start.
        epochs: of each trial.
    """

    def __init__(self, space: Any, before: int, epochs: int) -> None:
        self.total, self.before, self.epochs = space.trials or 0, before, epochs
        self.started = time.monotonic()
        self.trials: dict[str, dict[str, Any]] = {}
        self.ended = 0
        self._live: Live | None = None
        self._console: Console | None = None

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

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        task = trial.config
        self.trials[trial.trial_id] = {"number": task["number"], "settings": task["settings"], "state": "running"}
        self._say(f"trial {task['number']} started: {_settings(task['settings'])}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        row = self.trials[trial.trial_id]
        row.update({key: result[key] for key in ("epochs_done", "loss", OBJECTIVE, "verdict", "error") if key in result})
        self._say(f"trial {row['number']}: epoch {row.get('epochs_done', 0)}/{self.epochs}, loss {row.get('loss', 0):.3f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self.trials[trial.trial_id]
        self.ended += 1
        row["state"] = "failed" if row.get("error") else "done"
        end = row.get("error") or f"probe/top1 {row.get(OBJECTIVE, float('nan')):.4f}"
        self._say(f"trial {row['number']} {row['state']}: {end} ({self.before + self.ended}/{self.total}{self._eta()})")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended += 1
        self.trials[trial.trial_id]["state"] = "died"
        self._say(f"trial {self.trials[trial.trial_id]['number']} died; its log is in {trial.local_path}")

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()
            self._live = None

    def _eta(self) -> str:
        left = self.total - self.before - self.ended
        if not self.ended or not left:
            return ""
        return f", about {left * (time.monotonic() - self.started) / self.ended / 60:.0f} min left"

    def _say(self, line: str) -> None:
        if self.console.is_terminal:
            if self._live is not None:
                self._live.update(self._table())
        else:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(title=f"{self.before + self.ended} of {self.total} trials{self._eta()}")
        for name in ("trial", "settings", "state", "epoch", "loss", "probe/top1"):
            table.add_column(name, justify="left" if name in ("settings", "state") else "right")
        for row in sorted(self.trials.values(), key=lambda row: row["number"]):
            table.add_row(
                str(row["number"]),
                _settings(row["settings"]),
                row["state"],
                f"{row.get('epochs_done', 0)}/{self.epochs}",
                f"{row['loss']:.3f}" if "loss" in row else "",
                f"{row[OBJECTIVE]:.4f}" if OBJECTIVE in row else "",
            )
        return table


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items())
