"""Log records that say of which run, rank and step they are, whoever writes them in a worker's process.

`SWAV_RAY_LOGS=1` shows the workers' logs, `SWAV_RAY_LOGS=json` as JSON lines, on the driver and in Ray's log files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

LOGS = "SWAV_RAY_LOGS"
_plain: Callable[..., logging.LogRecord] | None = None


def logging_options() -> dict[str, Any]:
    """Of `ray.init`: quiet, or what `SWAV_RAY_LOGS` asks for."""
    wanted = os.environ.get(LOGS, "")
    options: dict[str, Any] = {"log_to_driver": wanted not in ("", "0"), "logging_level": logging.ERROR}
    if wanted.lower() == "json":
        import ray

        options["logging_config"] = ray.LoggingConfig(encoding="JSON", additional_log_standard_attrs=["name"])
    return options


def identify(run: str, rank: int) -> None:
    """From now on every record made in this process carries ``run`` (its folder), ``rank`` and the step it is at.

    A trial is a run of its own, whose folder ends in its number.
    """
    from swav_ray.train.signals import SIGNALS

    global _plain
    plain = _plain = _plain or logging.getLogRecordFactory()  # Ray's own; a process serves one run after another

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = plain(*args, **kwargs)
        record.run, record.rank, record.step = run, rank, SIGNALS.step
        return record

    logging.setLogRecordFactory(made)
