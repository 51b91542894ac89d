"""What one worker does: the images of a chunk become files, and each finished file leaves a note."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swav_ray.data.chunks import Chunk, Source
from swav_ray.data.decode import BadImageError
from swav_ray.data.ingest import Change, Ingested, ingest
from swav_ray.data.shards import GROUP_ROWS, SCHEMA
from swav_ray.data.storage import Storage

READERS = 16  # threads that read: a store answers late but many at once

Part = dict[str, Any]  # the note a finished file leaves
Tell = Callable[[int], None]  # called with the number of images put into shards since the last call


@dataclass(frozen=True)
class Task:
    """One chunk to put into shards, from its ``done``-th image on; ``files`` of its files are there. Pickles."""

    index: int
    chunk: Chunk
    dest: Storage
    source: str
    change: Change
    file_bytes: int
    done: int = 0
    files: int = 0
    cores: int = 1

    def run(self, tell: Tell | None = None) -> list[Part]:
        """Write what is left of the chunk; the notes of its new files."""
        done, files = self.done, self.files
        parts: list[Part] = []
        rest = _ingested(itertools.islice(iter(self.chunk), done, None), self.change, self.cores)
        while not parts or not parts[-1]["end"]:
            rows = _File()
            for source, image in rest:
                done += 1
                rows.add(source, image)
                if tell is not None:
                    tell(1)
                if rows.size >= self.file_bytes:
                    break
            else:
                rows.part["end"] = True
            part = rows.part | {"chunk": self.index, "done": done, "source": self.source}
            if rows.num_rows:
                name = f"part-{self.index:05d}" + (f"_{files:03d}" if files else "")  # sorted by name, files are in order
                part["file"] = rows.write(self.dest, f"{name}.parquet")
            self.dest.write(f"parts/{self.index:05d}-{files:03d}.json", json.dumps(part).encode())
            parts.append(part)
            files += 1
        return parts


def _ingested(sources: Iterable[Source], change: Change, cores: int) -> Iterator[tuple[Source, Ingested | str]]:
    """Images as shards hold them, or why they cannot be read, in order; read ahead, for a store answers late but often."""
    gate = threading.Semaphore(cores)  # decoding is for as many cores as there are, not for as many requests

    def take(source: Source) -> Ingested | str:
        try:
            content = source.read()
            with gate:
                return ingest(content, change)
        except (BadImageError, FileNotFoundError, PermissionError) as error:  # a failing store stops the job instead
            return " ".join(str(error).split())

    waiting: deque[tuple[Source, Future[Ingested | str]]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for source in sources:
            waiting.append((source, pool.submit(take, source)))
            if len(waiting) > 2 * READERS:
                first, image = waiting.popleft()
                yield first, image.result()
        for first, image in waiting:
            yield first, image.result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class _File:
    """The rows of a file, encoded as they come: a row group at a time is held twice."""

    part: Part = field(
        default_factory=lambda: {"file": None, "end": False, "skipped": [], "transcoded": Counter(), "top_label": -1}
    )
    size: int = 0
    num_rows: int = 0

    def __post_init__(self) -> None:
        self._out, self._pending = io.BytesIO(), []  # type: ignore[var-annotated]
        self._writer = pq.ParquetWriter(self._out, SCHEMA, compression="none", use_dictionary=False)

    def add(self, source: Source, image: Ingested | str) -> None:
        if isinstance(image, str):
            self.part["skipped"].append({"id": source.id, "reason": image})
            return
        self.part["top_label"] = max(self.part["top_label"], source.label)
        if image.why:
            self.part["transcoded"][image.why] += 1
        row = (source.id, source.label, image.width, image.height, image.jpeg)
        self._pending.append(dict(zip(SCHEMA.names, row, strict=True)))
        self.size += len(image.jpeg)
        self.num_rows += 1
        if len(self._pending) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA), row_group_size=GROUP_ROWS)
        self._pending.clear()

    def write(self, dest: Storage, name: str) -> dict[str, Any]:
        """Write the file; what the manifest says of it."""
        if self._pending:
            self._flush()
        self._writer.close()
        content = self._out.getvalue()
        dest.write(name, content)
        return {"name": name, "num_rows": self.num_rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
