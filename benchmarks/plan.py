"""What an epoch's order costs at any size, and how well it mixes.

    python benchmarks/plan.py [--quick]

scale    The order over 1e9 rows, in a process of its own: made, its first block, and the block at 63 % of a later epoch.
         Beside it the whole stream over a manifest of so many rows, whose files hold 128 MB of 98 KB pictures each.
resume   A data set of ImageNet's length (1,281,167 rows in real shards, of pictures of a few bytes) taken up at 63 % of an
         epoch: row groups waited for until the first block is there, of the 16 of a window (the next window is read from then
         on), and the rows in them that the epoch has had before.
mixing   The windowed row-group shuffle against a full permutation, for some widths of the window. Rows lie as a folder of
         1,000 classes gives them, class by class ("sorted"), or in random order ("shuffled").
           classes   different ones in a batch of 256
           class     how often two rows of a batch are of one class, over how often they are in a full permutation
           file      ... of one file of the shards (1,310 rows)
           again     how often two rows that shared a batch share one in the next epoch, over the same
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from swav_ray.config import Config, build_config
from swav_ray.data.plan import Plan
from swav_ray.data.shards import GROUP_ROWS, SCHEMA, Manifest, Shards
from swav_ray.data.stream import Position, Stream

SEED = 31
IMAGENET, CLASSES = 1_281_167, 1000
FILE_ROWS = 1_310  # of 98 KB in 128 MB
PICTURE_MB = 98e3 / 1e6
WINDOW_GROUPS, BLOCK_ROWS, BATCH = 16, 16, 256  # the defaults of data.*, and a common global_batch_size
WIDTHS = (1, 4, 16, 64, 256, 1024)


def in_a_process(work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What ``work`` gives in a fresh process, with the largest memory it had there, in MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *args))


def _measured(work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    before = peak_mb()
    return work(*args) | {"before_mb": round(before), "peak_mb": round(peak_mb())}


def peak_mb() -> float:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Not getrusage: on Linux a process begins with its parent's figure.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def plan_of(rows: int) -> dict[str, Any]:
    start = time.perf_counter()
    plan = Plan(np.full(rows // GROUP_ROWS, GROUP_ROWS), seed=SEED, window_groups=WINDOW_GROUPS, block_rows=BLOCK_ROWS)
    made = time.perf_counter()
    next(plan.blocks(0))
    first = time.perf_counter()
    next(plan.blocks(3, plan.num_rows * 63 // 100))
    later = time.perf_counter()
    return {"rows": plan.num_rows, "made_s": made - start, "first_block_s": first - made, "at_63_percent_s": later - first}


def stream_of(folder: str) -> dict[str, Any]:
    """The stream from the manifest on, up to the groups of its first window; there is nothing to read behind them."""
    stream = Stream(config_of(folder))
    asked: list[Any] = []

    def read_windows(windows: Iterable[NDArray[np.int64]], columns: list[str]) -> Iterator[dict[str, list[Any]]]:
        for pairs in windows:
            asked.append(pairs)
            yield {"id": [f"{group}/{row}" for group, row in pairs], "jpeg": [b""] * len(pairs)}

    start = time.perf_counter()
    stream.shards.read_windows = read_windows  # type: ignore[method-assign, assignment]
    next(stream.read(next(stream.spans_from(Position(), 1))))
    return {"rows": stream.plan.num_rows, "first_block_s": time.perf_counter() - start, "windows_asked": len(asked)}


def config_of(folder: str) -> Config:
    data = {"train": folder, "window_groups": WINDOW_GROUPS, "block_rows": BLOCK_ROWS}
    return build_config({"epochs": 2, "global_batch_size": BATCH, "queue_length": 3840, "data": data}, "benchmark")


def write_manifest(folder: Path, rows: int) -> None:
    sizes = [FILE_ROWS] * (rows // FILE_ROWS) + [rows % FILE_ROWS] * bool(rows % FILE_ROWS)
    files = [
        {"name": f"part-{n:05d}.parquet", "num_rows": size, "bytes": 128 * 2**20 + n, "sha256": f"{n:064x}"}
        for n, size in enumerate(sizes)
    ]
    folder.mkdir()
    (folder / "manifest.json").write_bytes(Manifest(num_rows=rows, files=files).to_json())


def resume(folder: Path, rows: int) -> dict[str, Any]:
    write_manifest(folder, rows)
    first = 0
    for file in Shards(str(folder)).manifest.files:
        ids = range(first, first + file["num_rows"])
        columns = [[str(n) for n in ids], [0] * len(ids), [1] * len(ids), [1] * len(ids), [b"picture"] * len(ids)]
        table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
        pq.write_table(table, folder / file["name"], row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
        first += len(ids)
    counts, again, seconds = [], [], []
    for percent in (63, 31, 87):
        stream = Stream(config_of(str(folder)))
        step = stream.steps.per_epoch * percent // 100
        waited: list[int] = []
        real = stream.shards.read_windows

        def read_windows(windows: Any, columns: Any, real: Any = real, waited: list[int] = waited) -> Iterator[Any]:
            asked, again = itertools.tee(windows)
            for pairs, rows in zip(asked, real(again, columns), strict=True):
                waited.append(len(np.unique(pairs[:, 0])))
                yield rows

        stream.shards.read_windows = read_windows  # type: ignore[method-assign, assignment]
        start = time.perf_counter()
        position = Position(1, stream.steps.start(step))
        block = next(stream.read(next(stream.spans_from(position, 1))))
        seconds.append(time.perf_counter() - start)
        expected = next(stream.plan.blocks(1, position.row))[0]
        id_of_first = str(int(np.cumsum([0, *stream.plan.rows_per_group])[expected[0]]) + expected[1])
        assert block.ids[0] == id_of_first, "another row than the plan's"
        counts.append(sum(waited))
        window = next(stream.plan.windows(1, position.row)).pairs
        again.append(int(stream.plan.rows_per_group[np.unique(window[:, 0])].sum()) - len(window))
    return {
        "rows": rows,
        "groups": -(-rows // GROUP_ROWS),
        "groups_read": counts[0],
        "of_a_window": WINDOW_GROUPS,
        "first_block_s": seconds[0],
        "rows_read_again": again[0],
        "at_31_and_87_percent": [counts[1:], again[1:]],
    }


def mixing(rows: int) -> list[dict[str, Any]]:
    sizes = [FILE_ROWS] * (rows // FILE_ROWS) + [rows % FILE_ROWS] * bool(rows % FILE_ROWS)
    groups = np.concatenate([[GROUP_ROWS] * (s // GROUP_ROWS) + [s % GROUP_ROWS] * bool(s % GROUP_ROWS) for s in sizes])
    first_row = np.cumsum(groups) - groups
    file_of = np.repeat(np.arange(len(sizes)), sizes)
    classes = {"sorted": np.arange(rows) * CLASSES // rows}
    classes["shuffled"] = np.random.RandomState(SEED).permutation(classes["sorted"])

    def orders(width: int | None) -> list[NDArray[np.int64]]:
        if width is None:
            return [np.random.RandomState([SEED, epoch]).permutation(rows) for epoch in range(2)]
        plan = Plan(groups, seed=SEED, window_groups=width, block_rows=BLOCK_ROWS)
        pairs = [np.concatenate([window.pairs for window in plan.windows(epoch)]) for epoch in range(2)]
        return [first_row[p[:, 0]] + p[:, 1] for p in pairs]

    # For chance, what a full permutation gives on average; measuring it would take many.
    chance = {name: same_by_chance(values) for name, values in (*classes.items(), ("file", file_of))}
    found = []
    for width in (*WIDTHS, None):
        order, after = orders(width)
        again = np.empty(rows, dtype=np.int64)
        again[after] = np.arange(rows) // BATCH
        found.append(
            {
                "window_groups": width or "all rows",
                "window_mb": round(PICTURE_MB * (rows if width is None else width * GROUP_ROWS)),
                **{f"classes_{name}": round(distinct(values[order]), 1) for name, values in classes.items()},
                **{f"class_{name}": round(together(values[order]) / chance[name], 2) for name, values in classes.items()},
                "file": round(together(file_of[order]) / chance["file"], 2),
                "again": round(together(again[order]) / ((BATCH - 1) / (rows - 1)), 1),
            }
        )
    return found


def same_by_chance(values: NDArray[np.int64]) -> float:
    counts = np.bincount(values).astype(float)
    return float((counts * (counts - 1)).sum() / (len(values) * (len(values) - 1.0)))


def batches(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """``values`` of an epoch in order as (batches, BATCH), each sorted; a last short one is left out."""
    return np.sort(values[: len(values) // BATCH * BATCH].reshape(-1, BATCH), axis=1)


def distinct(values: NDArray[np.int64]) -> float:
    return float(1 + (np.diff(batches(values), axis=1) != 0).sum(axis=1).mean())


def together(values: NDArray[np.int64]) -> float:
    """Share of the pairs of rows of a batch that have the same value."""
    shares = []
    for row in batches(values):
        counts = np.unique(row, return_counts=True)[1]
        shares.append(float((counts * (counts - 1)).sum()) / (BATCH * (BATCH - 1)))
    return statistics.fmean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    quick = parser.parse_args().quick
    huge, length = (10**8, IMAGENET // 10) if quick else (10**9, IMAGENET)
    with tempfile.TemporaryDirectory() as folder:
        plan = in_a_process(plan_of, huge)
        print(f"plan over {plan['rows']:,} rows: {json.dumps(plan)}")
        write_manifest(Path(folder) / "huge", huge)
        stream = in_a_process(stream_of, str(Path(folder) / "huge"))
        print(f"stream over {stream['rows']:,} rows, its manifest read: {json.dumps(stream)}")
        taken_up = resume(Path(folder) / "imagenet", length)
        print(f"resume at 63 % of {length:,} rows: {json.dumps(taken_up)}")
    mixed = mixing(length)
    print("window  | MB    | classes: sorted | shuffled | class: sorted | shuffled | file  | again")
    for row in mixed:
        keys = ("window_groups", "window_mb", "classes_sorted", "classes_shuffled", "class_sorted", "class_shuffled")
        print(" | ".join(f"{row[key]!s:>8}" for key in (*keys, "file", "again")))
    seconds = plan["made_s"] + plan["first_block_s"]
    summary = {
        "plan_rows": plan["rows"],
        "plan_s": round(seconds, 2),
        "plan_peak_mb": plan["peak_mb"],
        "plan_at_63_percent_s": round(plan["at_63_percent_s"], 2),
        "stream_first_block_s": round(stream["first_block_s"], 2),
        "stream_peak_mb": stream["peak_mb"],
        "resume_groups_read": taken_up["groups_read"],
        "resume_window_groups": taken_up["of_a_window"],
        "resume_rows_read_again": taken_up["rows_read_again"],
        "resume_first_block_s": round(taken_up["first_block_s"], 3),
        "mixing": mixed,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
