"""The recorded numbers of the reference, and what it means to agree with them.

`Golden` remembers which arrays went in as inputs; a `Comparison` names the array it checks. Together they tell whether
any recorded array was forgotten (test_parity.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Tolerance:
    """``|ours - golden| <= atol + rtol * |golden|`` everywhere, and worst difference ``<= of_peak`` of the largest entry."""

    atol: float = 0.0
    rtol: float = 0.0
    of_peak: float = np.inf

    def __str__(self) -> str:
        parts = {"atol": self.atol, "rtol": self.rtol, "of peak": self.of_peak}
        stated = [f"{name} {value:g}" for name, value in parts.items() if 0 < value < np.inf]
        return ", ".join(stated) or "exact"


EXACT = Tolerance()
# Suggested by golden/README.md; what is computed in float64 must agree to float64.
CODES = SCORES = Tolerance(atol=1e-6)
LOSS = Tolerance(atol=2e-6)
GRADIENT = Tolerance(atol=1e-6, of_peak=1e-5)
LARS_STEP = Tolerance(rtol=1e-5, atol=1e-7)
LEARNING_RATE = Tolerance(rtol=1e-12)
RUN_LOSS = Tolerance(rtol=5e-5)
RUN_WEIGHTS = Tolerance(atol=1e-6)
# Not in golden/README.md. After five steps the reference's own float32 run is up to 2e-5 off its float64 run in these:
# biases of batch norms take their first step unscaled, at the full learning rate.
RUN_BIASES = RUN_STATISTICS = RUN_QUEUE = Tolerance(atol=5e-5)
# A bias before a batch norm has no effect; its gradient is rounding noise, which LARS scales to the size of the bias.
# The reference's float32 run is 2.6e-4 off our float64 run there, which equals its float64 run to 1e-16 elsewhere.
RUN_NOISE = Tolerance(atol=1e-3)
FLOAT64 = Tolerance(atol=1e-12)


@dataclass(frozen=True)
class Comparison:
    """Our value of one recorded array."""

    file: str
    array: str
    case: str  # the test it belongs to
    quantity: str  # the row of the parity table it belongs to
    ours: np.ndarray
    golden: np.ndarray
    tolerance: Tolerance

    @property
    def difference(self) -> float:
        return float(np.abs(self.ours.astype(np.float64) - self.golden.astype(np.float64)).max())

    def check(self) -> None:
        where = f"{self.file}.npz: {self.array}"
        assert self.ours.shape == self.golden.shape, where
        np.testing.assert_allclose(self.ours, self.golden, self.tolerance.rtol, self.tolerance.atol, err_msg=where)
        peak = float(np.abs(self.golden).max())
        assert not self.difference > self.tolerance.of_peak * peak, f"{where}: {self.difference} off, largest entry {peak}"


class Golden:
    """One file of recorded numbers."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.inputs: set[str] = set()  # arrays that were fed in

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / f"{self.file}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def input(self, name: str) -> np.ndarray:
        """An array to feed in."""
        self.inputs.add(name)
        return self._arrays[name]

    def recorded(self, name: str) -> np.ndarray:
        """An array that is fed in but checked as well, so that reading it here does not count."""
        return self._arrays[name]

    def compare(self, array: str, ours: np.ndarray, tolerance: Tolerance, *, case: str, quantity: str) -> Comparison:
        """An array to reproduce."""
        return Comparison(self.file, array, case, quantity, np.asarray(ours), self._arrays[array], tolerance)
