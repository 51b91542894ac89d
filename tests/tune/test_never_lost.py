"""SIGKILL of the driver at random moments, the same command again: the same trials, none twice, none missing, the same best."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.train.small import small_shards
from tests.tune.sweeping import kill_driver, log_of, prepare, start, trials_of, tune, write_space

SWEEP = {
    "overrides": {"epochs": 5, "warmup_epochs": 1},
    "scheduler": {"kind": "asha", "first_rung": 2, "factor": 2},
    "budget": {"trials": 4},
    "params": {"num_prototypes": {"int": [10, 30]}, "base_lr": {"loguniform": [1e-5, 1e-2]}},
    "baseline": [{"num_prototypes": 20, "base_lr": 0.003}],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


def _sweep(place: Path, shards: str) -> Path:
    prepare(place, shards)
    write_space(place, **SWEEP)
    return place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shards):
    place = _sweep(tmp_path_factory.mktemp("undisturbed"), shards)
    done = tune(place, "space.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def _facts(place: Path):
    facts = []
    for trial in trials_of(place):
        about = (trial.params, trial.state.name, trial.value, trial.intermediate_values, trial.user_attrs.get("ended"))
        facts.append((*about, trial.user_attrs["epochs_done"]))
    return facts


def _survives(place: Path, undisturbed: Path, moments: list[tuple[int, float]]) -> None:
    """Run the sweep with a SIGKILL of its driver at each of ``moments``: (lines of output seen, then share of a second)."""
    ended: set[str] = set()
    for lines, share in moments:
        driver = start(place, "space.yaml")
        assert driver.stdout is not None
        seen, finished = [], False
        while len(seen) < lines:
            line = driver.stdout.readline()
            if not line:
                finished = True
                break
            seen.append(line)
        again = {number for line in seen if (number := _started(line)) and number in ended}
        assert not again, f"trials {again} had ended and were run again"
        ended |= {match[1] for line in seen if (match := re.match(r"trial (\d+) (?:done|stopped|failed)", line))}
        if finished:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(share)  # the moment within what follows
        zombies = kill_driver(driver)
        assert not zombies, f"still alive a minute after the driver: {zombies}"
    last = tune(place, "space.yaml")
    assert last.returncode == 0, last.stdout + last.stderr
    assert _facts(place) == _facts(undisturbed)
    best = [(folder / "runs/small/best.yaml").read_text().split("storage:")[0] for folder in (place, undisturbed)]
    assert best[0] == best[1]
    for trial in trials_of(place):
        steps = [row["step"] for row in log_of(trial) if "loss" in row]
        assert steps == list(range(1, len(steps) + 1))


def _started(line: str) -> str:
    match = re.match(r"trial (\d+) started", line)
    return match[1] if match else ""


def test_killed_twice_nothing_is_lost(tmp_path, shards, undisturbed):
    _survives(_sweep(tmp_path, shards), undisturbed, [(3, 0.3), (7, 0.0)])


@pytest.mark.chaos
def test_killed_at_ten_random_moments_nothing_is_lost(tmp_path, shards, undisturbed):
    draw = random.Random(0)
    moments = [(draw.randint(1, 12), draw.random() * 2) for _ in range(10)]
    _survives(_sweep(tmp_path, shards), undisturbed, moments)


def test_ctrl_c_ends_with_checkpoints_and_says_how_to_go_on(tmp_path, shards, undisturbed):
    place = _sweep(tmp_path, shards)
    driver = start(place, "space.yaml")
    assert driver.stdout is not None
    while not (line := driver.stdout.readline()).startswith("trial 0: epoch 2"):
        assert line, "the sweep ended before its first rung"
    driver.send_signal(signal.SIGINT)
    rest = driver.stdout.read()
    assert driver.wait(60) == 130
    assert "Traceback" not in rest and "the same command goes on" in rest
    assert trials_of(place)[0].state.name == "RUNNING"
    done = tune(place, "space.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _facts(place) == _facts(undisturbed)


def test_two_drivers_do_not_run_one_sweep(tmp_path, shards):
    place = _sweep(tmp_path, shards)
    driver = start(place, "space.yaml")
    assert driver.stdout is not None
    while not driver.stdout.readline().startswith("trial 0 started"):
        assert driver.poll() is None
    second = tune(place, "space.yaml")
    assert second.returncode == 2 and f"process {driver.pid} is running this sweep" in second.stderr
    kill_driver(driver)


def test_a_changed_space_is_refused_with_the_difference_and_a_larger_budget_is_not(undisturbed):
    before = _facts(undisturbed)
    write_space(undisturbed, **(SWEEP | {"params": SWEEP["params"] | {"num_prototypes": {"int": [10, 31]}}}))
    done = tune(undisturbed, "space.yaml")
    assert done.returncode == 2 and "30" in done.stderr and "31" in done.stderr and "num_prototypes" in done.stderr
    write_space(undisturbed, **SWEEP)
    done = tune(undisturbed, "space.yaml", "--trials", "5")
    assert done.returncode == 0, done.stderr
    assert _facts(undisturbed)[:4] == before and len(_facts(undisturbed)) == 5
