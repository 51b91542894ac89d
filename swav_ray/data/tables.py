"""Images in a column of Parquet files: bytes, or a struct with a field `bytes` as the Hugging Face hub has them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swav_ray.data.chunks import Source
from swav_ray.data.decode import BadImageError
from swav_ray.data.labels import Labels, entry_of, named_by
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError

BATCH_ROWS = 64
LABELS = ("label", "labels", "cls")  # columns taken for labels if none is named


@dataclass(frozen=True)
class Piece:
    """Row groups ``first`` to ``end`` of a file, whose first row is the file's ``row``-th."""

    name: str
    first: int
    end: int
    row: int


@dataclass(frozen=True)
class TableRows:
    """A chunk of rows of Parquet files, at most a row group of them read at a time."""

    root: Storage
    pieces: tuple[Piece, ...]
    size: int
    count: int
    labels: Labels
    image: str
    label: str  # empty: none

    def signature(self) -> str:
        pieces = [(piece.name, piece.first, piece.end, piece.row) for piece in self.pieces]
        return json.dumps([pieces, self.size, self.count, self.image, self.label])

    def __iter__(self) -> Iterator[Source]:
        columns = [self.image, *([self.label] if self.label else [])]
        for piece in self.pieces:
            place, row = f"{self.root.uri}/{piece.name}", piece.row
            file, groups = open_table(self.root, piece.name), list(range(piece.first, piece.end))
            batches = iter(file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns))
            while (batch := _next(batches, place)) is not None:
                images = batch.column(self.image).to_pylist()
                labels = batch.column(self.label).to_pylist() if self.label else [None] * len(images)
                for image, label in zip(images, labels, strict=True):
                    number = self.labels.number(label, f"{place}, row {row}")
                    yield Source(f"{piece.name}/{row}", number, functools.partial(_bytes, image))
                    row += 1


def _bytes(cell: Any) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        raise BadImageError("no image in this row")
    return bytes(content)


def _next(batches: Iterator[pa.RecordBatch], place: str) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except StorageAwayError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _broken(place, error) from None


def _broken(place: str, error: Exception) -> UserError:
    return UserError(
        f"{place}: no readable Parquet file ({' '.join(str(error).split())[:120]}); fetch it again or leave it out"
    )


def open_table(root: Storage, name: str) -> pq.ParquetFile:
    """A Parquet file, its footer read.

    Raises:
        UserError: it is none.
    """
    try:
        return pq.ParquetFile(root.path(name), filesystem=root.arrow, pre_buffer=root.is_s3)
    except StorageAwayError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _broken(f"{root.uri}/{name}", error) from None


def _footer(root: Storage, name: str) -> pq.FileMetaData:
    with open_table(root, name) as file:
        return file.metadata


def _words(root: Storage, name: str, column: str) -> list[Any]:
    with open_table(root, name) as file:
        return list(file.read([column]).column(0).unique().to_pylist())


def table_chunks(
    root: Storage, names: Mapping[str, int], chunk_bytes: int, labels: Labels, image: str = "", label: str = ""
) -> tuple[list[TableRows], Labels]:
    """The row groups of Parquet files in chunks of about ``chunk_bytes``, and the names of their labels.

    Args:
        root: folder of the files.
        names: of the files.
        labels: names given by the user; without any, those the files carry are taken, then the words that they use.
        image, label: columns; empty: the only one of bytes, and one named label, if it is there.

    Raises:
        UserError: no Parquet file, or no such column.
    """
    ordered = sorted(names)
    with ThreadPoolExecutor(16) as threads:  # footers: two requests each on S3
        footers = list(threads.map(functools.partial(_footer, root), ordered))
    schema, place = footers[0].schema.to_arrow_schema(), f"{root.uri}/{ordered[0]}"
    image = image or _only_image(schema, place)
    label = entry_of({name: name for name in schema.names}, label, LABELS, place) or ""
    for name, footer in zip(ordered, footers, strict=True):
        columns = {column: column for column in footer.schema.to_arrow_schema().names}
        for column in filter(None, (image, label)):
            entry_of(columns, column, (), f"{root.uri}/{name}")
    if label and not labels.classes:
        labels = _carried(schema, label)
        if not labels.classes and _is_text(schema.field(label).type):
            labels = named_by(word for name in ordered for word in _words(root, name, label))
    chunks: list[TableRows] = []
    pieces: list[Piece] = []
    size = count = 0
    for name, footer in zip(ordered, footers, strict=True):
        row = first = at = 0
        for group in range(footer.num_row_groups):
            meta = footer.row_group(group)
            size, count, at = size + meta.total_byte_size, count + meta.num_rows, at + meta.num_rows
            if size >= chunk_bytes:
                chunks.append(TableRows(root, (*pieces, Piece(name, first, group + 1, row)), size, count, labels, image, label))
                pieces, size, count, first, row = [], 0, 0, group + 1, at
        if first < footer.num_row_groups:
            pieces.append(Piece(name, first, footer.num_row_groups, row))
    if count:
        chunks.append(TableRows(root, tuple(pieces), size, count, labels, image, label))
    return chunks, labels


def _only_image(schema: pa.Schema, place: str) -> str:
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    if not holding:
        raise UserError(f"{place}: no column holds bytes of images; there are {', '.join(schema.names)}")
    if len(holding) > 1:
        raise UserError(f"{place}: columns {' and '.join(holding)} hold bytes; say which with --image COLUMN")
    return holding[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _carried(schema: pa.Schema, label: str) -> Labels:
    """The class names that a file from the Hugging Face hub carries in its schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return Labels(tuple(str(name) for name in features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return Labels()
