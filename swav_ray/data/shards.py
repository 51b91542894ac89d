"""Shards: Parquet files of JPEG bytes, and the manifest that makes them a data set.

Columns `id, label, width, height, jpeg`, uncompressed, row groups of 64, files near 128 MB. `manifest.json` is written
last: a folder without one is not a data set.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from swav_ray.data.decode import BadImageError, ingest
from swav_ray.data.patience import patiently
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

FORMAT = 1
GROUP_ROWS = 64
FILE_BYTES = 128 * 2**20
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


@dataclass(frozen=True)
class Source:
    """One image to put into shards; `read` gives its bytes."""

    id: str
    label: int
    read: Any


@dataclass
class Manifest:
    """What a folder of shards holds."""

    num_rows: int = 0
    classes: list[str] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)  # name, num_rows, bytes, sha256
    transcoded: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)  # id, reason
    source: str = ""  # digest of the source's ids
    group_rows: int = GROUP_ROWS
    format: int = FORMAT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def source_digest(sources: Sequence[Source], classes: Sequence[str]) -> str:
    """Names what a source holds, so that a finished or interrupted job is only continued from the same source."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for source in sources:
        digest.update(f"{source.id}\0{source.label}\n".encode())
    return digest.hexdigest()


def write_shards(sources: Sequence[Source], classes: Sequence[str], dest: Storage, *, progress: Any = None) -> Manifest:
    """Put images into shards. Killed, it goes on after the last finished file; the manifest comes last.

    Args:
        sources: in the order that gives each row its place.
        classes: names of the labels.
        dest: folder of the shards.
        progress: called with the number of images done so far.

    Raises:
        UserError: the destination holds shards of another source, or no image can be read.
    """
    manifest = Manifest(classes=list(classes), source=source_digest(sources, classes))
    if dest.exists(MANIFEST):
        existing = read_manifest(dest)
        if existing.source != manifest.source:
            raise UserError(f"{dest.uri}: already holds shards of another source; choose an empty folder or delete it")
        return existing
    done = 0
    for name in dest.list("parts"):
        part = json.loads(dest.read(f"parts/{name}"))
        if part["source"] != manifest.source:
            raise UserError(f"{dest.uri}: holds unfinished shards of another source; delete the folder or choose another")
        done = part["done"]
        manifest.files.append(part["file"])
        manifest.skipped += part["skipped"]
        manifest.transcoded += part["transcoded"]
    while done < len(sources):
        table, used, skipped, transcoded = _next_table(sources, done, progress)
        done += used
        manifest.skipped += skipped
        manifest.transcoded += transcoded
        if table.num_rows == 0:
            continue
        name = f"part-{len(manifest.files):05d}.parquet"
        content = _parquet(table)
        dest.write(name, content)
        file = {"name": name, "num_rows": table.num_rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.files.append(file)
        part = {"file": file, "done": done, "skipped": skipped, "transcoded": transcoded, "source": manifest.source}
        dest.write(f"parts/{name}.json", json.dumps(part).encode())
    manifest.num_rows = sum(file["num_rows"] for file in manifest.files)
    if manifest.num_rows == 0:
        first = f"; the first is {manifest.skipped[0]['id']}: {manifest.skipped[0]['reason']}" if manifest.skipped else ""
        raise UserError(f"none of {len(sources)} files is a readable image{first}")
    dest.write(MANIFEST, manifest.to_json())
    dest.delete("parts")
    return manifest


def _next_table(sources: Sequence[Source], start: int, progress: Any) -> tuple[pa.Table, int, list[dict[str, str]], int]:
    """Images from ``start`` on until a file's worth is together."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    size, used, transcoded, skipped = 0, 0, 0, []
    for source in sources[start:]:
        used += 1
        try:
            image = ingest(source.read())
        except (BadImageError, FileNotFoundError, PermissionError) as error:  # a failing store stops the job instead
            skipped.append({"id": source.id, "reason": " ".join(str(error).split())})
            continue
        row = (source.id, source.label, image.width, image.height, image.jpeg)
        for name, value in zip(SCHEMA.names, row, strict=True):
            columns[name].append(value)
        transcoded += image.transcoded
        size += len(image.jpeg)
        if progress is not None:
            progress(start + used)
        if size >= FILE_BYTES:
            break
    return pa.table(columns, schema=SCHEMA), used, skipped, transcoded


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
    return out.getvalue()


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
    """Rows of a data set by row group. Opened files are kept; one instance serves one process."""

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

    @functools.lru_cache(maxsize=64)  # noqa: B019 - lives as long as the process that reads
    def _file(self, index: int) -> pq.ParquetFile:
        name = self.manifest.files[index]["name"]
        try:
            return pq.ParquetFile(self.folder.path(name), filesystem=self.folder.arrow, pre_buffer=self.folder.is_s3)
        except FileNotFoundError:
            raise UserError(f"{self.folder.uri}/{name}: is in the manifest but not there; make the shards again") from None

    def read_group(self, group: int, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
        """The rows of one row group.

        Raises:
            UserError: its file is missing or damaged. A picture that is damaged within its bytes is for who decodes it.
        """
        index = int(np.searchsorted(self._group_ends, group, side="right"))
        first = int(self._group_ends[index - 1]) if index else 0

        def read() -> pa.Table:
            try:
                return self._file(index).read_row_group(group - first, columns=list(columns))
            except OSError:
                self._file.cache_clear()  # a stale handle of a network file system heals only by opening the file anew
                raise

        address = f"{self.folder.uri}/{self.manifest.files[index]['name']}"
        try:
            return patiently(read, address)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # the file system's answer, not the Parquet reader's
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{address}: damaged ({reason}); make the shards again (`swav-ray shard SRC DEST --check` finds all that are)"
            ) from None

    def read_rows(self, pairs: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Rows ``(n, 2)`` of (group, row) in the order given, each group read once."""
        groups, which = np.unique(pairs[:, 0], return_inverse=True)
        tables = [self.read_group(int(group), columns) for group in groups]
        offsets = np.cumsum([0, *(table.num_rows for table in tables)])[:-1]
        return pa.concat_tables(tables).take(pa.array(offsets[which] + pairs[:, 1]))

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
