"""Between a worker process and the controller."""

from __future__ import annotations

import threading

import pytest

from swav_ray.train import signals
from swav_ray.train.signals import Request, Signals


@pytest.mark.parametrize("by", ["release", "stop"])
def test_a_parked_training_waits_to_be_released_or_stopped(by: str) -> None:
    here = Signals()
    here.ask(Request.YIELD)
    thread = threading.Thread(target=here.park)
    thread.start()
    here.ask(Request.YIELD)
    thread.join(0.1)
    assert thread.is_alive() and here.beat().parked
    here.release() if by == "release" else here.ask(Request.STOP)
    thread.join(10)
    assert not thread.is_alive()
    assert here.request is (Request.YIELD if by == "release" else Request.STOP)


def test_the_stronger_request_counts_and_the_next_training_hears_of_neither() -> None:
    here = Signals()
    here.ask(Request.STOP)
    here.ask(Request.YIELD)
    assert here.request is Request.STOP
    here.clear()
    assert here.request is Request.NONE and not here.beat().parked


@pytest.mark.parametrize("waits", [False, True])
def test_a_long_phase_tells_where_and_whether_it_waits_for_others(monkeypatch, waits: bool) -> None:
    monkeypatch.setattr(signals, "LOOK_AFTER_SECONDS", 0.0)
    here, inside, leave = Signals(), threading.Event(), threading.Event()

    def stuck() -> None:
        inside.set()
        leave.wait(30)

    def all_reduce() -> None:  # by its name
        stuck()

    def train() -> None:
        here.enter("step", 7, 100)
        all_reduce() if waits else stuck()

    thread = threading.Thread(target=train)
    thread.start()
    assert inside.wait(30)
    beat = here.beat()
    leave.set()
    thread.join(30)
    assert (beat.step, beat.steps, beat.phase, beat.waiting) == (7, 100, "step", waits)
    assert "test_signals.py" in beat.where or "threading.py" in beat.where
