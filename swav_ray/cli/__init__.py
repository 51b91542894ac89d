"""The commands. Thin, and heavy imports only inside them, so that --help answers at once."""

from __future__ import annotations

import sys

from swav_ray.cli import training  # isort: skip  # the order of the help
from swav_ray.cli import bench, doctor, jobs, nodes, sweeps, transfer, weights
from swav_ray.cli.app import app
from swav_ray.errors import Stopped, StorageAwayError, UserError

__all__ = ["app", "bench", "doctor", "jobs", "main", "nodes", "sweeps", "training", "transfer", "weights"]


def main() -> None:
    """Entry point: a user's mistake, or what a disk or a store answers, is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except (UserError, StorageAwayError) as error:
        print(f"swav-ray: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"swav-ray: {stopped}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        answer = _answer(error)
        if answer is None:  # a fault of ours, which is told in full
            raise
        print(f"swav-ray: {answer}", file=sys.stderr)
        sys.exit(2)


def _answer(error: Exception) -> str | None:
    """What a file system or a store said, in one line; None for any other error."""
    package = type(error).__module__.partition(".")[0]
    # Ray's errors are also what the task died of: one of a disk there brings that task's traceback along.
    if package != "botocore" and (package == "ray" or not isinstance(error, OSError)):
        return None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = name or next(iter(getattr(error, "__notes__", ())), None)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return f"{place}: {reason}" if place else reason
