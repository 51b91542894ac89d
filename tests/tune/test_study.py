"""The memory of a sweep: the same seed samples the same trials whatever the order and the crashes, and nothing is lost.

Ray Tune is played by :class:`Driver`: it claims and ends trials as Tune does, in an order of the test's choosing.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from swav_ray.errors import UserError
from swav_ray.tune.ledger import Ledger
from swav_ray.tune.sampling import propose
from swav_ray.tune.space import Space
from swav_ray.tune.study import JOURNAL, SweepFolder, open_study

TRIALS = 16  # TPE models from the sixth on
Settings = dict[str, Any]
Choose = Callable[[list[int]], int]


def make_space(**changes: Any) -> Space:
    values: dict[str, Any] = {
        "name": "study",
        "recipe": "demo-digits",
        "params": {
            "num_prototypes": {"logint": [30, 400]},
            "temperature": {"loguniform": [0.05, 0.3]},
            "crop_counts": {"choice": [[2, 2], [2, 4]]},
        },
        "baseline": [{"num_prototypes": 100, "temperature": 0.1}],
        "budget": {"trials": TRIALS},
    }
    return Space.model_validate(values | changes)


def accuracy(point: Settings) -> float:
    """A made-up objective with one best point; a function of the settings alone."""
    k, tau = math.log(point["num_prototypes"] / 150), math.log(point["temperature"] / 0.12)
    return 0.9 - 0.05 * k * k - 0.1 * tau * tau - 0.02 * (point["crop_counts"] == [2, 2])


def result_of(point: Settings) -> dict[str, Any]:
    return {"probe/top1": accuracy(point), "probe/top1_stderr": 0.01, "epochs_done": 6, "seconds": 12.5, "run": "/runs/0000"}


class Driver:
    """One life of the driver: claims trials up to the concurrency, ends one, and so on, until done or killed."""

    def __init__(self, space: Space, place: Path) -> None:
        self.space = space
        folder = SweepFolder(str(place))
        self.study = open_study(folder.journal(), space.name, space.directions(), space.defining())
        folder.close()  # as if killed at once: what follows may be cut short anywhere
        self.ledger = Ledger(self.study, space, lambda number, point: space.config(point, trial=True))
        self.running: dict[int, Settings] = {}
        self.handed_out: list[tuple[int, Settings]] = []

    def fill(self) -> str:
        """Start trials while there is room; why it stopped."""
        while len(self.running) < self.space.concurrency:
            try:
                claimed = self.ledger.claim()
            except StopIteration:
                return "spent"
            if claimed is None:
                return "waits"
            number, point = claimed
            self.running[number] = point
            self.handed_out.append(claimed)
        return "full"

    def end(self, number: int) -> None:
        self.ledger.end(number, result_of(self.running.pop(number)))

    def run(self, choose: Choose, kill_after: int | None = None) -> Driver:
        """To the end of the budget, or until ``kill_after`` trials have ended and others are running."""
        ended = 0
        while True:
            why = self.fill()
            if ended == kill_after:
                return self
            if not self.running:
                assert why == "spent"
                return self
            self.end(choose(list(self.running)))
            ended += 1


def opened(space: Space, place: Path) -> optuna.Study:
    folder = SweepFolder(str(place))
    try:
        return open_study(folder.journal(), space.name, space.directions(), space.defining())
    finally:
        folder.close()


def first(trials: list[int]) -> int:
    return trials[0]


def last(trials: list[int]) -> int:
    return trials[-1]


def points_of(folder: Path, space: Space) -> list[Settings]:
    return [trial.user_attrs["settings"] for trial in opened(space, folder).trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Settings]]:
    """The points of a sweep whose trials end in order, for each concurrency."""
    points = {}
    for concurrency in (1, 2, 3):
        space, folder = make_space(concurrency=concurrency), tmp_path_factory.mktemp("undisturbed")
        Driver(space, folder).run(first)
        points[concurrency] = points_of(folder, space)
    return points


# --- the same seed, the same trials


def test_the_sampler_really_learns_in_these_tests(undisturbed: dict[int, list[Settings]], tmp_path: Path) -> None:
    """Were all trials drawn at random, the tests below would show nothing."""
    space = make_space(sampler="random")
    Driver(space, tmp_path).run(first)
    drawn = points_of(tmp_path, space)
    assert drawn[:5] == undisturbed[1][:5]
    assert len({point["temperature"] for point in drawn}) == TRIALS  # no two trials alike
    assert all(a != b for a, b in zip(drawn[8:], undisturbed[1][8:], strict=True))


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_the_same_seed_gives_the_same_trials_in_whatever_order_they_end(
    concurrency: int, undisturbed: dict[int, list[Settings]], tmp_path: Path
) -> None:
    space = make_space(concurrency=concurrency)
    for number, choose in enumerate([last, *(random.Random(seed).choice for seed in range(3))]):
        Driver(space, tmp_path / str(number)).run(choose)
        assert points_of(tmp_path / str(number), space) == undisturbed[concurrency]


@settings(derandomize=True, deadline=None, max_examples=12)
@given(st.integers(1, 3), st.lists(st.integers(0, TRIALS - 1), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_sweep_killed_again_and_again_samples_what_an_undisturbed_one_samples(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: dict[int, list[Settings]],
    concurrency: int,
    kills: list[int],
    seed: int,
) -> None:
    space, folder, choose = make_space(concurrency=concurrency), tmp_path_factory.mktemp("killed"), random.Random(seed).choice
    for kill in kills:
        before = {trial.number for trial in opened(space, folder).trials if trial.state.is_finished()}
        driver = Driver(space, folder).run(choose, kill_after=kill)
        assert not before & {number for number, _ in driver.handed_out}  # no finished trial is run twice
        if kill % 2:  # the last entry was being written
            with (folder / JOURNAL).open("ab") as journal:
                journal.write(b'{"op_code":4,"worker_id":"x","study')
    Driver(space, folder).run(choose)
    study = opened(space, folder)
    assert points_of(folder, space) == undisturbed[concurrency]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    assert [trial.value for trial in study.trials] == [accuracy(point) for point in undisturbed[concurrency]]


def test_another_seed_gives_other_trials(undisturbed: dict[int, list[Settings]], tmp_path: Path) -> None:
    space = make_space(seed=1)
    Driver(space, tmp_path).run(first)
    assert points_of(tmp_path, space)[0]["num_prototypes"] == 100  # the baseline
    assert all(a != b for a, b in zip(points_of(tmp_path, space)[1:], undisturbed[1][1:], strict=True))


def test_the_sampler_finds_better_points_than_chance(undisturbed: dict[int, list[Settings]]) -> None:
    early, late = ([accuracy(point) for point in points] for points in (undisturbed[1][1:6], undisturbed[1][-6:]))
    assert sum(late) / len(late) > sum(early) / len(early)


def test_a_failed_trial_teaches_the_sampler_nothing(tmp_path: Path) -> None:
    space, points = make_space(), []
    for name, failure in (("nan", {"probe/top1": math.nan}), ("error", {"error": "diverged"})):
        driver = Driver(space, tmp_path / name)
        for number in range(TRIALS):
            driver.fill()
            if number == 3:
                driver.running.pop(number)
                driver.ledger.end(number, failure)
            else:
                driver.end(number)
        points.append(points_of(tmp_path / name, space))
    assert points[0] == points[1]


# --- when a trial is handed out


def test_an_early_trial_is_waited_for_and_the_budget_is_the_end(tmp_path: Path) -> None:
    driver = Driver(make_space(concurrency=2, budget={"trials": 4}), tmp_path)
    driver.fill()
    assert [number for number, _ in driver.handed_out] == [0, 1]
    driver.end(1)
    assert driver.fill() == "waits"  # trial 2 is sampled from trial 0, which runs
    driver.end(0)
    assert driver.fill() == "full"
    assert [number for number, _ in driver.handed_out] == [0, 1, 2, 3]
    driver.end(2)
    assert driver.fill() == "spent"
    driver.end(3)
    assert driver.fill() == "spent"


def test_a_result_is_in_the_journal_as_soon_as_its_trial_has_ended(tmp_path: Path) -> None:
    """Also while an earlier trial still runs: a driver killed then must not run it again."""
    space = make_space(concurrency=3)
    driver = Driver(space, tmp_path)
    driver.fill()
    driver.end(2)
    again = Driver(space, tmp_path)
    again.fill()
    assert [number for number, _ in again.handed_out[:2]] == [0, 1]
    assert opened(space, tmp_path).trials[2].value == accuracy(driver.handed_out[2][1])


def test_unfinished_trials_are_handed_out_again_under_their_number_with_their_settings(tmp_path: Path) -> None:
    space = make_space(concurrency=3)
    killed = Driver(space, tmp_path).run(last, kill_after=5)
    left = sorted(killed.running.items())
    assert left
    again = Driver(space, tmp_path)
    again.fill()
    assert again.handed_out[: len(left)] == left
    assert len(opened(space, tmp_path).trials) == len(again.handed_out) - len(left) + max(n for n, _ in killed.handed_out) + 1


def test_a_killed_driver_leaves_each_trial_whole_or_not_at_all(tmp_path: Path) -> None:
    """The journal cut after every one of its lines: what is there can be handed out as it is."""
    space = make_space()
    Driver(space, tmp_path / "whole").run(first, kill_after=3)
    whole = points_of(tmp_path / "whole", space)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    for count in range(len(lines) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:count]))
        driver = Driver(space, folder)
        driver.fill()
        number, point = driver.handed_out[0]
        assert point == whole[number]
        driver.end(number)


def test_a_line_cut_off_in_the_journal_is_dropped_and_all_before_it_kept(tmp_path: Path) -> None:
    space = make_space()
    Driver(space, tmp_path / "whole").run(first, kill_after=2)
    content = (tmp_path / "whole" / JOURNAL).read_bytes()
    last_line = content[:-1].rfind(b"\n") + 1
    before = opened(space, tmp_path / "whole").trials
    for cut in {last_line + 1, (last_line + len(content)) // 2, len(content) - 1}:
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / JOURNAL).write_bytes(content[:cut])
        Driver(space, folder).run(first)
        trials = opened(space, folder).trials
        assert len(trials) == TRIALS and all(trial.state == TrialState.COMPLETE for trial in trials)
        assert [trial.params for trial in trials[:2]] == [trial.params for trial in before[:2]]


# --- baselines


def test_baselines_come_first_and_only_once(tmp_path: Path) -> None:
    baseline = [
        {"num_prototypes": 100, "temperature": 0.1},
        {"crop_counts": [2, 4]},
        {"temperature": 0.2, "crop_counts": [2, 2]},
    ]
    space = make_space(baseline=baseline, budget={"trials": 8})
    for kill in (0, 0, 1, 1, 2):
        Driver(space, tmp_path).run(first, kill_after=kill)
    Driver(space, tmp_path).run(first)
    points = points_of(tmp_path, space)
    for point, wanted in zip(points, baseline, strict=False):
        assert {key: point[key] for key in wanted} == wanted
        assert set(point) == set(space.params)  # what a baseline does not say is sampled
    assert len(points) == 8
    assert sum(point["num_prototypes"] == 100 and point["temperature"] == 0.1 for point in points) == 1


def test_more_baselines_than_trials(tmp_path: Path) -> None:
    baseline = [{"num_prototypes": k} for k in (40, 50, 60)]
    space = make_space(baseline=baseline, budget={"trials": 2})
    Driver(space, tmp_path).run(first)
    assert [point["num_prototypes"] for point in points_of(tmp_path, space)] == [40, 50]


def test_a_space_without_baselines(tmp_path: Path) -> None:
    space = make_space(baseline=[], budget={"trials": 2})
    Driver(space, tmp_path).run(first)
    assert len(points_of(tmp_path, space)) == 2


# --- how trials end


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"probe/top1": math.nan}, "no probe/top1: nan"),
        ({"probe/top1": math.inf}, "no probe/top1: inf"),
        ({"loss": 3.0}, "no probe/top1: None"),
        ({"error": "global_batch_size 125 is more than"}, "global_batch_size 125 is more than"),
        ({"error": "diverged", "probe/top1": 0.9}, "diverged"),
        ({}, "Ray could not run it; see the trial's log"),
    ],
)
def test_a_trial_without_a_value_fails_with_a_reason(result: dict[str, Any], reason: str, tmp_path: Path) -> None:
    space = make_space()
    driver = Driver(space, tmp_path)
    driver.fill()
    driver.ledger.end(0, result)
    (trial,) = opened(space, tmp_path).trials
    assert (trial.state, trial.value, trial.user_attrs["error"]) == (TrialState.FAIL, None, reason)
    again = Driver(space, tmp_path)
    again.fill()
    assert again.handed_out[0][0] == 1  # it is not tried again


def test_an_accuracy_of_zero_is_a_value(tmp_path: Path) -> None:
    driver = Driver(make_space(), tmp_path)
    driver.fill()
    driver.ledger.end(0, {"probe/top1": 0.0, "epochs_done": 6})
    assert (driver.study.trials[0].state, driver.study.trials[0].value) == (TrialState.COMPLETE, 0.0)


# --- one folder, one space


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"sampler": "random"}, "sampler: tpe -> random"),
        ({"baseline": []}, "baseline"),
        ({"overrides": {"epochs": 7}}, "epochs: 25 -> 7"),
        ({"params": {"temperature": {"uniform": [0.05, 0.3]}}}, "params.temperature"),
        ({"recipe": "imagenet-100ep", "seed": 1}, "seed: 0 -> 1"),
    ],
)
def test_a_changed_space_is_refused_with_what_differs(changes: dict[str, Any], shown: str, tmp_path: Path) -> None:
    opened(make_space(), tmp_path)
    with pytest.raises(UserError) as caught:
        opened(make_space(**changes), tmp_path)
    assert str(caught.value).startswith("sweep 'study' exists with another definition: ") and shown in str(caught.value)
    opened(make_space(), tmp_path)  # the study itself is as it was


def test_a_larger_budget_goes_on(undisturbed: dict[int, list[Settings]], tmp_path: Path) -> None:
    Driver(make_space(budget={"trials": 5}), tmp_path).run(first)
    assert points_of(tmp_path, make_space()) == undisturbed[1][:5]
    driver = Driver(make_space(), tmp_path).run(first)
    assert [number for number, _ in driver.handed_out] == list(range(5, TRIALS))
    assert points_of(tmp_path, make_space()) == undisturbed[1]


def test_a_smaller_budget_ends_at_once_and_other_means_are_accepted(tmp_path: Path) -> None:
    Driver(make_space(budget={"trials": 5}), tmp_path).run(first)
    driver = Driver(make_space(budget={"trials": 2}, concurrency=3, resources={"cpus_per_worker": 2}), tmp_path)
    assert driver.fill() == "spent"
    assert len(opened(make_space(), tmp_path).trials) == 5


def test_a_dry_run_samples_what_the_sweep_starts_with(tmp_path: Path) -> None:
    space = make_space()
    points = [propose(space, number, []).settings for number in range(4)]
    Driver(space, tmp_path).run(first, kill_after=4)
    assert points == points_of(tmp_path, space)[:4]


# --- where the study stands


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    folder = SweepFolder(str(tmp_path))
    with pytest.raises(UserError, match=f"process {os.getpid()} is running this sweep"):
        SweepFolder(str(tmp_path))
    folder.close()
    SweepFolder(str(tmp_path)).close()


def test_a_lock_that_a_killed_driver_left_on_the_journal_is_no_hindrance(tmp_path: Path) -> None:
    space = make_space(budget={"trials": 1})
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / "nobody")
    started = time.monotonic()
    Driver(space, tmp_path).run(first)
    assert time.monotonic() - started < 20, "it waited for Optuna's own grace of 30 s"


def test_a_study_on_s3_is_kept_after_each_trial_and_goes_on_elsewhere(s3: str) -> None:
    space = make_space(budget={"trials": 4})
    uri = f"{s3}/sweep"

    def life(trials: int) -> list[Any]:
        folder = SweepFolder(uri)  # with a local copy of its own, as on another machine
        study = open_study(folder.journal(), space.name, space.directions(), space.defining())
        config_of = lambda number, point: space.config(point, trial=True)  # noqa: E731
        ledger = Ledger(study, space, config_of, keep=lambda: folder.keep(JOURNAL))
        for _ in range(trials):
            number, point = ledger.claim()
            ledger.end(number, result_of(point))
        return [(trial.params, trial.value) for trial in ledger.trials()]

    first_life = life(2)
    assert life(2)[:2] == first_life
    with pytest.raises(StopIteration):
        life(1)


def test_a_study_in_a_database(tmp_path: Path) -> None:
    space = make_space(budget={"trials": 3})
    url = f"sqlite:///{tmp_path}/study.db"

    def ledger() -> Ledger:
        study = open_study(url, space.name, space.directions(), space.defining())
        return Ledger(study, space, lambda number, point: space.config(point, trial=True))

    number, point = ledger().claim()
    again = ledger()
    assert again.claim() == (number, point), "unfinished trials are handed out again"
    again.end(number, result_of(point))
    assert [trial.value for trial in ledger().trials()] == [accuracy(point)]


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/x", "sqlite:////nowhere/study.db", "mysterydb://x", "x"])
def test_a_database_that_does_not_open_is_one_line_without_its_password(url: str) -> None:
    space = make_space()
    with pytest.raises(UserError) as caught:
        open_study(url, space.name, space.directions(), space.defining())
    assert "cannot be opened" in str(caught.value) and "secret" not in str(caught.value)


def test_the_journal_is_a_study_that_optuna_itself_opens(tmp_path: Path) -> None:
    """As optuna-dashboard does."""
    space = make_space(budget={"trials": 6})
    Driver(space, tmp_path).run(first)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    study = optuna.load_study(study_name="study", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.best_value == max(accuracy(point) for point in points_of(tmp_path, space))
    assert all(trial.datetime_complete and trial.duration for trial in study.trials)
