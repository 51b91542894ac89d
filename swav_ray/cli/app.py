"""What all commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from swav_ray import __version__
from swav_ray.errors import Stopped


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """The command; Ctrl-C gets its words here, for typer ends silently by it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped("stopped; the same command goes on from what was saved, else from the start") from None


app = typer.Typer(
    name="swav-ray",
    cls=_Commands,
    help="SwAV image features, learnt without labels on elastic Ray clusters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting on top; repeatable")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    # Answered in its own callback, since this function only runs when a command follows.
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="print the version and exit")] = False,
) -> None:
    pass


def overrides_of(assignments: list[str] | None) -> dict[str, Any]:
    """Settings by dotted key."""
    from swav_ray.config import parse_assignment

    return dict(parse_assignment(text) for text in assignments or [])


def short(place: str) -> str:
    """An address as people write it: relative where it lies below the working folder. A job's is nobody's, and may be gone."""
    from swav_ray.train.session import in_job

    path = Path(place)
    if in_job():
        return place
    return str(path.relative_to(Path.cwd())) if "://" not in place and path.is_relative_to(Path.cwd()) else place


def lasts(storage: str) -> None:
    """Say so where ``storage`` is a folder of a submitted job, which ends with it."""
    from swav_ray.train.session import in_job

    if in_job() and "://" not in storage and not Path(storage).expanduser().is_absolute():
        print(
            f"storage {storage} lies in this job's own folder and goes with it; give s3://BUCKET/FOLDER, or the full path of a "
            "folder that all nodes share",
            file=sys.stderr,
        )
