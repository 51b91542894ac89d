"""Verdicts at rungs and on collapse: Optuna's rules on our epochs, from ended trials alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from swav_ray.tune.judge import stop_at_rung, stop_unwell
from tests.tune.small_space import small_space

ASHA = small_space(scheduler={"kind": "asha", "first_rung": 2, "factor": 3})
MEDIAN = small_space(scheduler={"kind": "median", "first_rung": 2, "every": 2, "startup_trials": 3})
RUNGS = (2, 6)


def _ended(values: dict[int, float], value: float | None = None) -> FrozenTrial:
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    return create_trial(state=state, value=value, intermediate_values=values)


def test_the_first_at_a_rung_goes_on_and_a_worse_one_stops():
    assert stop_at_rung(ASHA, RUNGS, {2: 0.3}, []) == ""
    earlier = [_ended({2: 0.5}, 0.9)]
    assert stop_at_rung(ASHA, RUNGS, {2: 0.6}, earlier) == ""
    why = stop_at_rung(ASHA, RUNGS, {2: 0.4}, earlier)
    assert why == "epoch 2: 0.4000 is not among the best 1/3 of 1 earlier trial (best 0.5000)"


def test_about_a_third_passes():
    earlier = [_ended({2: value / 10}) for value in range(9)]  # 0.0 to 0.8; with the trial itself 10, so 3 pass
    assert stop_at_rung(ASHA, RUNGS, {2: 0.65}, earlier) == ""
    assert stop_at_rung(ASHA, RUNGS, {2: 0.55}, earlier) != ""


def test_a_later_rung_is_judged_among_those_that_reached_it():
    earlier = [_ended({2: 0.5}), _ended({2: 0.6, 6: 0.7}, 0.8), _ended({2: 0.1})]
    assert stop_at_rung(ASHA, RUNGS, {2: 0.6, 6: 0.71}, earlier) == ""
    assert "of 1 earlier trial (best 0.7000)" in stop_at_rung(ASHA, RUNGS, {2: 0.6, 6: 0.69}, earlier)


def test_between_rungs_nobody_is_judged():
    assert stop_at_rung(ASHA, RUNGS, {}, [_ended({2: 0.5})]) == ""


def test_the_median_rule_waits_for_enough_complete_trials():
    complete = [_ended({2: value, 4: value}, value) for value in (0.3, 0.5, 0.7)]
    assert stop_at_rung(MEDIAN, (2, 4, 6, 8), {2: 0.4}, complete[:2]) == ""
    assert "below the median of 3 earlier trials" in stop_at_rung(MEDIAN, (2, 4, 6, 8), {2: 0.4}, complete)
    assert stop_at_rung(MEDIAN, (2, 4, 6, 8), {2: 0.6}, complete) == ""


def test_without_a_scheduler_nobody_is_stopped():
    assert stop_at_rung(small_space(), (), {2: 0.0}, [_ended({2: 0.9}, 0.9)]) == ""


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_a_verdict_does_not_depend_on_the_order_of_earlier_trials(values, own):
    earlier = [_ended({2: value}) for value in values]
    forth, back = (bool(stop_at_rung(ASHA, RUNGS, {2: own}, some)) for some in (earlier, earlier[::-1]))
    assert forth == back
    assert not (own >= max(values) and forth), "the best so far is never stopped"


@pytest.mark.parametrize(
    ("row", "stops"),
    [
        ({"epochs_done": 5, "verdict": "healthy", "unwell_since": None}, False),
        ({"epochs_done": 5, "verdict": "stuck", "unwell_since": 4.5}, False),
        ({"epochs_done": 5, "verdict": "stuck", "unwell_since": 4.0}, True),
        ({"epochs_done": 5, "verdict": "collapsed", "unwell_since": 2.2, "advice": "epsilon up"}, True),
        ({"epochs_done": 5}, False),
    ],
)
def test_a_trial_ends_when_it_has_been_unwell_for_an_epoch(row, stops):
    why = stop_unwell(row)
    assert bool(why) == stops
    if stops:
        assert why.startswith(f"{row['verdict']} since epoch")
