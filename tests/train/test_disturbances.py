"""Schedules of disturbances: the same for a seed, in order, in time, never outside the bounds."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav_ray.errors import UserError
from swav_ray.train.disturbances import Disturbance, disturbances


@st.composite
def settings(draw: st.DrawFn) -> dict:
    low, high = sorted(draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
    every = st.floats(1, 500) | st.just(math.inf)
    return {
        "seed": draw(st.integers(0, 2**32)),
        "seconds": draw(st.floats(0, 2000)),
        "kill_every": draw(every),
        "resize_every": draw(every),
        "min_nodes": low,
        "max_nodes": high,
        "start_nodes": draw(st.none() | st.integers(low, high)),
        "node_share": draw(st.floats(0, 1)),
        "jitter": draw(st.floats(0, 1)),
    }


@given(settings())
def test_deterministic_sorted_in_time_and_within_bounds(given_: dict) -> None:
    found = disturbances(**given_)
    assert disturbances(**given_) == found
    times = [one.at_seconds for one in found]
    assert times == sorted(times)
    assert all(0 < at < given_["seconds"] for at in times)
    nodes = given_["max_nodes"] if given_["start_nodes"] is None else given_["start_nodes"]
    for one in found:
        nodes += {"add_node": 1, "remove_node": -1, "kill_node": -1, "kill_worker": 0}[one.kind]
        assert one.nodes == nodes
        assert given_["min_nodes"] <= nodes <= given_["max_nodes"]
        assert 0 <= one.pick < 1
        assert (one.notice_seconds > 0) == (one.kind == "remove_node")


@given(settings(), st.floats(1, 500))
def test_kills_come_at_the_same_times_whatever_the_resizes(given_: dict, resize_every: float) -> None:
    def kills(**changes: float) -> list[tuple[float, float]]:
        return [(d.at_seconds, d.pick) for d in disturbances(**given_ | changes) if d.kind.startswith("kill")]

    assert kills() == kills(resize_every=resize_every)


def test_no_jitter_is_a_clock() -> None:
    found = disturbances(7, 900, kill_every=180, resize_every=60, min_nodes=1, max_nodes=3, jitter=0)
    assert [d.at_seconds for d in found if d.kind.startswith("kill")] == pytest.approx([180, 360, 540, 720])
    assert [d.at_seconds for d in found if not d.kind.startswith("kill")] == pytest.approx(range(60, 900, 60))


@pytest.mark.parametrize("jitter", [0.3, 1.0])
def test_gaps_have_the_mean_asked_for(jitter: float) -> None:
    found = disturbances(7, 400_000, kill_every=100, resize_every=math.inf, min_nodes=1, max_nodes=1, jitter=jitter)
    times = [0.0, *(d.at_seconds for d in found)]
    gaps = [b - a for a, b in pairwise(times)]
    assert mean(gaps) == pytest.approx(100, rel=0.05)
    spread = math.sqrt(mean((gap - 100) ** 2 for gap in gaps))
    assert spread == pytest.approx(100 * jitter, rel=0.1)  # of an exponential: its mean


def test_all_kinds_come_and_seeds_differ() -> None:
    common = {"kill_every": 50.0, "resize_every": 50.0, "min_nodes": 1, "max_nodes": 3}
    first, second = disturbances(1, 2000, **common), disturbances(2, 2000, **common)
    assert {d.kind for d in first} == {"kill_worker", "kill_node", "add_node", "remove_node"}
    assert [d.at_seconds for d in first] != [d.at_seconds for d in second]


def test_equal_bounds_kill_workers_only() -> None:
    found = disturbances(1, 2000, kill_every=50, resize_every=50, min_nodes=2, max_nodes=2)
    assert {d.kind for d in found} == {"kill_worker"}


def test_who_it_befalls() -> None:
    assert [Disturbance(1, "kill_worker", 2, pick).choose("abc") for pick in (0.0, 0.34, 0.999)] == ["a", "b", "c"]
    assert Disturbance(1, "kill_worker", 2, 0.5).choose([]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_nodes": 4}, "disturbances: min_nodes 4 <= start_nodes 3 <= max_nodes 3 does not hold"),
        ({"start_nodes": 0}, "disturbances: min_nodes 1 <= start_nodes 0 <= max_nodes 3 does not hold"),
        ({"kill_every": 0}, "disturbances: kill_every 0 and resize_every 60 must be above 0, jitter 1.0 in [0, 1]"),
        ({"jitter": 2}, "disturbances: kill_every 180 and resize_every 60 must be above 0, jitter 2 in [0, 1]"),
    ],
)
def test_bounds_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        disturbances(1, 900, **{"kill_every": 180, "resize_every": 60, "min_nodes": 1, "max_nodes": 3} | changes)
    assert str(caught.value) == message
