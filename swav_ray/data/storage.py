"""One way to files, local or on S3: where retries, atomic writes and clear errors live.

Credentials and the endpoint come from the environment or the cloud's own chain (`AWS_ENDPOINT_URL` for stores that are
not Amazon's), never from a configuration.
"""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from fsspec import AbstractFileSystem

from swav_ray.errors import UserError

# Ray and pyarrow lose their retry strategy when pickled; botocore's own survives (RAY_FACTS 3).
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"retries": {"max_attempts": 12, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 30},
    "use_listings_cache": False,
}

# Called with the operation and the path before each operation on files, and may raise: how tests and faults break storage.
_fault: Callable[[str, str], None] | None = None


def _before(operation: str, path: str) -> str:
    if _fault is not None:
        _fault(operation, path)
    return path


class Storage:
    """A folder, local or `s3://bucket/prefix`. Paths given to its methods are relative to it. Pickles."""

    def __init__(self, uri: str) -> None:
        scheme, separator, rest = uri.partition("://")
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
        return fsspec.filesystem("s3", **S3_OPTIONS) if self.is_s3 else fsspec.filesystem("file")

    @property
    def arrow(self) -> pyarrow.fs.FileSystem:
        """The same as a pyarrow file system, for Parquet and Ray."""
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs)) if self.is_s3 else pyarrow.fs.LocalFileSystem()

    def __truediv__(self, name: str) -> Storage:
        return Storage(f"{self.uri}/{name}")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(_before("exists", self.path(name))))

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        return bytes(self.fs.cat_file(_before("read", self.path(name))))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: a temporary name, synced and renamed; S3 objects appear whole by nature."""
        path = _before("write", self.path(name))
        if self.is_s3:
            self.fs.pipe_file(path, content)
            return
        target = Path(path)
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

    def put(self, local: Path, name: str) -> None:
        """Copy a local file in, whole or not at all."""
        if self.is_s3:
            self.fs.put_file(str(local), _before("write", self.path(name)))
        else:
            self.write(name, local.read_bytes())

    def list(self, name: str = "") -> list[str]:
        """Names directly below a folder, sorted; none if it is not there. Hidden names are not listed."""
        try:
            entries = self.fs.ls(_before("list", self.path(name)), detail=False)
        except FileNotFoundError:
            return []
        # Not among them: what a killed write left, and the empty object by which S3 consoles mark a folder.
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != self.path(name))
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, name: str) -> None:
        """Remove a file or folder; nothing happens if it is not there."""
        path = _before("delete", self.path(name))
        if self.exists(name):
            # fsspec takes *, ? and [ of an S3 path for a pattern, and would delete whatever matches it.
            self.fs.rm(glob.escape(path) if self.is_s3 else path, recursive=True)


def absolute_uri(uri: str) -> str:
    """``uri`` as every process can use it: workers run in other folders, so local paths become absolute."""
    return uri if "://" in uri or uri.startswith("demo:") else str(Path(uri).expanduser().absolute())
