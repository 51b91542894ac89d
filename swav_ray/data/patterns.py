"""What an address stands for: a file, all files of a folder, or those that a pattern matches."""

from __future__ import annotations

import re

from braceexpand import braceexpand
from fsspec.utils import glob_translate

from swav_ray.data.storage import Storage, locate
from swav_ray.errors import UserError

_SPECIAL = re.compile(r"[*?\[{]")


def files_of(uri: str) -> tuple[Storage, dict[str, int]]:
    """A folder, and files below it with their bytes.

    Args:
        uri: of a file; of a folder, for all below it; or with `*`, `?`, `[ab]`, `**` (any depth), `{a,b}` and `{000..127}`.

    Raises:
        UserError: there is no such file or folder, or a part of the pattern matches nothing.
    """
    place = Storage(uri)
    kind = place.kind()
    if kind == "file":
        folder, name = locate(place.uri)
        return folder, {name: folder.size(name)}
    if kind:
        return place, place.find()
    special = _SPECIAL.search(uri)
    if special is None:
        raise UserError(f"{uri}: no such file or folder")
    fixed, slash, _ = uri[: special.start()].rpartition("/")
    folder = Storage(fixed + slash if fixed + slash else ".")
    if not folder.exists():
        raise UserError(f"{folder.uri}: no such folder")
    try:
        patterns = list(braceexpand(uri[len(fixed + slash) :]))
    except ValueError:
        raise UserError(f"{uri}: a brace is not closed") from None
    there, matched = folder.find(), set()
    for pattern in patterns:
        full = re.compile(glob_translate(pattern))
        found = {name for name in there if full.match(name)}
        if not found:
            raise UserError(f"{fixed + slash}{pattern}: no such file")
        matched |= found
    return folder, {name: there[name] for name in matched}
