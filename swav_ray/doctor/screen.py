"""The report as people and programs read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swav_ray.doctor.check import State

if TYPE_CHECKING:
    from rich.console import Console

    from swav_ray.doctor.examine import Report

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILURE: "bold red", State.SKIPPED: "dim"}


def show(report: Report, console: Console) -> None:
    """A table on a terminal, a line a check elsewhere, and the sum."""
    if console.is_terminal:
        console.print(_table(report))
    else:
        for check in report.checks:
            print(f"{check.state:<8} {check.name}: {check.found}{f' -> {check.mend}' if check.mend else ''}")
    print(summary(report))


def summary(report: Report) -> str:
    """``3 nodes of ...: 12 ok, 1 warning, 2 failures, 0 skipped``."""
    counts = {state: report.count(state) for state in State}
    words = [f"{counts[State.OK]} ok"]
    words += [f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in (State.WARNING, State.FAILURE)]
    return f"{report.where}: {', '.join(words)}, {counts[State.SKIPPED]} skipped"


def as_json(report: Report) -> str:
    """``{"passed": ..., "where": ..., "checks": [{"name", "state", "found", "mend"}]}``."""
    checks: list[dict[str, Any]] = [
        {"name": c.name, "state": str(c.state), "found": c.found, "mend": c.mend} for c in report.checks
    ]
    return json.dumps({"passed": report.passed, "where": report.where, "checks": checks}, indent=1)


def _table(report: Report) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "check", "found"):
        table.add_column(title)
    for check in report.checks:
        found = Text(check.found)
        if check.mend:
            found.append(f"\n-> {check.mend}", style="bold")
        table.add_row(Text(check.state, style=COLOURS[check.state]), Text(check.name), found)
    return table
