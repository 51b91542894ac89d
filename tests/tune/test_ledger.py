"""The ledger: who is next, what a row means, how a trial ended, and going on after the driver died at any point."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from swav_ray.config import Config
from swav_ray.tune.ledger import Ledger, lag
from swav_ray.tune.sampling import Proposal
from swav_ray.tune.space import Space
from swav_ray.tune.study import open_study
from tests.tune.small_space import small_space

ASHA = {"kind": "asha", "first_rung": 2, "factor": 3}


def _config_of(space: Space):
    def config_of(number: int, settings: dict[str, Any]) -> Config:
        return space.config(settings, trial=True).model_copy(update={"name": f"{number:04d}", "storage": "/runs"})

    return config_of


def _study(space: Space) -> optuna.Study:
    return open_study(optuna.storages.InMemoryStorage(), space.name, space.directions(), space.defining())


def _ledger(study: optuna.Study, space: Space, **rest: Any) -> Ledger:
    return Ledger(study, space, _config_of(space), **rest)


def _row(epoch: int, top1: float | None = None, **more: Any) -> dict[str, Any]:
    measured = {} if top1 is None else {"probe/top1": top1, "probe/top1_stderr": 0.01, "knn/top1": top1 - 0.1}
    return {"epochs_done": epoch, "steps": 10 * epoch, "loss": 2.0, "verdict": "healthy", **measured, **more}


def _quality(settings: dict[str, Any]) -> float:
    """A made-up accuracy with its best at K = 25."""
    return round(0.9 - abs(settings["num_prototypes"] - 25) / 100, 6)


def _live(ledger: Ledger, number: int, settings: dict[str, Any], from_epoch: int = 0, until: int | None = None) -> bool:
    """Feed a trial's rows; True if it came to an end (of any kind), False if it was left at ``until``."""
    for epoch in range(from_epoch + 1, 10):
        if epoch == 9:
            ledger.end(number, _row(9, _quality(settings), done=True))
            return True
        measured = epoch in ledger.rungs(number, settings)
        if ledger.record(number, _row(epoch, _quality(settings) - 0.3 + epoch / 50 if measured else None)):
            ledger.end(number, _row(epoch))
            return True
        if epoch == until:
            return False
    return False


def _whole(space: Space) -> list[optuna.trial.FrozenTrial]:
    ledger = _ledger(_study(space), space)
    while True:
        try:
            claimed = ledger.claim()
        except StopIteration:
            return ledger.trials()
        assert claimed is not None
        _live(ledger, *claimed)


