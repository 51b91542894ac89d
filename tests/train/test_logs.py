"""Log records say of which run, rank and step they are; Ray's JSON lines have it all."""

from __future__ import annotations

import json
import logging

import pytest
from ray._common.formatters import JSONFormatter

from swav_ray.train import logs
from swav_ray.train.signals import SIGNALS


@pytest.fixture(autouse=True)
def as_before():
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    logs._plain = None
    SIGNALS.clear()


def test_a_record_names_run_rank_and_step(caplog) -> None:
    logs.identify("s3://bucket/k_tau/trials/0003", 2)
    logs.identify("s3://bucket/k_tau/trials/0004", 2)  # the process serves another trial
    SIGNALS.enter("step", 17)
    with caplog.at_level(logging.INFO):
        logging.getLogger("any.library").info("hello %s", "there")
    (record,) = caplog.records
    line = json.loads(JSONFormatter().format(record))
    assert line["message"] == "hello there"
    assert {key: line[key] for key in ("run", "rank", "step")} == {
        "run": "s3://bucket/k_tau/trials/0004",
        "rank": 2,
        "step": 17,
    }


@pytest.mark.parametrize(
    ("wanted", "shown", "encoding"), [("", False, None), ("0", False, None), ("1", True, None), ("json", True, "JSON")]
)
def test_what_is_asked_for(monkeypatch, wanted: str, shown: bool, encoding: str | None) -> None:
    monkeypatch.setenv("SWAV_RAY_LOGS", wanted)
    options = logs.logging_options()
    assert options["log_to_driver"] is shown
    assert getattr(options.get("logging_config"), "encoding", None) == encoding
