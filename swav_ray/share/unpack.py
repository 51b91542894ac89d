"""Opening a bundle that a stranger may have made: every byte is checked against the manifest before anything is kept.

Members are stored uncompressed and together no larger than the file they come in, so that no small file becomes a large
one; they have plain names in one folder, none is a link, and none a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

from swav_ray.errors import UserError
from swav_ray.share.contents import CHUNK, FORMAT, MANIFEST, MOST_FILES, check_content, check_kind, plain_name

MOST_DIRECTORY = 2**16  # bytes of a zip's directory, which is read into memory before a single name can be looked at
MOST_MANIFEST = 2**20


def unpack(bundle: Path, folder: Path) -> dict[str, Any]:
    """Unpack a bundle into an empty folder, and verify it; its manifest. After an error the folder holds rubbish.

    Raises:
        UserError: why it is refused. What it says is for the eye: names in it are quoted.
        OSError: the folder cannot be written.
    """
    try:
        _check_end(bundle)
        with zipfile.ZipFile(bundle) as archive:
            members = _members(archive, bundle.stat().st_size)
            manifest = _manifest(archive, members)
            for name, expected in manifest["files"].items():
                _copy(archive, members[name], expected, folder / name)
            (folder / MANIFEST).write_bytes(archive.read(members[MANIFEST]))
    except UserError as error:
        raise UserError(f"the bundle is refused: {error}") from None
    except OSError:
        raise
    except Exception as error:  # whatever a foreign file makes zipfile raise
        raise UserError(f"the bundle is refused: not a whole zip ({type(error).__name__}: {str(error)[:100]!r})") from None
    for name in manifest["files"]:
        try:
            check_content(folder / name)
        except UserError as error:
            raise UserError(f"the bundle is refused: {error}") from None
    return manifest


def _check_end(bundle: Path) -> None:
    """A zip ends with the size of its directory; ours have no comment after it, and no second record for 4 GiB and more."""
    with bundle.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 42))
        end = file.read(42).rjust(42, b"\0")
    if end[20:24] != b"PK\5\6":
        raise UserError("not a bundle of swav-ray (no zip)")
    size = int.from_bytes(end[32:36], "little")
    if size > MOST_DIRECTORY or end[:4] == b"PK\6\7":
        raise UserError("its directory is larger than a bundle's can be")


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise UserError(f"it has {len(infos)} members, a bundle has {MOST_FILES} at most")
    for info in infos:
        name = info.filename
        if not plain_name(name) or not plain_name(info.orig_filename):
            raise UserError(f"a member has the name {name[:100]!r}, which is not plain: a path could lead out of the folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise UserError(f"{name}: a link or a device, not a file")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise UserError(f"{name}: compressed or encrypted, a bundle's members are neither")
    members = {info.filename: info for info in infos}
    if len({name.lower() for name in members}) < len(infos):
        raise UserError("two members have one name")
    if sum(info.file_size for info in infos) > size:
        raise UserError(f"its members claim {sum(info.file_size for info in infos):,} bytes, the whole file has {size:,}")
    return members


def _manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    if MANIFEST not in members or members[MANIFEST].file_size > MOST_MANIFEST:
        raise UserError(f"not a bundle of swav-ray (no {MANIFEST})")
    try:
        manifest = json.loads(archive.read(members[MANIFEST]))
        if manifest["format"] != FORMAT:
            raise UserError(f"it is of format {manifest['format']!r:.20}, this version reads {FORMAT}; update swav-ray")
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{MANIFEST}: cannot be read") from None
    if files.keys() != members.keys() - {MANIFEST}:
        odd = sorted(files.keys() ^ (members.keys() - {MANIFEST}))[0]
        raise UserError(f"{odd[:100]!r} is in the manifest or among the members, but not in both")
    for name, (size, _) in files.items():
        check_kind(name)
        if size != members[name].file_size:
            raise UserError(f"{name}: has {members[name].file_size:,} bytes, its manifest says {size:,}")
    return dict(manifest)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, expected: dict[str, Any], target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with archive.open(info) as member, target.open("xb") as file:
        while chunk := member.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
        raise UserError(f"{info.filename}: damaged, its checksum differs from the manifest's")
