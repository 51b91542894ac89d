"""Our codes of every recorded Sinkhorn call: one process, float64, and two gloo processes."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.distributed as dist

from swav_ray.swav import sinkhorn
from tests.gloo import run_ranks
from tests.swav.golden import CODES, FLOAT64, Comparison, Golden

GOLDEN = Golden("sinkhorn")
CASES = [name for name in GOLDEN.names if not name.endswith("_scores")]


def settings_of(case: str) -> tuple[str, float, int, str]:
    """``c0_eps05_it3_world2`` -> its scores' name, epsilon, iterations, kind of run."""
    found = re.fullmatch(r"(c\d+)_eps(\d+)_it(\d+)_(world1|world1_f64|world2)", case)
    assert found, case
    return f"{found[1]}_scores", int(found[2]) / 100, int(found[3]), found[4]


def codes_on_rank(rank: int, calls: list[tuple[np.ndarray, float, int]]) -> list[np.ndarray]:
    """This rank's codes of each call; a call's scores are (rank, B, K)."""
    return [
        sinkhorn(torch.from_numpy(scores[rank]), epsilon=epsilon, num_iterations=iterations, group=dist.group.WORLD).numpy()
        for scores, epsilon, iterations in calls
    ]


def comparisons() -> list[Comparison]:
    ours: dict[str, np.ndarray] = {}
    on_two_ranks: dict[str, tuple[np.ndarray, float, int]] = {}
    for case in CASES:
        scores_name, epsilon, iterations, kind = settings_of(case)
        scores_RBK = GOLDEN.input(scores_name)
        if kind == "world2":
            on_two_ranks[case] = (scores_RBK, epsilon, iterations)
        else:
            scores = torch.from_numpy(scores_RBK).flatten(0, 1)
            scores = scores.double() if kind == "world1_f64" else scores
            ours[case] = sinkhorn(scores, epsilon=epsilon, num_iterations=iterations).numpy()
    ranks = run_ranks(2, codes_on_rank, list(on_two_ranks.values()))
    ours.update({case: np.stack(codes) for case, codes in zip(on_two_ranks, zip(*ranks, strict=True), strict=True)})
    return [
        GOLDEN.compare(
            case,
            ours[case],
            FLOAT64 if case.endswith("f64") else CODES,
            case=case,
            quantity=f"codes, {settings_of(case)[-1].replace('_', ' ')}",
        )
        for case in CASES
    ]
