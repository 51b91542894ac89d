"""Making shards: chunks of images become Parquet files, each by one worker, and the manifest comes last.

Every finished file leaves a note in `parts/`, so that a killed job goes on after it. What a chunk holds, and with it the name
and the content of every file, is a matter of the source alone: not of the number of workers, nor of who was quicker.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from swav_ray.data.chunk_task import Part, Task, Tell
from swav_ray.data.chunks import Chunk
from swav_ray.data.ingest import Change
from swav_ray.data.shards import MANIFEST, Manifest, read_manifest
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

FILE_BYTES = 128 * 2**20
# A process with its threads ingests 60 MB/s a core, but for what holds Python's lock. Ray takes 10 s to start here, and
# 5 s to start workers on a cluster: from these bytes of a source on it is quicker.
CLUSTER_PAYS_BYTES, RAY_PAYS_BYTES, RAY_PAYS_CORES = 2**30, 2**33, 8


Run = Callable[[Iterable[Task], Tell], Iterator[list[Part]]]


def here(tasks: Iterable[Task], tell: Tell) -> Iterator[list[Part]]:
    """One chunk after the other, in this process, on all its cores."""
    for task in tasks:
        yield replace(task, cores=os.cpu_count() or 1).run(tell)


def on_ray(tasks: Iterable[Task], tell: Tell) -> Iterator[list[Part]]:
    """Each chunk in a task of the cluster that this process is connected to; notes come as they are finished."""
    import ray
    from ray.exceptions import RayTaskError

    remote = ray.remote(num_cpus=1)(Task.run)
    waiting, flying = iter(tasks), set()  # type: ignore[var-annotated]
    while True:
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 0)))  # asked every time: a cluster grows, maybe from nothing
        flying |= {remote.remote(task) for task in itertools.islice(waiting, max(0, most - len(flying)))}
        if not flying:
            return
        for ready in ray.wait(list(flying))[0]:
            flying.remove(ready)
            try:
                parts = ray.get(ready)
            except RayTaskError as error:
                raise error.cause from None  # a user's mistake stays one
            tell(sum(part["file"]["num_rows"] for part in parts if part["file"]) + sum(len(part["skipped"]) for part in parts))
            yield parts


def pays_on_ray(chunks: Sequence[Chunk]) -> bool:
    """Whether tasks of Ray make these shards sooner than this process, their start included."""
    size = sum(chunk.size for chunk in chunks)
    if os.environ.get("RAY_ADDRESS"):
        return len(chunks) > 1 and size >= CLUSTER_PAYS_BYTES
    return size >= RAY_PAYS_BYTES and (os.cpu_count() or 1) >= RAY_PAYS_CORES


def source_digest(chunks: Iterable[Chunk], classes: Sequence[str], change: Change) -> str:
    """Names what a job makes, so that a finished or interrupted one is only continued from the same source and options."""
    digest = hashlib.sha256(json.dumps([list(classes), change.named()]).encode())
    for chunk in chunks:
        digest.update(chunk.signature().encode())
    return digest.hexdigest()


def write_shards(
    chunks: Sequence[Chunk],
    classes: Sequence[str],
    dest: Storage,
    *,
    change: Change | None = None,
    run: Run = here,
    tell: Tell | None = None,
) -> Manifest:
    """Put images into shards. Killed, it goes on after the finished files; the manifest comes last.

    Args:
        chunks: in the order that gives each row its place.
        classes: names of the labels; without any they are named by their numbers.
        dest: folder of the shards.
        change: what is changed in all pictures.
        run: :func:`here` or :func:`on_ray`.
        tell: called with the number of images done since the last call; at first with those of an earlier job.

    Raises:
        UserError: the destination holds shards of another source or other options, or no image can be read.
    """
    change, tell = change or Change(), tell or (lambda _: None)
    manifest = Manifest(classes=list(classes), source=source_digest(chunks, classes, change), changed=change.named())
    other = "of another source, or made with other options; choose an empty folder or delete it"
    if dest.exists(MANIFEST):
        existing = read_manifest(dest)
        if existing.source != manifest.source:
            raise UserError(f"{dest.uri}: already holds shards {other}")
        return existing
    parts: dict[int, list[Part]] = {index: [] for index in range(len(chunks))}
    for name in dest.list("parts"):
        part = json.loads(dest.read(f"parts/{name}"))
        if part["source"] != manifest.source:
            raise UserError(f"{dest.uri}: holds unfinished shards {other}")
        parts[part["chunk"]].append(part)
    tell(sum(before[-1]["done"] for before in parts.values() if before))
    tasks = [
        Task(index, chunk, dest, manifest.source, change, FILE_BYTES, before[-1]["done"] if before else 0, len(before))
        for (index, before), chunk in zip(parts.items(), chunks, strict=True)
        if not before or not before[-1]["end"]
    ]
    for new in run(tasks, tell):
        parts[new[0]["chunk"]] += new
    _sum_up(manifest, [part for index in range(len(chunks)) for part in parts[index]])
    dest.write(MANIFEST, manifest.to_json())
    dest.delete("parts")
    return manifest


def _sum_up(manifest: Manifest, parts: Sequence[Part]) -> None:
    """Fill a manifest with what the notes say.

    Raises:
        UserError: no image could be read.
    """
    why: Counter[str] = Counter()
    for part in parts:
        manifest.files += [part["file"]] if part["file"] else []
        manifest.skipped += part["skipped"]
        why.update(part["transcoded"])
    manifest.num_rows = sum(file["num_rows"] for file in manifest.files)
    manifest.transcoded, manifest.transcoded_why = why.total(), dict(sorted(why.items()))
    if manifest.num_rows == 0:
        first = f"; the first is {manifest.skipped[0]['id']}: {manifest.skipped[0]['reason']}" if manifest.skipped else ""
        raise UserError(f"none of {len(manifest.skipped)} images is readable{first}")
    if not manifest.classes:
        manifest.classes = [str(label) for label in range(max(part["top_label"] for part in parts) + 1)]
