"""One way to files, local or on S3: where atomic writes and clear errors live. Every call is patient with a store that is away.

Credentials and the endpoint come from the environment or the cloud's own chain (`AWS_ENDPOINT_URL` for stores that are
not Amazon's), never from a configuration.
"""

from __future__ import annotations

import contextlib
import glob
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec import AbstractFileSystem

from swav_ray.data.arrow import PatientHandler
from swav_ray.data.patience import patiently
from swav_ray.errors import UserError, without_credentials

# Few tries within a request (they save a long upload from beginning anew for one part): longer trouble is for `patiently`.
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"retries": {"max_attempts": 2, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 30},
    "use_listings_cache": False,
}
# Of an upload in parts, from twice that size on; S3 shows nothing of it before the last is there. Each part is copied under
# Python's lock: short copies hold up a training loop less.
PART_BYTES = 8 * 2**20
_T = TypeVar("_T")


class Storage:
    """A folder, local or `s3://bucket/prefix`. Paths given to its methods are relative to it. Pickles."""

    def __init__(self, uri: str) -> None:
        scheme, separator, rest = uri.partition("://")
        if scheme == "s3" and separator and set(":@") & set(rest.partition("/")[0]):
            raise UserError(
                "s3://***: an address is written down, so it must hold no key or password; credentials come from "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the cloud's own chain"
            )
        if separator and scheme not in ("s3", "file"):
            raise UserError(f"{uri}: only local folders and s3:// are supported, not {scheme}://")
        self.is_s3 = scheme == "s3" and bool(separator)
        if self.is_s3:
            if not rest or rest.startswith("/"):
                raise UserError(f"{uri}: an s3:// address needs a bucket, as in s3://bucket/folder")
            self.root = rest.strip("/")
            self.uri = f"s3://{self.root}"
        else:
            self.root = str(Path(rest if separator else uri).expanduser().absolute())
            self.uri = self.root

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec file system; fsspec keeps one instance a process and set of options."""
        if not self.is_s3:
            return fsspec.filesystem("file")
        _check_endpoint()
        fs = fsspec.filesystem("s3", **S3_OPTIONS)
        fs.retries = 1  # s3fs's own tries again, on top of botocore's and ours
        return fs

    @property
    def arrow(self) -> pyarrow.fs.FileSystem:
        """The same as a pyarrow file system, for Parquet and Ray."""
        return pyarrow.fs.PyFileSystem(PatientHandler(self.fs)) if self.is_s3 else pyarrow.fs.LocalFileSystem()

    def __truediv__(self, name: str) -> Storage:
        return Storage(f"{self.uri}/{name}")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _patiently(self, name: str, call: Callable[[], _T], *, writes: bool = False) -> _T:
        return patiently(call, f"{self.uri}/{name}" if name else self.uri, writes=writes)

    def exists(self, name: str = "") -> bool:
        return self.kind(name) != ""

    def kind(self, name: str = "") -> str:
        """``file`` or ``directory``; empty if there is none."""
        # Not fs.exists: it answers False when a bucket or a network file system does not answer.
        try:
            return str(self._patiently(name, lambda: self.fs.info(self.path(name)))["type"])
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except PermissionError:
            if self.is_s3:
                raise
            return ""

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.path(name)
        return self._patiently(name, lambda: bytes(self.fs.cat_file(path)) if self.is_s3 else Path(path).read_bytes())

    def open(self, name: str, size: int | None = None) -> pa.NativeFile:
        """A file to read parts of. With ``size``, its bytes, an object store is not asked before the first part is read.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.is_s3:
            return pa.OSFile(self.path(name))
        handler = PatientHandler(self.fs)
        return handler.open_input_file(self.path(name)) if size is None else handler.open_known(self.path(name), size)

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        return int(self._patiently(name, lambda: self.fs.info(self.path(name)))["size"])

    def stamp(self, name: str) -> str:
        """What differs between two files that had this name one after the other; cheap beside reading it.

        Raises:
            FileNotFoundError: it is not there.
        """
        info = self._patiently(name, lambda: self.fs.info(self.path(name)))
        return str(info.get("ETag") or (info["size"], info["mtime"], info["ino"]))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: a temporary name, synced and renamed; S3 objects appear whole by nature."""
        path = self.path(name)
        if self.is_s3:
            self._patiently(name, lambda: self.fs.pipe_file(path, content, chunksize=PART_BYTES), writes=True)
        else:
            self._patiently(name, lambda: _write_local(Path(path), content), writes=True)

    def put(self, local: Path, name: str) -> None:
        """Copy a local file in, whole or not at all."""
        if self.is_s3:
            self._patiently(name, lambda: self.fs.put_file(str(local), self.path(name)), writes=True)
        else:
            self.write(name, local.read_bytes())

    def fetch(self, name: str, folder: Path) -> Path:
        """A local file with what stands there: itself where it is local, else a copy in ``folder``, streamed.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.is_s3:
            return Path(self.path(name))
        copy = folder / name.rpartition("/")[-1]
        self._patiently(name, lambda: self.fs.get_file(self.path(name), str(copy)))
        return copy

    def find(self) -> dict[str, int]:
        """Names of all files below, of any depth, unsorted, with their bytes; links are followed, for data sets are often
        folders of them."""
        if self.is_s3:
            found = self._patiently("", lambda: self.fs.find(self.root, detail=True))
            return {path[len(self.root) :].lstrip("/"): int(info["size"]) for path, info in found.items()}
        walk = os.walk(self.root, followlinks=True)  # which fsspec does not
        paths = (Path(folder) / file for folder, _, files in walk for file in files)
        return {str(path.relative_to(self.root)): _local_bytes(path) for path in paths}

    def list(self, name: str = "") -> list[str]:
        """Names directly below a folder, sorted; none if it is not there. Hidden names are not listed."""
        try:
            entries = self._patiently(name, lambda: self.fs.ls(self.path(name), detail=False))
        except FileNotFoundError:
            return []
        # Not among them: what a killed write left, and the empty object by which S3 consoles mark a folder.
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != self.path(name))
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, name: str) -> None:
        """Remove a file or a folder, in no certain order; nothing happens if it is not there."""
        # fsspec takes *, ? and [ of an S3 path for a pattern, and would delete whatever matches it.
        path = glob.escape(self.path(name)) if self.is_s3 else self.path(name)
        with contextlib.suppress(FileNotFoundError):
            self._patiently(name, lambda: self.fs.rm(path, recursive=True))


def _local_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: whoever reads it will say so
        return 0


def _write_local(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    # After a power cut the new name must not be missing while one written later is there.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(folder)
    finally:
        os.close(folder)


def _check_endpoint() -> None:
    """Raise a UserError if the store's address holds a password: requests are signed, and addresses stand in error messages."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        value = os.environ.get(name, "")
        if "@" in value.partition("://")[2].partition("/")[0]:
            raise UserError(
                f"{name} = {without_credentials(value)}: takes no user and no password; requests are signed with "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )


def absolute_uri(uri: str) -> str:
    """``uri`` as every process can use it: workers run in other folders, so local paths become absolute."""
    if "://" in uri:
        Storage(uri)  # refuses one that holds a password before it is written into the run's configuration
        return uri
    return uri if uri.startswith("demo:") else str(Path(uri).expanduser().absolute())


def locate(uri: str) -> tuple[Storage, str]:
    """A file's folder, and its name there."""
    folder, slash, name = uri.rpartition("/")
    if "://" in uri and (folder.endswith(":/") or not name):
        raise UserError(f"{uri}: names no file")
    return Storage(folder + slash if folder + slash else "."), name
