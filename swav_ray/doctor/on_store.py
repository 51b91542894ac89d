"""What a node may do in a store: real requests, none of them tried again. Sent there as code (see `on_node.py`)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFIX = "swav-ray-doctor-"  # of the folder that is made and removed again


def rights(uri: str, token: str, name: str) -> dict[str, Any]:
    """Write, read, list and delete a small file of this node's own below ``uri``, and read what the asker left there.

    Returns:
        ``seconds`` of each step that worked, ``errors`` of those that did not, ``left`` (the address of what could not be
        deleted), ``seen`` (whether the asker's file is there), ``credentials`` (the name of their source).
    """
    from swav_ray.data.storage import Storage

    folder = Storage(uri) / (PREFIX + token)
    fs, path, content = folder.fs, folder.path(name), name.encode()
    found: dict[str, Any] = {
        "seconds": {},
        "errors": {},
        "left": "",
        "credentials": _credentials() if folder.is_s3 else "local",
    }

    def step(what: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        try:
            answer = call()
        except Exception as error:
            found["errors"][what] = short(error)
            return None
        found["seconds"][what] = time.monotonic() - started
        return answer

    found["seen"] = step("see", lambda: fs.info(folder.path("asker"))) is not None
    if not found["seen"] and not folder.is_s3:
        return found  # another machine's folder of that name: nothing is made there
    step("write", lambda: fs.pipe_file(path, content))
    if "write" not in found["errors"]:
        if step("read", lambda: bytes(fs.cat_file(path))) not in (content, None):
            found["errors"]["read"] = "other bytes than were written"
        names = step("list", lambda: fs.ls(folder.path(""), detail=False, refresh=True))
        if names is not None and not any(str(entry).endswith(f"/{name}") for entry in names):
            found["errors"]["list"] = "does not show what was written"
        step("delete", lambda: fs.rm_file(path))
        if "delete" in found["errors"]:
            found["left"] = f"{folder.uri}/{name}"
    else:
        step("list", lambda: _listed(fs, Storage(uri).path("")))
    return found


def leave(uri: str, token: str) -> str:
    """The asker's file, for the nodes to see: an empty word, or why it cannot be written. `remove` takes it away."""
    from swav_ray.data.storage import Storage

    folder = Storage(uri) / (PREFIX + token)
    try:
        if not folder.is_s3:
            Path(folder.root).mkdir(parents=True)
        folder.fs.pipe_file(folder.path("asker"), b"asker")
    except Exception as error:
        return short(error)
    return ""


def missing_folders(uri: str) -> list[str]:
    """Folders of a local address that are not there yet, the innermost first: what the doctor makes, it removes."""
    from swav_ray.data.storage import Storage

    folder = Storage(uri)
    if folder.is_s3:
        return []
    places = map(str, (Path(folder.root), *Path(folder.root).parents))
    return [place for place in places if not os.path.exists(place)]  # noqa: PTH110  Path's raises where one may not enter


def remove(uri: str, token: str, folders: list[str]) -> None:
    """Undo :func:`leave`, as far as the store allows."""
    from swav_ray.data.storage import Storage

    folder = Storage(uri) / (PREFIX + token)
    with contextlib.suppress(Exception):  # the rights were found wanting before
        folder.fs.rm_file(folder.path("asker"))
    if not folder.is_s3:
        for place in (folder.root, *folders):
            with contextlib.suppress(OSError):  # not empty, so not ours alone
                Path(place).rmdir()


def readable(uri: str, name: str) -> dict[str, Any]:
    """Seconds to read a file of a data set, or why not: ``missing`` where it or its folder is not there."""
    from swav_ray.data.storage import Storage

    folder = Storage(uri)
    started = time.monotonic()
    try:
        content = bytes(folder.fs.cat_file(folder.path(name)))
    except FileNotFoundError:
        return {"missing": True}
    except Exception as error:
        return {"error": short(error)}
    return {"seconds": time.monotonic() - started, "bytes": len(content)}


def _listed(fs: Any, path: str) -> list[Any]:
    """What is below a folder: nothing where it is not there."""
    try:
        return list(fs.ls(path, detail=False, refresh=True))
    except FileNotFoundError:
        return []


def _credentials() -> str:
    """Where the keys come from, by botocore's names: env, shared-credentials-file, iam-role, ...; never the keys."""
    import botocore.session

    found = botocore.session.get_session().get_credentials()
    return str(found.method) if found is not None else ""


def short(error: BaseException) -> str:
    """An error's kind and what it says, cut."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
