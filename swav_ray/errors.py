"""The errors that the command line prints as one line: a user's mistake, failed machines, and a store that is away."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


LONGEST_VALUE = 200  # characters of a value in a message


class UserError(Exception):
    """What is wrong, where (file, key, value) and how to mend it, in one line, whatever a user's keys and values hold."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


class InfraError(UserError):
    """Processes, nodes or the store failed, and not the configuration: the same command goes on from the last checkpoint.

    A sweep tries such a trial again and does not count it; catch it before :class:`UserError`.
    """


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


Place = str | Callable[[tuple[Any, ...]], str]  # what to call a source, or where in it the entry at a path stands


def explain(error: ValidationError, source: Place, keys: dict[str, Any]) -> str:
    """The first mistake of a validation error in one line."""
    mistakes = error.errors()
    # A misspelt key is often also a missing one; its own name says more.
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    path = ".".join(str(part) for part in first["loc"])
    where = source if isinstance(source, str) else source(first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {path!r}{did_you_mean(path, keys)}{more}"
    if first["type"] == "missing":
        return f"{where}: {path} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not path or message.startswith(path):
        return f"{where}: {message}{more}"
    if first["type"] == "value_error":
        return f"{where}: {path}: {message}{more}"
    return f"{where}: {path} = {shown(first['input'])}: {message[0].lower()}{message[1:]}{more}"


def shown(value: Any) -> str:
    """A value for a message, the middle of a very long one left out."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE // 2]} ... {text[-LONGEST_VALUE // 2 :]}"


def without_credentials(text: str) -> str:
    """A text whose addresses name no user, no password, and no query, which may hold a key."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "***@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\",;)\]}]*", r"\1?***", text)
