"""What `share` and `receive` ask and show. The key is shown once, to whoever shares, on standard output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from swav_ray.errors import UserError
from swav_ray.share.handover import Shared
from swav_ray.share.send import Progress

PASSWORD = "SWAV_RAY_SHARE_PASSWORD"  # environment variable


def password_of(what: str, *, twice: bool = False) -> str:
    """From the environment or the keyboard: never an argument, which every user of the machine can read.

    Raises:
        UserError: neither is there.
    """
    given = os.environ.get(PASSWORD)
    if given:
        return given
    if not sys.stdin.isatty():
        raise UserError(f"a password is needed: set {PASSWORD}, or run this where one can be typed")
    import typer

    return str(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int], Progress]]:
    """A bar on stderr, begun once the number of bytes is known; nothing where that is no terminal."""
    from rich import progress
    from rich.console import Console

    columns = progress.TextColumn(what), progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn()
    with contextlib.ExitStack() as stack:

        def begin(size: int) -> Progress:
            shown = stack.enter_context(progress.Progress(*columns, console=Console(stderr=True), transient=True))
            task = shown.add_task(what, total=size)
            return lambda more: shown.advance(task, more)

        yield begin


def shared_lines(shared: Shared, downloads: int, password: bool) -> Iterator[str]:
    """What is out, the link with its key, who can read it and for how long, and how to revoke it."""
    yield f"in it: {', '.join(shared.files)} ({sum(shared.files.values()) / 1e6:,.1f} MB)"
    yield shared.link.whole()
    times = "1 download" if downloads == 1 else f"{downloads} downloads"
    until = datetime.fromtimestamp(shared.expires).strftime("%Y-%m-%d %H:%M")
    yield f"{times}, until {until}, for whoever has the link" + (" and the password" if password else "")
    if password:
        yield "the server asks for the password before a download; it does not strengthen the encryption"
    yield f"get it: swav-ray receive '{shared.link}#...' (the whole link above)"
    yield f"revoke it: swav-ray share --revoke {shared.link}"


def received_lines(place: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What was received; only what was checked is shown."""
    for name, entry in manifest["files"].items():
        yield f"  {name}  {entry['bytes']:,} bytes"
    yield f"all checksums hold: {place}"
