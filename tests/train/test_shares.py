"""How places are divided over runs: for any number of places and runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swav_ray.train.shares import shares

runs = st.sets(st.integers(0, 200), max_size=12)


@given(total=st.integers(-2, 60), running=runs, least=st.integers(1, 6), more=st.integers(0, 8))
def test_places_are_divided_fairly(total: int, running: set[int], least: int, more: int) -> None:
    most = least + more
    given_ = shares(total, running, least, most)
    assert set(given_) == running
    assert sum(given_.values()) <= max(total, 0)
    served = [number for number in sorted(running) if given_[number]]
    assert served == sorted(running)[: len(served)], "who came first is served first"
    assert all(least <= given_[number] <= most for number in served)
    sizes = [given_[number] for number in served]
    assert sizes == sorted(sizes, reverse=True) and (not sizes or max(sizes) - min(sizes) <= 1)
    left = total - sum(sizes)
    assert len(served) == len(running) or left < least, "nobody waits while there are places for one more"
    assert not sizes or left <= 0 or min(sizes) == most or len(served) < len(running), "no place is left over"


def test_what_does_not_divide_goes_to_the_first() -> None:
    assert shares(7, [9, 3, 5], 1, 4) == {3: 3, 5: 2, 9: 2}
    assert shares(7, [3, 5], 1, 4) == {3: 4, 5: 3}
    assert shares(5, [1, 2, 3], 2, 4) == {1: 3, 2: 2, 3: 0}
