"""Shards before a run reads them: the manifest, files, checksums, row groups, a sample of rows, labels, and the fit with the
configuration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from swav_ray.config import Config
from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.shards import GROUP_ROWS, MANIFEST, Manifest, Shards
from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.doctor import on_store
from swav_ray.doctor.check import Check, by_node, failure, listed, ok, size, skipped, warning
from swav_ray.doctor.nodes import Nodes, answered, unanswered
from swav_ray.errors import UserError

SAMPLED_GROUPS = 4  # of 64 rows, evenly spread
CHECKED_BYTES = 300_000_000  # of files whose checksums are verified: two or three
SURE = 0.01  # how unlikely a sample must be before it says that the data set is worse than allowed
AGAIN = "make the shards again (`swav-ray shard SRC DEST --check` verifies all of them)"


def check_data(nodes: Nodes, uri: str, config: Config | None) -> list[Check]:
    """Everything about a data set; the first grave finding ends it."""
    uri = absolute_uri(uri)
    manifest = check_manifest(nodes, uri)
    if manifest.mend:
        return [manifest]
    try:
        shards = Shards(uri)
        files = check_files(shards)
        if files.mend:
            return [manifest, files]
        return [manifest, files, *_rows(shards, config), *check_fit(shards.num_rows, config)]
    except UserError as error:
        return [manifest, failure("data files", str(error), AGAIN)]
    except Exception as error:  # such as botocore's: the nodes read it, this process does not
        who = "this process the nodes' keys or role" if Storage(uri).is_s3 else "this user the right to read it"
        return [manifest, failure("data files", f"{uri}: cannot be read from here: {on_store.short(error)}", f"give {who}")]


def check_manifest(nodes: Nodes, uri: str) -> Check:
    """Whether every node reads it, and how fast."""
    answers = nodes.ask(on_store.readable, uri, MANIFEST)
    found = answered(answers)
    errors = unanswered(answers) | {node: answer["error"] for node, answer in found.items() if "error" in answer}
    missing = {node: f"no {MANIFEST} in {uri}" for node, answer in found.items() if "missing" in answer}
    if missing and len(missing) == len(answers):
        return failure("data", f"{uri}: no {MANIFEST} there, so no finished shards", f"swav-ray shard SRC {uri}")
    if missing:
        mend = "all nodes must see the data: s3://BUCKET/FOLDER, or a shared folder"
        return failure("data", by_node(missing | errors), mend)
    if errors:
        mend = (
            "allow s3:GetObject and s3:ListBucket on it to the keys or role of the nodes"
            if Storage(uri).is_s3
            else ("give the user of the nodes the right to read it")
        )
        return failure("data", f"{uri}: {by_node(errors)}", mend)
    slowest = max(answer["seconds"] for answer in found.values())
    return ok("data", f"{uri}: its manifest is read in {slowest * 1e3:.3g} ms")


def check_files(shards: Shards) -> Check:
    """Every file is there with its size; of some the checksum and the row groups."""
    folder, manifest = shards.folder, shards.manifest
    there = folder.find()
    wrong = [f"{name} {why}" for name, why in _differing(manifest, there)]
    if not wrong:
        checked = list(_some_files(manifest))
        wrong = [f"{file} {why}" for file in checked if (why := _damage(folder, manifest, file))]
    if wrong:
        return failure("data files", f"{folder.uri}: {listed(wrong)}", AGAIN)
    total = size(sum(file["bytes"] for file in manifest.files))
    return ok(
        "data files",
        f"{manifest.num_rows:,} rows in {len(manifest.files)} files, {total}; checksums of {len(checked)} verified",
    )


def _differing(manifest: Manifest, there: dict[str, int]) -> Iterator[tuple[str, str]]:
    for file in manifest.files:
        if file["name"] not in there:
            yield file["name"], "is in the manifest but not there"
        elif there[file["name"]] != file["bytes"]:
            yield file["name"], f"has {there[file['name']]} bytes, the manifest says {file['bytes']}"
    rows = sum(file["num_rows"] for file in manifest.files)
    if rows != manifest.num_rows:
        yield MANIFEST, f"says {manifest.num_rows} rows, its files have {rows}"


def _some_files(manifest: Manifest) -> Iterator[str]:
    """Files spread over the data set, at least one, up to so many bytes."""
    total = 0
    step = max(1, len(manifest.files) // 8)
    for file in manifest.files[::step]:
        if total and total + file["bytes"] > CHECKED_BYTES:
            return
        total += file["bytes"]
        yield file["name"]


def _damage(folder: Storage, manifest: Manifest, name: str) -> str:
    file = next(file for file in manifest.files if file["name"] == name)
    content = folder.read(name)
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        return "differs from its checksum"
    try:
        about = pq.read_metadata(pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError) as error:
        return f"is no Parquet file ({' '.join(str(error).split())[:80]})"
    groups = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
    if about.num_rows != file["num_rows"]:
        return f"has {about.num_rows} rows, the manifest says {file['num_rows']}"
    if any(rows != GROUP_ROWS for rows in groups[:-1]) or (groups and groups[-1] > GROUP_ROWS):
        return f"has row groups of {max(groups)} rows, not {GROUP_ROWS}"
    return ""


@dataclass(frozen=True)
class Sample:
    """Rows that were looked at."""

    rows: int
    bad: tuple[str, ...]  # ids and reasons
    unlabelled: int
    labels: frozenset[int]


def _rows(shards: Shards, config: Config | None) -> list[Check]:
    groups = len(shards.rows_per_group)
    chosen = sorted({round(i * (groups - 1) / max(1, SAMPLED_GROUPS - 1)) for i in range(SAMPLED_GROUPS)})
    bad, labels, rows = [], [], 0
    for group in chosen:
        table = shards.read_group(group, ["id", "label", "jpeg"])
        for identifier, label, jpeg in zip(*(column.to_pylist() for column in table.columns), strict=True):
            rows += 1
            labels.append(-1 if label is None else label)
            try:
                decode(jpeg or b"")
            except BadImageError as error:
                bad.append(f"{identifier} ({error})")
    sample = Sample(rows, tuple(bad), sum(label < 0 for label in labels), frozenset(labels))
    return [check_pictures(sample, config), check_labels(sample, len(shards.manifest.classes))]


def check_pictures(sample: Sample, config: Config | None) -> Check:
    """Whether the sample says that more is unreadable than `data.max_bad_fraction` allows, or only that something is."""
    if not sample.bad:
        return ok("pictures", f"{sample.rows} sampled, all decode")
    allowed = config.data.max_bad_fraction if config else Config.model_fields["data"].default.max_bad_fraction
    found = f"{len(sample.bad)} of {sample.rows} sampled do not decode: {listed(sample.bad)}"
    if _at_least(len(sample.bad), sample.rows, allowed) < SURE:
        return failure(
            "pictures",
            f"{found}; more than data.max_bad_fraction {allowed:g} stop a run",
            "mend the pictures and make the shards again, or allow more with --set data.max_bad_fraction=SHARE",
        )
    return warning(
        "pictures", found, "a run puts neighbours in their place and lists them in bad_images.jsonl; mend them if you can"
    )


def _at_least(count: int, rows: int, share: float) -> float:
    """The chance of so many bad ones or more in a sample, if that share of all is bad."""
    return 1.0 - sum(math.comb(rows, n) * share**n * (1 - share) ** (rows - n) for n in range(count))


def check_labels(sample: Sample, classes: int) -> Check:
    """Labels are needed by probes and sweeps, not by training."""
    labelled = sample.rows - sample.unlabelled
    mend = "shard a folder whose subfolders are the classes, or give --label; training itself needs none"
    if not labelled:
        return warning(
            "labels", f"none of {sample.rows} rows has one: a run trains, but probes score nothing and sweeps cannot rank", mend
        )
    beyond = sorted(label for label in sample.labels if label >= classes)
    if beyond and classes:
        return failure("labels", f"label {beyond[0]} where the manifest names {classes} classes", AGAIN)
    if sample.unlabelled:
        return warning("labels", f"{sample.unlabelled} of {sample.rows} sampled rows have none; probes leave them out", mend)
    distinct = len(sample.labels)
    if distinct < 2:
        return warning("labels", f"all {sample.rows} sampled rows have the same; probes need two classes", mend)
    return ok("labels", f"{distinct} of {classes} classes in {sample.rows} sampled rows")


def check_fit(rows: int, config: Config | None) -> list[Check]:
    """Whether there are enough rows for the batch and the queue."""
    if config is None:
        return []
    for key in ("global_batch_size", "queue_length"):
        wanted = getattr(config, key)
        if wanted > rows:
            return [failure("batch", f"{key} {wanted} is more than the {rows} rows of the data", f"--set {key}={rows} or less")]
    return [ok("batch", f"{-(-rows // config.global_batch_size):,} steps an epoch")]


def skip(why: str) -> list[Check]:
    return [skipped("data", why)]
