"""A cluster of `ray start` with a dashboard and a token, data and runs on S3 over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.head import Head
from benchmarks.traced import TRACE
from tests.train.small import small_shards


@pytest.fixture(scope="module")
def head(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Two processors, no worker nodes; its processes know the store, and take as long for a step as an accelerator would."""
    trace = tmp_path_factory.mktemp("trace") / "steps"
    with Head(cpus=2, environment={TRACE: str(trace)}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(s3: str) -> str:
    return small_shards(f"{s3}/jobs-shards")


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """The folder a user types in."""
    return tmp_path
