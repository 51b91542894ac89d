"""The two ends of a hand-over: pack and upload, download and unpack. Nothing half done is left on either side."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swav_ray.errors import Stopped, UserError
from swav_ray.share import tokens
from swav_ray.share.bundle import pack
from swav_ray.share.contents import MOST_BYTES, plain_name
from swav_ray.share.link import Link, read_link
from swav_ray.share.send import Progress, Send
from swav_ray.share.unpack import unpack


@dataclass(frozen=True)
class Shared:
    """An upload: its link (with the key), the bytes of each file in it, and when it goes (seconds since 1970)."""

    link: Link
    files: dict[str, int]
    expires: float


def hand_over(
    source: str,
    service: str,
    *,
    downloads: int = 1,
    seconds: int = 86400,
    password: str | None = None,
    progress: Callable[[int], Progress] = lambda size: lambda more: None,
) -> Shared:
    """Pack a run or a file and upload it, encrypted here with a key that only the link holds.

    Args:
        service: address of the server (of `link.read_service`).
        password: the server asks for it before it hands the file out; the encryption does not get stronger by it.
        progress: called with the size; what it returns with each number of bytes more.

    Raises:
        UserError: nothing to share there, or the server will not have it; then nothing of it is left there.
        Stopped: interrupted; nothing is left either.
    """
    tokens.folder()  # whoever cannot revoke should know before anything is out
    with _stopping("nothing was shared"), tempfile.TemporaryDirectory(prefix="swav-ray-") as scratch:
        bundle = pack(source, Path(scratch))
        send = Send(service)
        size = bundle.path.stat().st_size
        with bundle.path.open("rb") as file:
            expires = time.time() + seconds
            link, token = send.upload(
                file, size, f"{bundle.name}.zip", downloads=downloads, seconds=seconds, progress=progress(size)
            )
        try:
            if password is not None:
                send.set_password(link, token, password)
            tokens.keep(link, service, token, expires)
        except BaseException:
            with contextlib.suppress(UserError):
                send.delete(link, token)
            raise
    return Shared(link, bundle.files, expires)


def receive(
    link: Link,
    dest: str | None = None,
    *,
    ask: Callable[[], str] | None = None,
    progress: Callable[[int], Progress] = lambda size: lambda more: None,
) -> tuple[Path, dict[str, Any]]:
    """Download, verify and unpack a bundle into a new folder; the folder and the bundle's manifest.

    Args:
        dest: the folder, which must not be there yet; by default the bundle's name, in the current one.
        ask: gives the password, if the server wants one.

    Raises:
        UserError: why there is nothing; and nothing is left.
        Stopped: interrupted; nothing is left either.
    """
    with _stopping("nothing was kept"):
        target = None if dest is None else _free(Path(dest))
        send = Send(link.service)
        password = None
        if send.needs_password(link):
            if ask is None:
                raise UserError(f"{link}: needs a password")
            password = ask()
        remote = send.look(link, password)
        target = target or _free(Path(_default_name(remote.name, link)))
        if not 0 < remote.size <= MOST_BYTES:
            raise UserError(f"{link}: claims {remote.size:,} bytes, which no bundle has")
        try:
            free = shutil.disk_usage(target.parent).free
            if 2 * remote.size > free:  # the bundle and what is in it
                raise UserError(f"{target}: needs {2 * remote.size:,} bytes while unpacking, {free:,} are free")
            with tempfile.TemporaryDirectory(prefix=".swav-ray-", dir=target.parent) as scratch:
                bundle, folder = Path(scratch) / "bundle.zip", Path(scratch) / "unpacked"
                with bundle.open("wb") as file:
                    send.download(link, remote.size, file, password, progress(remote.size))
                folder.mkdir()
                manifest = unpack(bundle, folder)
                folder.rename(_free(target))
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    return target, manifest


def revoke(text: str) -> Link:
    """Delete a file that this user shared from this machine; the link may lack its key.

    Raises:
        UserError: not shared from here, or the server does not delete it.
    """
    link = read_link(text, with_key=False)
    service, token = tokens.token_of(link)
    Send(service).delete(link, token)
    tokens.forget(link)
    return link


def _free(target: Path) -> Path:
    if not target.parent.is_dir():
        raise UserError(f"{target}: {target.parent} is no folder; make it first")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: is there already; name another folder, as in `swav-ray receive LINK FOLDER`")
    return target


def _default_name(name: str, link: Link) -> str:
    """A folder's name from what the sender called the file, if that is a plain name; else of the server's id."""
    stem = re.sub(r"\.zip$", "", name)
    return stem if plain_name(stem) else f"bundle-{link.id}"


@contextlib.contextmanager
def _stopping(outcome: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {outcome}") from None
