"""The one exception a user's mistake raises; the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where (file, key, value) and how to mend it, in one line, whatever a user's keys and values hold."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


class Stopped(Exception):  # noqa: N818  not an error
    """The user or the cluster asked the run to stop, and it did, all saved; the message says how to go on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'epochs'?)"`` for the known word nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
