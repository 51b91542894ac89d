"""S3 as a pyarrow file system that outlives an outage, for Parquet files and for Ray's own snapshots.

Ray and pyarrow lose their retry strategies when pickled (RAY_FACTS 3); patience is code, and goes where the object goes.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem
from pyarrow.fs import FSSpecHandler

from swav_ray.data.patience import patiently

STREAM_BYTES = 8 * 2**20  # read at a time where a file is read from its beginning to its end


def _patient(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def method(self: FSSpecHandler, *args: Any) -> Any:
        return patiently(lambda: plain(self, *args), f"s3://{args[0]}" if isinstance(args[0], str) else "s3://")

    return method


class PatientHandler(FSSpecHandler):  # type: ignore[misc]
    """pyarrow's bridge to s3fs, with patience in every call that reaches the store."""

    fs: AbstractFileSystem

    def __init__(self, fs: AbstractFileSystem) -> None:
        super().__init__(fs)
        fs.retries = 1  # as in Storage.fs; this object may be the first in a process to make one

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientHandler, (self.fs,)

    get_file_info = _patient(FSSpecHandler.get_file_info)
    get_file_info_selector = _patient(FSSpecHandler.get_file_info_selector)
    create_dir = _patient(FSSpecHandler.create_dir)
    delete_dir_contents = _patient(FSSpecHandler.delete_dir_contents)
    copy_file = _patient(FSSpecHandler.copy_file)

    def delete_dir(self, path: str) -> None:
        self._info(path)  # raises if it is not there, which a second try of the removal must not
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: self.fs.rm(path, recursive=True), f"s3://{path}")

    def delete_file(self, path: str) -> None:
        self._info(path)
        patiently(lambda: self.fs.rm_file(path), f"s3://{path}")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(io.BufferedReader(self._reader(path), STREAM_BYTES), mode="r")

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self._reader(path), mode="r")

    def open_known(self, path: str, size: int) -> pa.PythonFile:
        """A file to read of which it is known that it is there, and its bytes: nothing is asked."""
        return pa.PythonFile(_Reader(self.fs, path, size), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        return pa.PythonFile(_Writer(self.fs, path), mode="w")

    def _reader(self, path: str) -> _Reader:
        info = self._info(path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return _Reader(self.fs, path, info["size"])

    def _info(self, path: str) -> dict[str, Any]:
        # Not fs.isfile or fs.isdir: they answer False when the store does not answer, and the file would be called missing.
        return dict(patiently(lambda: self.fs.info(path), f"s3://{path}"))


class _Reader(io.RawIOBase):
    """A file read by exact ranges. Parquet's reader knows what it needs; s3fs's own file reads 50 MB ahead each time."""

    def __init__(self, fs: AbstractFileSystem, path: str, size: int) -> None:
        self._fs, self._path, self._size, self._place = fs, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._place + size, self._size)
        if end <= self._place:
            return b""
        content = patiently(lambda: self._range(self._place, end), f"s3://{self._path}")
        self._place += len(content)
        return content

    def _range(self, start: int, end: int) -> bytes:
        content = bytes(self._fs.cat_file(self._path, start=start, end=end))
        if len(content) != end - start:  # some gateways cut an answer short and call it whole
            raise ConnectionError(f"{len(content)} of {end - start} bytes came")
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Writer:
    """A file that is sent whole when it is closed, so that sending can be tried again."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self._fs, self._path, self._buffer = fs, path, io.BytesIO()
        self.closed = False

    def write(self, data: Any) -> int:
        return self._buffer.write(data)

    def tell(self) -> int:
        return self._buffer.tell()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            patiently(lambda: self._fs.pipe_file(self._path, self._buffer.getvalue()), f"s3://{self._path}", writes=True)
