"""The sweep's live view: a line an event where output is a file, a picture on a terminal; it travels with the trials."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.cloudpickle
from rich.console import Console

from swav_ray.tune import live
from swav_ray.tune.live import LiveView
from swav_ray.tune.results import results
from tests.tune.studies import make_space, make_study

SETTINGS = {"num_prototypes": 100, "temperature": 0.123456789}


def rung(epoch: int, top1: float, **more: Any) -> dict[str, Any]:
    row = {"epochs_done": epoch, "loss": 4.25, "verdict": "healthy", "probe/top1": top1, "probe/top1_stderr": 0.011}
    return row | {"unrelated": object()} | more


def plain(terminal: io.StringIO) -> str:
    """What a terminal showed, without its codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).rstrip()


def play(view: LiveView) -> None:
    """Five trials: done, stopped at a rung, failed, died and done, still running."""
    for number in range(1, 4):
        view.trial_started(number, SETTINGS)
    view.trial_row(1, {"epochs_done": 1, "loss": 5.0, "verdict": "warming_up"})
    view.trial_row(1, rung(3, 0.8125, cutoff=0.75))
    view.trial_row(2, rung(3, 0.75, cutoff=0.8))
    view.trial_ended(2, "PRUNED", rung(3, 0.75, ended="rung 3: 0.7500 below the cut-off 0.8000"))
    view.trial_row(1, rung(6, 0.9375))
    view.trial_ended(1, "COMPLETE", rung(6, 0.9375, gpu_hours=0.25))
    view.trial_ended(3, "FAIL", {"error": "global_batch_size 125 is [too] much"})
    view.trial_started(4, SETTINGS)
    view.trial_row(4, {"epochs_done": 2, "loss": 4.0, "verdict": "stuck"})
    view.trial_row(4, {"epochs_done": 2, "loss": 4.0, "verdict": "stuck"})
    view.trial_died(4, "/ray/trial4")
    view.trial_started(4, SETTINGS)
    view.trial_row(4, rung(3, 0.9))
    view.trial_ended(4, "COMPLETE", rung(6, 0.95))
    view.trial_started(5, SETTINGS)
    view.trial_row(5, rung(3, 0.86, verdict="collapsed"))
    view.close()


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a view prints, where standard output is no terminal."""
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=False, width=80))
    return text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=True, width=100))
    return text


def test_where_output_is_a_file_each_event_is_one_line(output: io.StringIO) -> None:
    play(LiveView(epochs=6, trials=8))
    lines = output.getvalue().splitlines()
    heads = [line.split(", about")[0] for line in lines]
    start = "num_prototypes 100, temperature 0.1235"
    assert heads == [
        *(f"trial {number} started: {start}" for number in range(1, 4)),
        "trial 1: epoch 3/6, loss 4.250, probe/top1 0.8125 ± 0.0110",
        "trial 2: epoch 3/6, loss 4.250, probe/top1 0.7500 ± 0.0110",
        "trial 2 stopped early after epoch 3: rung 3: 0.7500 below the cut-off 0.8000 (1/8",
        "trial 1 done: probe/top1 0.9375 ± 0.0110 (2/8",
        "trial 3 failed: global_batch_size 125 is [too] much (3/8",
        f"trial 4 started: {start}",
        "trial 4: the collapse watch says stuck (epoch 2)",
        "trial 4 died after epoch 2 and will go on; its log is in /ray/trial4",
        f"trial 4 goes on after epoch 2: {start}",
        "trial 4: epoch 3/6, loss 4.250, probe/top1 0.9000 ± 0.0110",
        "trial 4 done: probe/top1 0.9500 ± 0.0110, the best so far (4/8",
        f"trial 5 started: {start}",
        "trial 5: epoch 3/6, loss 4.250, probe/top1 0.8600 ± 0.0110",
        "trial 5: the collapse watch says collapsed (epoch 3)",
    ]
    assert lines[5].endswith(" min left)") and "\x1b" not in output.getvalue()


def test_a_long_line_stays_one_line(output: io.StringIO) -> None:
    LiveView(epochs=1).trial_started(0, {f"augment.some_rather_long_name_{i}": [0.5, 1] for i in range(8)})
    assert len(output.getvalue().splitlines()) == 1


def test_a_rung_is_told_once_also_if_a_restarted_trial_passes_it_again(output: io.StringIO) -> None:
    view = LiveView(epochs=6)
    view.trial_started(0, {})
    for _ in range(3):
        view.trial_row(0, rung(3, 0.8))
    assert len(output.getvalue().splitlines()) == 2


def test_the_last_trial_leaves_no_time_to_go(output: io.StringIO) -> None:
    view = LiveView(epochs=1, trials=1)
    view.trial_started(0, {})
    view.trial_ended(0, "COMPLETE", {"epochs_done": 1})
    assert output.getvalue().splitlines()[-1] == "trial 0 done: no probe/top1 (1/1)"


def test_time_to_go_is_of_what_this_start_has_done(
    tmp_path: Path, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials had ended before, one had done a quarter: 60 s for three quarters and a whole one, and six to go."""
    clock = [1000.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    space = make_space()
    view = LiveView(epochs=12, trials=10, earlier=results(make_study(space, tmp_path, "CPR"), space))
    for number in (2, 3):
        view.trial_started(number, {})
    clock[0] += 60
    view.trial_row(3, {"epochs_done": 12})
    view.trial_ended(2, "COMPLETE", {"epochs_done": 12})
    assert output.getvalue().splitlines()[-1].endswith("(3/10, about 3 min left)")

    short = LiveView(epochs=12, trials=10, hours=2, hours_used=1.95)
    short.trial_started(0, {})
    clock[0] += 60
    short.trial_ended(0, "COMPLETE", {"epochs_done": 12})
    assert output.getvalue().splitlines()[-1].endswith("(1/10, about 2 min left)"), "the hours end before the trials"


def test_on_a_terminal_it_is_one_picture(terminal: io.StringIO) -> None:
    play(LiveView(epochs=6, trials=8, gpu_hours=1.0))
    text = plain(terminal)
    assert "started:" not in text  # no lines between
    last = text[text.rindex("1 running, 2 done, 1 stopped early, 1 failed, 3 waiting") :]
    for part in (
        "budget left: 4 of 8 trials, 0.75 of 1 GPU-h",
        "best so far: probe/top1 0.9500 ± 0.0110, trial 4 (num_prototypes 100, temperature 0.1235)",
        "collapsed",
        "0.8600 ± 0.0110",
        "3/6",
    ):
        assert part in last
    assert last.split()[-4:] == ["3", "4", "0.9000", "0.8000"], (
        "epoch, trials that came so far, the best of them, what the last decision asked for"
    )


def test_what_the_study_held_is_in_the_picture(tmp_path: Path, terminal: io.StringIO) -> None:
    space = make_space()
    study = make_study(space, tmp_path, "CCPFR", [0.9, 0.95, 0.8, None, 0.7])
    view = LiveView(epochs=12, trials=6, hours=2, hours_used=0.5, earlier=results(study, space))
    view.trial_started(5, SETTINGS)
    view.close()
    text = plain(terminal)
    assert "1 running, 2 done, 1 stopped early, 1 failed, 1 waiting" in text
    assert "best so far: probe/top1 0.9500 ± 0.0080, trial 1 (" in text and "1.5 of 2 h" in text and "2 of 6 trials" in text
    rungs = [line.split() for line in text.splitlines()[-2:]]
    assert [row[:2] for row in rungs] == [["3", "4"], ["6", "2"]], "complete ones passed both, stopped and running ones one"
    view = LiveView(epochs=12, trials=6, earlier=results(study, space))
    view.trial_started(4, SETTINGS)
    assert view.trials[4]["state"] == "running" and view.trials[4]["value"] is not None
    view.close()


def tuned(number: int, last: dict[str, Any] | None = None) -> SimpleNamespace:
    """What Ray Tune hands to a callback."""
    task = {"number": number, "settings": SETTINGS}
    return SimpleNamespace(trial_id=f"id{number}", config=task, local_path=f"/ray/trial{number}", last_result=last)


def test_ray_tune_tells_of_processes_that_start_and_die(output: io.StringIO) -> None:
    view = LiveView(epochs=6, trials=5)
    view.on_trial_start(0, [], tuned(3))
    view.on_trial_recover(3, [], tuned(3))
    view.on_trial_start(0, [], tuned(3))
    lines = output.getvalue().splitlines()
    assert lines[1] == "trial 3 died after epoch 0 and will go on; its log is in /ray/trial3"
    assert lines[0].startswith("trial 3 started: ") and lines[2].startswith("trial 3 goes on after epoch 0: ")


def test_closing_twice_or_before_anything_happened_is_nothing(output: io.StringIO) -> None:
    view = LiveView(epochs=1, trials=1)
    view.close()
    view.close()
    assert output.getvalue() == ""


@pytest.mark.parametrize("pickler", [pickle, ray.cloudpickle], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("terminal", [True, False])
def test_it_pickles_also_in_the_midst_of_a_sweep(pickler: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune pickles callbacks with the experiment; a console with its lock and thread would not go along."""
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=terminal, width=100))
    view = LiveView(epochs=6, trials=4)
    assert pickler.loads(pickler.dumps(view)).trials == {}
    view.trial_started(1, SETTINGS)
    try:
        again = pickler.loads(pickler.dumps(view))
        assert again.trials == view.trials and (again.budget, again.epochs) == (view.budget, 6)
        again.trial_ended(1, "COMPLETE", {})
        again.close()
    finally:
        view.close()
