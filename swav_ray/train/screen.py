"""A run's progress on the terminal: one live line, or a line now and then where output is a file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from swav_ray.config import Config

SECONDS_BETWEEN_LINES = 15.0


class Screen:
    """Shows what a run posts; a context manager."""

    def __init__(self, config: Config) -> None:
        self.config, self.console = config, Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        self._last_line = 0.0
        self._rate: tuple[float, int] | None = None  # when and at which step this start of the workers was first seen
        self._started: float | None = None

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
            self._live.update(Text("starting workers ..."))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, row: dict[str, Any]) -> None:
        """A row of the loop: a logged step, or the end of an epoch with its probe."""
        if "probe/top1" in row:
            self.console.print(
                f"epoch {row['epochs_done']}: probe/top1 {row['probe/top1']:.4f} ± {row['probe/top1_stderr']:.4f}",
                highlight=False,
            )
        if "epochs_done" in row:  # its last step was shown before
            return
        if row["started"] != self._started:
            self._started, self._rate = row["started"], (time.monotonic(), row["step"])
        line = self._line(row)
        if self._live is not None:
            self._live.update(Text(line))
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or row["step"] == row["steps"]:
            self._last_line = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)

    def tell(self, event: dict[str, Any]) -> None:
        """An event of the run's workers (`events.py`)."""
        if line := told(event):
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _line(self, row: dict[str, Any]) -> str:
        assert self._rate is not None
        since, first = self._rate
        done = row["step"] - first
        eta = f"{(time.monotonic() - since) / done * (row['steps'] - row['step']) / 60:.1f} min left" if done else "..."
        verdict = "" if row["verdict"] in ("healthy", "warming_up") else f"  {row['verdict'].upper()}: {row['advice']}"
        return (
            f"epoch {row['epoch'] + 1}/{self.config.epochs} step {row['step']}/{row['steps']}  loss {row['loss']:.3f} "
            f"(ln K {row['ln_k']:.3f})  prototypes {row['prototypes_in_use']}/{self.config.num_prototypes}  "
            f"{row['images_per_second']:.0f} images/s  {_workers(row['workers'])}  {eta}{verdict}"
        )


def told(event: dict[str, Any]) -> str:
    """An event in plain words; nothing of one that needs none."""
    kind = event["event"]
    if kind in ("grow", "drain", "restart", "share"):
        reasons = {"grow": "there is room for more", "drain": "a node is leaving", "restart": "going on with these"}
        why = reasons.get(kind, "other runs have a right to the rest")
        return f"step {event['step']}: {event['workers_before']} -> {_workers(event['workers'])}, {why}"
    if kind == "lost":
        return f"step {event['step']}: workers were lost: {event['cause']}"
    if kind == "resumed":
        return f"step {event['step']}: training again on {_workers(event['workers'])} after {event['seconds_without_steps']} s"
    if kind == "stuck":
        return (
            f"step {event['step']}: rank {event['rank']} on node {event['node'][:8]} held up all others for "
            f"{event['seconds']:.0f} s in {event['phase']} ({event['where']}) and was ended"
        )
    if kind == "waiting":
        each = ", ".join(f"{amount:g} {name}" for name, amount in event["each"].items())
        return (
            f"waiting for nodes: the run needs {_workers(event['needed'])} of {each}, the cluster has room for {event['room']}"
        )
    if kind == "late":
        return f"step {event['step']}: {event['waited_for']} did not come in time; work since the last one is done again"
    return ""


def _workers(count: int) -> str:
    return f"{count} worker" + ("s" if count != 1 else "")
