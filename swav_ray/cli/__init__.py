"""The commands. Thin, and heavy imports only inside them, so that --help answers at once."""

from __future__ import annotations

import sys

from swav_ray.cli import training  # isort: skip  # the order of the help
from swav_ray.cli import bench, doctor, jobs, nodes, sweeps, transfer, weights
from swav_ray.cli.app import app
from swav_ray.errors import Stopped, StorageAwayError, UserError

__all__ = ["app", "bench", "doctor", "jobs", "main", "nodes", "sweeps", "training", "transfer", "weights"]


def main() -> None:
    """Entry point: a user's mistake, or a store that is away, is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except (UserError, StorageAwayError) as error:
        print(f"swav-ray: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"swav-ray: {stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("swav-ray: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
