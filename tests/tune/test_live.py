"""The sweep's live view: a line an event where output is a file, a table on a terminal; it travels with the trials."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import ray.cloudpickle
from rich.console import Console

from swav_ray.tune import live
from swav_ray.tune.live import LiveView


def trial(number: int, **settings: Any) -> SimpleNamespace:
    """What Ray Tune hands to a callback."""
    task = {"number": number, "settings": settings or {"num_prototypes": 100, "temperature": 0.123456789}}
    return SimpleNamespace(trial_id=f"id{number}", config=task, local_path=f"/ray/trial{number}")


def play(view: LiveView) -> None:
    """A sweep of four: one was there before, one completes, one fails, one dies."""
    view.on_trial_start(0, [], trial(1))
    view.on_trial_start(0, [], trial(2))
    view.on_trial_result(1, [], trial(1), {"epochs_done": 1, "loss": 4.25})
    view.on_trial_result(2, [], trial(1), {"epochs_done": 6, "loss": 3.5, "probe/top1": 0.9375, "unrelated": object()})
    view.on_trial_complete(3, [], trial(1))
    view.on_trial_result(4, [], trial(2), {"error": "global_batch_size 125 is too much"})
    view.on_trial_complete(5, [], trial(2))
    view.on_trial_start(6, [], trial(3))
    view.on_trial_error(7, [], trial(3))
    view.close()


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a view prints, where standard output is no terminal."""
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=False, width=80))
    return text


def test_where_output_is_a_file_each_event_is_one_line(output: io.StringIO) -> None:
    play(LiveView(total=4, before=1, epochs=6))
    lines = output.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "trial 1 started: num_prototypes 100, temperature 0.1235"
    assert lines[2] == "trial 1: epoch 1/6, loss 4.250"
    assert lines[4].startswith("trial 1 done: probe/top1 0.9375 (2/4, about ") and lines[4].endswith(" min left)")
    assert lines[6].startswith("trial 2 failed: global_batch_size 125 is too much (3/4")
    assert lines[8] == "trial 3 died; its log is in /ray/trial3"
    assert "\x1b" not in output.getvalue()


def test_a_long_line_stays_one_line(output: io.StringIO) -> None:
    view = LiveView(total=1, before=0, epochs=1)
    view.on_trial_start(0, [], trial(0, **{f"augment.some_rather_long_name_{i}": 0.5 for i in range(8)}))
    assert len(output.getvalue().splitlines()) == 1


def test_the_last_trial_leaves_no_time_to_go(output: io.StringIO) -> None:
    view = LiveView(total=1, before=0, epochs=1)
    view.on_trial_start(0, [], trial(0))
    view.on_trial_complete(0, [], trial(0))
    assert output.getvalue().splitlines()[-1] == "trial 0 done: probe/top1 nan (1/1)"


def test_on_a_terminal_it_is_a_table_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=True, width=100))
    play(LiveView(total=4, before=1, epochs=6))
    table = text.getvalue()
    table = table[table.rindex("4 of 4 trials") :]
    for cell in ("0.9375", "3.500", "6/6", "num_prototypes 100, temperature 0.1235", "done", "failed", "died"):
        assert cell in table
    assert "started:" not in text.getvalue()  # no lines between


def test_closing_twice_or_before_anything_happened_is_nothing(output: io.StringIO) -> None:
    view = LiveView(total=1, before=0, epochs=1)
    view.close()
    view.close()
    assert output.getvalue() == ""


@pytest.mark.parametrize("pickler", [pickle, ray.cloudpickle], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("terminal", [True, False])
def test_it_pickles_also_in_the_midst_of_a_sweep(pickler: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune pickles callbacks with the experiment; a console with its lock and thread would not go along."""
    text = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=text, force_terminal=terminal, width=100))
    view = LiveView(total=4, before=1, epochs=6)
    assert pickler.loads(pickler.dumps(view)).trials == {}
    view.on_trial_start(0, [], trial(1))
    try:
        again = pickler.loads(pickler.dumps(view))
        assert again.trials == view.trials and (again.total, again.before, again.epochs) == (4, 1, 6)
        again.on_trial_complete(1, [], trial(1))
        again.close()
    finally:
        view.close()
