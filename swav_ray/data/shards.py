"""Shards: Parquet files of JPEG bytes, and the manifest that makes them a data set.

Columns `id, label, width, height, jpeg`, uncompressed, row groups of 64, files near 128 MB. `manifest.json` is written
last: a folder without one is not a data set.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from swav_ray.data.patience import patiently
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

FORMAT = 1
GROUP_ROWS = 64
READ_THREADS = 8  # of a process that reads windows
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int64()),  # -1: none
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("jpeg", pa.binary()),
    ]
)


Rows = dict[str, list[Any]]  # by column


@dataclass
class Manifest:
    """What a folder of shards holds."""

    num_rows: int = 0
    classes: list[str] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)  # name, num_rows, bytes, sha256
    transcoded: int = 0
    transcoded_why: dict[str, int] = field(default_factory=dict)  # the same, by reason
    changed: dict[str, int] = field(default_factory=dict)  # what was asked to be changed in the pictures: max_side, quality
    skipped: list[dict[str, str]] = field(default_factory=list)  # id, reason
    source: str = ""  # digest of the source's ids, and of what was changed
    group_rows: int = GROUP_ROWS
    format: int = FORMAT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_manifest(folder: Storage) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    try:
        content = json.loads(folder.read(MANIFEST))
    except FileNotFoundError:
        raise UserError(
            f"{folder.uri}: no {MANIFEST} there, so no finished shards; make them with `swav-ray shard SRC {folder.uri}`"
        ) from None
    except ValueError:
        raise UserError(f"{folder.uri}/{MANIFEST}: not valid JSON; make the shards again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{folder.uri}/{MANIFEST}: not of format {FORMAT}; make the shards again with this version")
    try:
        return Manifest(**content)
    except TypeError:
        raise UserError(f"{folder.uri}/{MANIFEST}: has keys this version does not know; make the shards again") from None


class Shards:
    """Rows of a data set by row group. What files say of themselves is kept; several threads may read."""

    def __init__(self, uri: str) -> None:
        self.folder = Storage(uri)
        self.manifest = read_manifest(self.folder)
        self._rows_per_file = np.array([file["num_rows"] for file in self.manifest.files], dtype=np.int64)
        self._group_ends = np.cumsum(-(-self._rows_per_file // GROUP_ROWS))

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def rows_per_group(self) -> NDArray[np.int64]:
        """Rows of every row group, in manifest order; what a :class:`~swav_ray.data.plan.Plan` takes."""
        sizes = np.full(int(self._group_ends[-1]), GROUP_ROWS, dtype=np.int64)
        sizes[self._group_ends - 1] -= -self._rows_per_file % GROUP_ROWS  # what a file's last group lacks
        return sizes

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - lives as long as the process that reads
    def _footer(self, index: int) -> tuple[pq.FileMetaData, int]:
        """What a file says of itself, and its bytes."""
        with self.folder.open(self.manifest.files[index]["name"]) as file:
            return pq.read_metadata(file), file.size()

    def read_group(self, group: int, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
        """The rows of one row group.

        Raises:
            UserError: its file is missing or damaged. A picture that is damaged within its bytes is for who decodes it.
        """
        index = int(np.searchsorted(self._group_ends, group, side="right"))
        first = int(self._group_ends[index - 1]) if index else 0

        # Opened anew each time: a reader serves one thread, and a stale handle of a network file system never heals.
        def read() -> pa.Table:
            footer, size = self._footer(index)
            with self.folder.open(self.manifest.files[index]["name"], size) as file:
                reader = pq.ParquetFile(file, metadata=footer, pre_buffer=self.folder.is_s3)
                return reader.read_row_group(group - first, columns=list(columns), use_threads=False)

        address = f"{self.folder.uri}/{self.manifest.files[index]['name']}"
        try:
            return patiently(read, address)
        except FileNotFoundError:
            raise UserError(f"{address}: is in the manifest but not there; make the shards again") from None
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # the file system's answer, not the Parquet reader's
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{address}: damaged ({reason}); make the shards again (`swav-ray shard SRC DEST --check` finds all that are)"
            ) from None

    def read_windows(self, windows: Iterable[NDArray[np.int64]], columns: Sequence[str]) -> Generator[Rows]:
        """For each window, rows ``(n, 2)`` of (group, row), the columns' values in that order.

        Each group of a window is read once, several at a time, for a store answers late; the next window while one is used.
        """
        pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="swav-ray-reads")
        rest = iter(windows)

        def begin() -> tuple[list[Future[pa.Table]], list[tuple[int, int]]] | None:
            if (pairs := next(rest, None)) is None:
                return None
            groups, which = np.unique(pairs[:, 0], return_inverse=True)
            tables = [pool.submit(self.read_group, int(group), columns) for group in groups]
            return tables, list(zip(which.tolist(), pairs[:, 1].tolist(), strict=True))

        try:
            begun = begin()
            while begun is not None:
                tables, places = begun
                mine = [table.result().to_pydict() for table in tables]
                begun = begin()
                yield {column: [mine[table][column][row] for table, row in places] for column in columns}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def iter_groups(self, columns: Sequence[str], part: int = 0, parts: int = 1) -> Iterator[pa.Table]:
        """Every ``parts``-th row group, from ``part`` on."""
        for group in range(part, int(self._group_ends[-1]), parts):
            yield self.read_group(group, columns)


def verify(folder: Storage) -> Iterable[str]:
    """What is wrong with the files of a data set, one line each; nothing if all checksums hold."""
    for file in read_manifest(folder).files:
        try:
            content = folder.read(file["name"])
        except FileNotFoundError:
            yield f"{folder.uri}/{file['name']}: missing"
            continue
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            yield f"{folder.uri}/{file['name']}: checksum differs from the manifest"
