"""The log of what happened to a run's workers, and what of it a user reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swav_ray.config import load_config
from swav_ray.data.storage import Storage
from swav_ray.train import events as events_module
from swav_ray.train.events import EventLog, read_events
from swav_ray.train.screen import Screen


@pytest.fixture(autouse=True)
def posted(monkeypatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(events_module, "post_events", lambda run, events: found.append(list(events)))
    return found


def test_events_outlive_the_driver(tmp_path: Path, posted: list[Any]) -> None:
    for start in ("first", "second"):
        log = EventLog(str(tmp_path))
        log.add("start", step=-1, workers=2, why=start)
        log.close()
    assert [event["why"] for event in read_events(Storage(str(tmp_path)))] == ["first", "second"]
    assert [event["why"] for event in posted[-1]] == ["second"], "the screen shows this start's only"


def test_a_store_that_cannot_be_written_fails_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = EventLog(str(tmp_path / "file" / "run"))
    log.add("start", step=-1)
    log.close()


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "grow", "workers_before": 1, "workers": 2}, "step 7: 1 -> 2 workers, there is room for more"),
        ({"event": "drain", "workers_before": 2, "workers": 1}, "step 7: 2 -> 1 worker, a node is leaving"),
        ({"event": "restart", "workers_before": 3, "workers": 2}, "step 7: 3 -> 2 workers, going on with these"),
        ({"event": "lost", "workers": 3, "cause": "reset by [peer]"}, "step 7: workers were lost: reset by [peer]"),
        ({"event": "resumed", "workers": 2, "seconds_without_steps": 1.2}, "step 7: training again on 2 workers after 1.2 s"),
        (
            {"event": "stuck", "rank": 1, "node": "abcdef0123456789", "seconds": 300.4, "phase": "step", "where": "a.py:5 f"},
            "step 7: rank 1 on node abcdef01 held up all others for 300 s in step (a.py:5 f) and was ended",
        ),
        (
            {"event": "waiting", "room": 1, "needed": 2, "each": {"CPU": 1.0, "GPU": 0.5}},
            "waiting for nodes: the run needs 2 workers of 1 CPU, 0.5 GPU, the cluster has room for 1",
        ),
        ({"event": "start", "workers_before": 0, "workers": 2}, ""),
    ],
)
def test_each_event_is_one_line(event: dict[str, Any], line: str) -> None:
    screen = Screen(load_config("demo-digits"))
    screen.console = Console(file=io.StringIO(), width=40)
    screen.tell({"step": 7, **event})
    assert screen.console.file.getvalue().strip() == line
