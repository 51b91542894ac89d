"""The errors that the command line prints as one line: a user's mistake, and a store that is away."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where (file, key, value) and how to mend it, in one line, whatever a user's keys and values hold."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


class Stopped(Exception):  # noqa: N818  not an error
    """The user or the cluster asked the run to stop, and it did, all saved; the message says how to go on."""


class StorageAwayError(OSError):
    """A store that did not answer for as long as we wait for one; the address, the count and the last error in one line.

    Not a UserError: other workers may reach it, and a run is taken up again where its checkpoints are.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'epochs'?)"`` for the known word nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
