"""A job's output on this terminal: its progress in one live line, everything else as it comes."""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

PROGRESS = re.compile(r"epoch \d+/\d+ step \d+/\d+ ")  # of `pretrain`, as `train/screen.py` writes it


class Watch:
    """Shows pieces of output; a context manager. Where this is no terminal, every line is printed."""

    def __init__(self) -> None:
        self.console = Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        self._rest = ""  # of a line that has not ended

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._rest:
            self._show(self._rest)
        if self._live is not None:
            self._live.stop()

    def show(self, piece: str) -> None:
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._show(line)

    def _show(self, line: str) -> None:
        if self._live is not None and PROGRESS.match(line):
            self._live.update(Text(line))
        else:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)
