"""Owner tokens: what the server gave us at an upload, and wants to see before it deletes the file again.

One file a share, readable by its user alone, in `$XDG_STATE_HOME/swav-ray/shares` (`~/.local/state` by default). The
link's key is not in it. A token is removed when it is used, or its share has expired.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from swav_ray.errors import UserError
from swav_ray.share.link import Link


def folder() -> Path:
    """Where they are kept, made if it is not there."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    place = base / "swav-ray" / "shares"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place}: cannot be made ({error.strerror}), and what revokes a share is kept there; set XDG_STATE_HOME"
        ) from None
    return place


def keep(link: Link, service: str, token: str, expires: float) -> None:
    """Remember the token of a share until it expires (seconds since 1970); those of expired shares are forgotten.

    Args:
        service: the address it was uploaded to, for the server may name another one in its links.

    Raises:
        UserError: it cannot be written.
    """
    place = folder()
    for old in place.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(old.read_text())["expires"] < time.time():
                old.unlink()
    content = {"service": service, "id": link.id, "owner_token": token, "expires": expires}
    path = place / _name(link)
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; set XDG_STATE_HOME to a folder that can") from None


def token_of(link: Link) -> tuple[str, str]:
    """Server and token of a share of this user on this machine.

    Raises:
        UserError: there is none.
    """
    try:
        kept = json.loads((folder() / _name(link)).read_text())
        return str(kept["service"]), str(kept["owner_token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{link}: not shared from here by this user, or expired; only the machine that shared it can revoke it"
        ) from None


def forget(link: Link) -> None:
    (folder() / _name(link)).unlink(missing_ok=True)


def _name(link: Link) -> str:
    return hashlib.sha256(str(link).encode()).hexdigest()[:32] + ".json"  # the id is the server's: never a path
