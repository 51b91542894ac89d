"""Shards with a fault planted in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def copied(shards: str, dest: Path) -> Path:
    shutil.copytree(shards, dest)
    return dest


def rewritten(shards: str, dest: Path, change: Callable[[list[dict[str, Any]]], None], group_rows: int = 64) -> Path:
    """A copy whose rows went through ``change``, with sizes and checksums that fit."""
    copied(shards, dest)
    manifest = json.loads((dest / "manifest.json").read_text())
    for file in manifest["files"]:
        path = dest / file["name"]
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, compression="none", row_group_size=group_rows)
        content = path.read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (dest / "manifest.json").write_text(json.dumps(manifest))
    return dest
