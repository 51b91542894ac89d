"""How close we are to the reference, by kind of number: `python -m tests.swav.parity_table`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.swav import parity_end_to_end, parity_loss, parity_optim, parity_sinkhorn
from tests.swav.golden import Comparison, Golden


@dataclass(frozen=True)
class Part:
    """A recorded file, the cases in it, and how we reproduce them all."""

    golden: Golden
    cases: list[str]
    compute: Callable[[], list[Comparison]]


PARTS = {
    part.golden.file: part
    for part in (
        Part(parity_sinkhorn.GOLDEN, parity_sinkhorn.CASES, parity_sinkhorn.comparisons),
        Part(parity_loss.GOLDEN, ["prototypes", *parity_loss.RUNS], parity_loss.comparisons),
        Part(parity_optim.STEPS, parity_optim.LARS_CASES, parity_optim.lars_comparisons),
        Part(parity_optim.SCHEDULES, [*parity_optim.SCHEDULE_NAMES, "queue_rounding"], parity_optim.schedule_comparisons),
        Part(parity_end_to_end.GOLDEN, parity_end_to_end.CASES, parity_end_to_end.comparisons),
    )
}


def table(comparisons: list[Comparison]) -> str:
    """Markdown: one row for each kind of array."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.file, comparison.quantity, str(comparison.tolerance)].append(comparison.difference)
    lines = ["| file | what | arrays | worst absolute difference | tolerance |", "|---|---|---|---|---|"]
    for (file, quantity, tolerance), differences in groups.items():
        lines.append(f"| {file} | {quantity} | {len(differences)} | {max(differences):.1e} | {tolerance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table([comparison for part in PARTS.values() for comparison in part.compute()]))
