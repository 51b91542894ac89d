"""A job's output on this terminal."""

from __future__ import annotations

import io

from rich.console import Console

from swav_ray.jobs import watch
from swav_ray.jobs.watch import Watch

PIECES = ["run mine in s3://b/runs\nepoch 1/2 st", "ep 10/18  loss 3\nepoch 2/2 step 18/18  loss 2\n", "done: ", "s3://b [x]"]


def shown(monkeypatch, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, legacy_windows=False)
    monkeypatch.setattr(watch, "Console", lambda: console)
    with Watch() as view:
        for piece in PIECES:
            view.show(piece)
    return out.getvalue()


def test_where_output_is_a_file_every_line_is_there_once(monkeypatch) -> None:
    assert shown(monkeypatch, False).splitlines() == "".join(PIECES).splitlines()


def test_on_a_terminal_progress_is_one_line_that_goes(monkeypatch) -> None:
    text = shown(monkeypatch, True)
    assert "run mine in s3://b/runs" in text and "done: s3://b [x]" in text
    assert "step 18/18" in text and "\n".join(["epoch 1/2 step 10/18  loss 3", "epoch 2/2"]) not in text
