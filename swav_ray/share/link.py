"""Links of Send: where a file is, and after the # the key that opens it, which no log or error message may hold."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from swav_ray.errors import UserError

KEY_BYTES = 16
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Link:
    """A shared file. As a string it has no key, and so may stand in any message.

    Attributes:
        service: the server's address, with a slash at its end.
        id: the server's name for the file.
        key: what it is encrypted with.
    """

    service: str
    id: str
    key: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.service}download/{self.id}/"

    def whole(self) -> str:
        """With the key. Exactly what a browser shows, since a password is salted with it."""
        return f"{self}#{base64.urlsafe_b64encode(self.key).decode().rstrip('=')}"


def read_link(text: str, *, with_key: bool = True) -> Link:
    """A link as someone pasted it.

    Raises:
        UserError: not a link, or its key is missing or cut short. The text is not repeated: it may hold the key.
    """
    address, _, key = text.strip().partition("#")
    match = re.fullmatch(r"(.*?/)download/([0-9A-Za-z_-]{1,64})/?", address)
    if match is None:
        raise UserError("LINK: not a link of a Send server; it looks like https://send.example/download/0123456789abcdef/#KEY")
    service = read_service(match[1], "LINK")
    if not with_key:
        return Link(service, match[2])
    if not re.fullmatch(r"[\w-]{22}", key, re.ASCII):
        raise UserError(
            f"LINK: {Link(service, match[2])} lacks its key, the 22 letters after the #; copy the whole link, in quotes"
        )
    return Link(service, match[2], base64.urlsafe_b64decode(key + "=="))


def read_service(text: str, what: str = "--to") -> str:
    """The address of a server as browsers write it: lower case, no default port, a slash at its end.

    Raises:
        UserError: not such an address. The text is not repeated: it may hold a password or a link's key.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    # No user, query or fragment, and nothing a browser would write otherwise, so that the salt of a password differed.
    plain = re.fullmatch(r"[\w.~/:\[\]-]+", text.strip(), re.ASCII)
    if parts.scheme not in _PORTS or not parts.hostname or not plain:
        raise UserError(f"{what}: not the plain address of a Send server, such as https://send.example")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
    path = parts.path.strip("/")
    return f"{parts.scheme}://{netloc}/" + (f"{path}/" if path else "")


def seconds_of(text: str) -> int:
    """Seconds of a time such as 30m, 12h, 1d or 1w.

    Raises:
        UserError: not such a time.
    """
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if match is None or int(match[1]) == 0:
        raise UserError(f"--expires {text}: write a time such as 30m, 12h, 1d or 1w")
    return int(match[1]) * _UNITS[match[2]]
