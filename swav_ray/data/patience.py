"""Patience with a store that is away for a while: the one place where storage operations are tried again.

Tried again is what passes by itself: refused and reset connections, timeouts, 5xx and throttling, bodies cut short, and
on network file systems EIO and stale handles. A missing key, a denied access or a full disk is an answer and comes back at
once. Whatever is tried again writes or deletes whole objects under one name, so doing it twice does it once.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from swav_ray.errors import StorageAwayError, UserError

PATIENCE = "SWAV_RAY_STORAGE_PATIENCE"  # seconds from the first failure to giving up; read by every process
DEFAULT_PATIENCE = 300.0
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds

_PASSING_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "IncompleteBody", "BadDigest"}
# What connections to S3 raise, by name: importing their modules costs a local run a third of a second.
_NETWORK_ERRORS = {
    "aiohttp.client_exceptions.ClientError",  # a body cut short, among others
    "botocore.exceptions.ConnectionError",  # refused, no such host for now, connect timeout
    "botocore.exceptions.HTTPClientError",  # reset, read timeout
    "botocore.parsers.ResponseParserError",  # an XML answer cut short
}
_random = random.Random()  # not the global one, which users seed
_T = TypeVar("_T")
# Called before every try with the address and whether it is written to; may raise. How faults break a process's storage.
_fault: Callable[[str, bool], None] | None = None
logger = logging.getLogger(__name__)


def patiently(call: Callable[[], _T], what: str, *, writes: bool = False) -> _T:
    """The result of ``call``, tried again with growing random waits for as long as its failures may pass.

    Args:
        call: safe to do twice.
        what: the address it works on, for messages.
        writes: it makes or replaces what is there.

    Raises:
        StorageAwayError: it still fails after :func:`patience` seconds.
    """
    limit = patience()
    failed_first = 0.0
    for attempt in itertools.count(1):
        try:
            if _fault is not None:
                _fault(what, writes)
            result = call()
        except Exception as error:
            if not passes(error):
                error.add_note(what)  # for who tells it: a store's errors name no place
                raise
            now = time.monotonic()
            if attempt == 1:
                failed_first = now
                logger.warning("%s: no answer (%s); trying again for up to %.0f s", what, _reason(error), limit)
            left = failed_first + limit - now
            if left <= 0:
                raise StorageAwayError(
                    f"{what}: no answer in {now - failed_first:.0f} s and {attempt} attempts; the last failed with "
                    f"{_reason(error)}; see that the store is there, or wait longer with {PATIENCE}=SECONDS"
                ) from error
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 16), left)
            time.sleep(_random.uniform(0.0, longest))  # full jitter: many workers do not return all at once
        else:
            if attempt > 1:
                logger.warning("%s: answers again after %.1f s", what, time.monotonic() - failed_first)
            return result
    raise AssertionError


def patience() -> float:
    """Seconds that a failing operation is tried again.

    Raises:
        UserError: the environment variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text or DEFAULT_PATIENCE)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{PATIENCE} = {text!r}: must be a number of seconds, 0 or more")
    return seconds


def passes(error: BaseException) -> bool:
    """Whether an error of a storage operation is one of a store that is away or busy, not its answer."""
    if isinstance(error, StorageAwayError):  # patience is over already
        return False
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)  # of botocore's ClientError: the store's own answer decides
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status in _PASSING_STATUS or response.get("Error", {}).get("Code") in _PASSING_CODES
        cause = cause.__cause__
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _PASSING_ERRNOS:
        return True
    return any(f"{kind.__module__}.{kind.__qualname__}" in _NETWORK_ERRORS for kind in type(error).__mro__)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
