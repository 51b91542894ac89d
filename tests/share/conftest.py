"""A server, an empty place to work in, and something to share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.share.send_server import SendServer


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SendServer]:
    with SendServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the user's state beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.delenv("SWAV_RAY_SHARE_PASSWORD", raising=False)
    for folder in ("here", "scratch"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights, 0.4 MB: several records."""
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": np.random.default_rng(0).standard_normal((100, 1000), dtype=np.float32)}, path)
    return path
