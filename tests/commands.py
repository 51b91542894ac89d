"""Commands as typed, in this process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from swav_ray import cli


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> Ended:
    """``swav-ray ARGS``."""
    monkeypatch.setattr(sys, "argv", ["swav-ray", *args])
    capsys.readouterr()
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Ended(code, *capsys.readouterr())
