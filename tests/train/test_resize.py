"""The rules of changing the number of workers, on plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav_ray.config import Elastic
from swav_ray.train.resize import Clock, Debounce, fitting_size, growth_pays


@given(st.integers(1, 8), st.integers(0, 8), st.lists(st.integers(1, 20), max_size=5), st.integers(0, 20))
def test_a_fitting_size_is_the_largest_allowed(low: int, span: int, sizes: list[int], slots: int) -> None:
    high = low + span
    sizes = sizes if any(low <= size <= high for size in sizes) else []
    allowed = [n for n in range(low, high + 1) if n <= slots and (not sizes or n in sizes)]
    assert fitting_size(slots, Elastic(min=low, max=high, sizes=tuple(sizes))) == max(allowed, default=0)


def test_sizes_that_never_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"elastic.sizes \[16\] has none from elastic.min 2 to elastic.max 8"):
        Elastic(min=2, max=8, sizes=(16,))


def test_a_growth_must_pay_for_its_restart() -> None:
    assert growth_pays(1, 2, remaining_seconds=100, restart_seconds=49)
    assert not growth_pays(1, 2, remaining_seconds=100, restart_seconds=51)
    assert growth_pays(8, 9, remaining_seconds=1000, restart_seconds=100)
    assert not growth_pays(2, 2, remaining_seconds=1e9, restart_seconds=0)
    assert not growth_pays(1, 2, remaining_seconds=None, restart_seconds=0), "nothing is known yet"


def test_what_flaps_never_settles() -> None:
    debounce = Debounce(2.0)
    assert debounce.settled({"a"}, 0.0) == set()
    assert debounce.settled({"a", "b"}, 1.9) == set()
    assert debounce.settled({"b"}, 2.5) == set(), "a went"
    assert debounce.settled({"a", "b"}, 3.9) == {"b"}, "a came back and counts anew"
    assert debounce.settled({"a"}, 5.9) == {"a"}


def test_the_clock_measures_speed_and_restarts() -> None:
    clock = Clock(restart_seconds=5.0)
    assert clock.remaining(100) is None
    for step, now in ((0, 0.0), (1, 10.0), (1, 10.5), (3, 14.0), (5, 18.0)):
        assert clock.see(step, now) is None, "the first start is no restart"
    assert clock.remaining(100) == pytest.approx(95 * 2.0)
    clock.restarting()
    assert clock.remaining(100) is None
    clock.restarting()  # asked again while there is no group
    assert clock.see(5, 20.0) is None, "the step it resumes at"
    assert clock.see(6, 21.0) == pytest.approx(3.0), "from the last step seen"
    assert clock.restart_seconds == pytest.approx(4.0)
    assert clock.see(8, 22.0) is None and clock.remaining(10) == pytest.approx(1.0)


def test_a_restart_that_goes_back_is_still_one() -> None:
    clock = Clock()
    for step, now in ((40, 0.0), (41, 1.0), (59, 19.0)):
        clock.see(step, now)
    clock.restarting()
    assert clock.see(40, 22.0) is None
    assert clock.see(41, 23.0) == pytest.approx(4.0)
