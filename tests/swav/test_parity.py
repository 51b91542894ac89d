"""The published method: every number the reference recorded, reproduced (promise 1 of the design)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.swav.golden import FOLDER, Comparison
from tests.swav.parity_table import PARTS, table

CASES = [pytest.param(file, case, id=f"{file}-{case}") for file, part in PARTS.items() for case in part.cases]


@pytest.fixture(scope="session")
def reproduced() -> Callable[[str], list[Comparison]]:
    """Everything recorded in a file; computed once, also if that fails."""
    outcomes: dict[str, list[Comparison] | Exception] = {}

    def of_file(file: str) -> list[Comparison]:
        if file not in outcomes:
            try:
                outcomes[file] = PARTS[file].compute()
            except Exception as error:
                outcomes[file] = error
        outcome = outcomes[file]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return of_file


@pytest.mark.parametrize(("file", "case"), CASES)
def test_recorded_case_is_reproduced(reproduced: Callable[[str], list[Comparison]], file: str, case: str) -> None:
    of_case = [comparison for comparison in reproduced(file) if comparison.case == case]
    assert of_case
    for comparison in of_case:
        comparison.check()


@pytest.mark.parametrize("file", PARTS)
def test_no_recorded_array_is_forgotten(reproduced: Callable[[str], list[Comparison]], file: str) -> None:
    part, comparisons = PARTS[file], reproduced(file)
    assert {comparison.case for comparison in comparisons} == set(part.cases)
    compared = [comparison.array for comparison in comparisons]
    assert len(compared) == len(set(compared))
    assert set(compared) | part.golden.inputs == set(part.golden.names)
    assert not set(compared) & part.golden.inputs


def test_table_shows_every_comparison(reproduced: Callable[[str], list[Comparison]]) -> None:
    comparisons = [comparison for file in PARTS for comparison in reproduced(file)]
    rows = table(comparisons).splitlines()[2:]
    assert sum(int(row.split("|")[3]) for row in rows) == len(comparisons)


def test_every_recorded_file_has_a_part() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(PARTS)