def _facts(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [(t.params, t.state.name, t.value, t.intermediate_values, t.user_attrs.get("ended")) for t in trials]


def test_states_values_and_costs_stand_in_the_study():
    space = small_space(scheduler=ASHA, budget={"trials": 3})
    ledger = _ledger(_study(space), space, gpus_per_worker=2.0)
    number, settings = ledger.claim()
    assert (number, settings) == (0, {"num_prototypes": 20, "temperature": 0.1})
    assert ledger.record(0, _row(1)) == "" and ledger.record(0, _row(2, 0.5)) == ""
    ledger.end(0, _row(9, 0.8, done=True))
    first = ledger.trials()[0]
    assert (first.state, first.value, first.intermediate_values) == (TrialState.COMPLETE, 0.8, {2: 0.5})
    attrs = first.user_attrs
    assert attrs["settings"] == settings and attrs["baseline"] and attrs["run"] == "/runs/0000" and attrs["epochs_done"] == 9
    assert attrs["rungs"]["2"]["knn/top1"] == pytest.approx(0.4) and attrs["top1_stderr"] == 0.01
    assert attrs["gpu_hours"] == pytest.approx(2 * attrs["seconds"] / 3600) and len(attrs["spans"]) == 1

    ledger.claim()
    assert "best 0.5000" in ledger.record(1, _row(2, 0.4))
    ledger.end(1, _row(2, 0.4))
    second = ledger.trials()[1]
    assert (second.state, second.value, second.intermediate_values) == (TrialState.PRUNED, 0.4, {2: 0.4})
    assert second.user_attrs["ended"].startswith("epoch 2: 0.4000")

    ledger.claim()
    ledger.end(2, {"error": "the loss is nan at step 7", "verdict": "diverged", "done": True})
    third = ledger.trials()[2]
    assert (third.state, third.user_attrs["error"]) == (TrialState.FAIL, "the loss is nan at step 7")
    with pytest.raises(StopIteration):
        ledger.claim()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_an_end_without_a_number_is_a_failure(value):
    space = small_space()
    ledger = _ledger(_study(space), space)
    ledger.claim()
    assert ledger.end(0, _row(9) | {"probe/top1": value}) == TrialState.FAIL
    assert "no probe/top1" in ledger.trials()[0].user_attrs["error"]


def test_a_trial_ray_gives_up_on_is_a_failure():
    space = small_space()
    ledger = _ledger(_study(space), space)
    ledger.claim()
    assert ledger.end(0, {}) == TrialState.FAIL


def test_a_collapse_ends_a_trial_and_counts_against_it():
    space = small_space()
    ledger = _ledger(_study(space), space)
    ledger.claim()
    assert ledger.record(0, _row(3, verdict="stuck", unwell_since=2.5)) == ""
    why = ledger.record(0, _row(4, verdict="stuck", unwell_since=2.5, advice="epsilon up"))
    assert why == "stuck since epoch 2.5: epsilon up"
    assert ledger.end(0, _row(4)) == TrialState.PRUNED


def test_where_nothing_is_stopped_a_collapsed_trial_goes_on_too():
    space = small_space(scheduler=ASHA)
    ledger = _ledger(_study(space), space, stops=False)
    _live(ledger, *ledger.claim())
    ledger.claim()
    assert ledger.record(1, _row(2, 0.0, verdict="stuck", unwell_since=0.0)) == ""
    assert ledger.end(1, _row(9, 0.1)) == TrialState.COMPLETE


def test_a_sign_of_life_changes_nothing():
    space = small_space(scheduler=ASHA)
    ledger = _ledger(_study(space), space)
    ledger.claim()
    assert ledger.record(0, _row(2, 0.5) | {"beat": True}) == ""
    assert ledger.trials()[0].intermediate_values == {}


def test_trial_n_waits_for_those_it_is_sampled_from():
    space = small_space(concurrency=2)
    ledger = _ledger(_study(space), space)
    first, second = ledger.claim(), ledger.claim()
    assert ledger.claim() is None
    _live(ledger, *second)
    assert ledger.claim() is None, "trial 2 is sampled from trial 0 and nothing else"
    _live(ledger, *first)
    assert ledger.claim()[0] == 2


def test_where_trials_are_stopped_a_place_may_run_further_ahead():
    space = small_space(concurrency=2, scheduler=ASHA)
    assert lag(space) == 4
    ledger = _ledger(_study(space), space)
    ledger.claim()
    for number in (1, 2, 3):
        claimed = ledger.claim()
        assert claimed[0] == number
        _live(ledger, *claimed)
    assert ledger.claim() is None


@pytest.mark.parametrize("scheduler", ["none", ASHA])
def test_who_is_quicker_does_not_matter(scheduler):
    space = small_space(concurrency=2, scheduler=scheduler)
    orders = []
    for first in (True, False):
        ledger = _ledger(_study(space), space)
        running: list[Any] = []
        while True:
            try:
                while len(running) < 2 and (claimed := ledger.claim()) is not None:
                    running.append(claimed)
            except StopIteration:
                if not running:
                    break
            _live(ledger, *running.pop(0 if first else -1))
        orders.append(_facts(ledger.trials()))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("scheduler", ["none", ASHA])
def test_a_driver_that_dies_anywhere_changes_nothing(scheduler):
    space = small_space(scheduler=scheduler)
    wanted = _facts(_whole(space))
    assert {fact[1] for fact in wanted} == ({"COMPLETE"} if scheduler == "none" else {"COMPLETE", "PRUNED"})
    study, died = _study(space), 0
    for until in [1, 2, 3, 5, 6, 7, 8, 2, 2, 6, 1]:  # each driver dies when its first trial is at that epoch
        ledger = _ledger(study, space)
        try:
            number, settings = ledger.claim()
        except StopIteration:
            break
        done = ledger.trials()[number].user_attrs.get("epochs_done", 0)
        if not _live(ledger, number, settings, done, until):
            died += 1
    ledger = _ledger(study, space)
    while True:
        try:
            number, settings = ledger.claim()
        except StopIteration:
            break
        _live(ledger, number, settings, ledger.trials()[number].user_attrs.get("epochs_done", 0))
    assert died >= 3
    assert _facts(ledger.trials()) == wanted
    assert all(len(trial.user_attrs["spans"]) >= 1 for trial in ledger.trials())


def test_killed_between_a_rung_and_its_verdict_the_trial_is_stopped_without_being_run():
    space = small_space(scheduler=ASHA)
    study = _study(space)
    ledger = _ledger(study, space)
    _live(ledger, *ledger.claim())
    ledger.claim()
    study._storage.set_trial_intermediate_value(ledger.trials()[1]._trial_id, 2, 0.0)
    again = _ledger(study, space)
    assert again.claim()[0] == 2
    assert ledger.trials()[1].state == TrialState.PRUNED and "epoch 2: 0.0000" in ledger.trials()[1].user_attrs["ended"]


def test_what_was_measured_in_an_earlier_life_is_written_once():
    space = small_space(scheduler=ASHA)
    study = _study(space)
    ledger = _ledger(study, space)
    ledger.claim()
    ledger.lives[0].started -= 100.0
    ledger.record(0, _row(2, 0.5))
    again = _ledger(study, space)
    again.claim()
    assert again.record(0, _row(2, 0.6)) == ""
    trial = ledger.trials()[0]
    assert trial.intermediate_values == {2: 0.5} and trial.user_attrs["rungs"]["2"]["probe/top1"] == 0.5
    assert len(trial.user_attrs["spans"]) == 2 and trial.user_attrs["seconds"] >= 100.0


def test_a_probe_between_rungs_is_kept_but_judges_nobody():
    space = small_space(scheduler=ASHA)
    ledger = _ledger(_study(space), space)
    _live(ledger, *ledger.claim())
    ledger.claim()
    assert ledger.record(1, _row(3, 0.0)) == ""
    assert ledger.trials()[1].intermediate_values == {} and "3" in ledger.trials()[1].user_attrs["rungs"]


def test_what_a_sampler_must_find_again_is_kept():
    space = small_space()
    proposal = Proposal({}, {}, {"generation": 3}, {"temperature": 0.1}, False)
    ledger = _ledger(_study(space), space, propose=lambda *_: proposal)
    assert ledger.claim() == (0, {"temperature": 0.1})
    assert ledger.trials()[0].system_attrs == {"generation": 3}


@pytest.mark.parametrize(("budget", "spent"), [({"hours": 0.5}, "0.5 hours"), ({"gpu_hours": 0.5}, "0.5 GPU-hours")])
def test_a_budget_of_time_ends_the_sweep_but_not_its_running_trials(budget, spent):
    space = small_space(budget=budget, concurrency=2)
    study = _study(space)
    study.set_user_attr("hours", 0.7)
    roomy = _ledger(study, space.model_copy(update={"budget": small_space().budget}))
    roomy.claim()
    study._storage.set_trial_user_attr(roomy.trials()[0]._trial_id, "gpu_hours", 0.6)
    ledger = _ledger(study, space)
    assert ledger.spent() == spent
    assert ledger.claim()[0] == 0, "the trial that was running goes on"
    with pytest.raises(StopIteration):
        ledger.claim()


def test_hours_count_over_drivers():
    space = small_space()
    study = _study(space)
    study.set_user_attr("hours", 2.5)
    assert 2.5 <= _ledger(study, space).hours < 2.6


def test_two_objectives_end_with_two_values():
    space = small_space(objective=["probe/top1", "gpu_hours"])
    ledger = _ledger(_study(space), space, gpus_per_worker=1.0)
    ledger.claim()
    ledger.end(0, _row(9, 0.8))
    assert ledger.trials()[0].values == [0.8, ledger.trials()[0].user_attrs["gpu_hours"]]
    ledger.claim()
    ledger.record(1, _row(4, verdict="collapsed", unwell_since=1.0))
    assert ledger.end(1, _row(4)) == TrialState.PRUNED


def test_everything_in_the_study_is_plain_json():
    space = small_space()
    ledger = _ledger(_study(space), space)
    ledger.claim()
    ledger.end(0, _row(9, 0.8))
    json.dumps(ledger.trials()[0].user_attrs)
