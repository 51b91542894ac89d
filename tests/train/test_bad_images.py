"""Images that went bad after they were put into shards: skipped, counted, listed; too many of them stop the run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_ray.config import Config
from swav_ray.data.shards import GROUP_ROWS, SCHEMA, Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train import metrics
from swav_ray.train.metrics import BAD_IMAGES, MetricsLog, read_metrics
from tests.gloo import run_ranks
from tests.train.small import STEPS, small_config, small_shards, train_here

BAD = 20  # of 330


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Real shards of which every 16th picture or so is cut short."""
    folder = Storage(small_shards(str(tmp_path_factory.mktemp("shards"))))
    (file,) = Shards(folder.uri).manifest.files
    rows = pq.read_table(io.BytesIO(folder.read(file["name"]))).to_pylist()
    for row in rows[:: len(rows) // BAD][:BAD]:
        row["jpeg"] = row["jpeg"][:150]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out, row_group_size=GROUP_ROWS, compression="none")
    folder.write(file["name"], out.getvalue())
    return folder


def bad_ids(shards: Storage) -> set[str]:
    (file,) = Shards(shards.uri).manifest.files
    rows = pq.read_table(io.BytesIO(shards.read(file["name"]))).to_pylist()
    return {row["id"] for row in rows if len(row["jpeg"]) == 150}


def run_of(config: Config) -> Storage:
    return Storage(config.storage) / config.name


def test_each_is_counted_every_epoch_and_listed_once(shards: Storage, tmp_path: Path) -> None:
    config = small_config(shards.uri, str(tmp_path), "run", **{"data.max_bad_fraction": 0.1})
    rows = train_here(config)
    assert len(rows) == STEPS, "no batch was lost"
    assert [row["bad_images"] for row in rows if row["step"] in (9, 18)] == [BAD, BAD]
    listed = read_metrics(run_of(config), BAD_IMAGES)
    assert len(listed) == BAD and {image["id"] for image in listed} == bad_ids(shards)
    assert {image["reason"] for image in listed} == {"Truncated File Read"}
    by_step = {row["step"]: row["ids"] for row in rows}
    assert all(image["epoch"] == 0 and image["id"] in by_step[image["step"]] for image in listed)


def test_the_run_that_stops_names_the_first_and_the_list(shards: Storage, tmp_path: Path) -> None:
    config = small_config(shards.uri, str(tmp_path), "run")
    with pytest.raises(UserError) as caught:
        train_here(config)
    message = str(caught.value)
    listed = read_metrics(run_of(config), BAD_IMAGES)
    assert f"{len(listed)} unreadable images in epoch 0, more than data.max_bad_fraction 0.01 allows" in message
    assert f"({listed[0]['id']}: {listed[0]['reason']}; {listed[1]['id']}: " in message
    assert f"all in {tmp_path}/run/bad_images.jsonl); mend the shards or raise it" in message
    assert len(listed) > 3.3


def test_a_run_on_s3_leaves_its_list_there(shards: Storage, s3: str) -> None:
    config = small_config(shards.uri, f"{s3}/bad", "run")
    with pytest.raises(UserError, match=r"more than data\.max_bad_fraction"):
        train_here(config)
    assert 3.3 < len(read_metrics(run_of(config), BAD_IMAGES)) <= BAD


@pytest.mark.parametrize("killed", [4, 6, 9, 12])
def test_a_run_that_goes_on_counts_and_lists_what_came_before(shards: Storage, tmp_path: Path, killed: int) -> None:
    """It stops at steps that are saved and such that are not, and after an epoch."""
    whole = small_config(shards.uri, str(tmp_path), "whole", **{"data.max_bad_fraction": 0.1})
    config = small_config(shards.uri, str(tmp_path), "run", **{"data.max_bad_fraction": 0.1})
    expected, listed = train_here(whole), read_metrics(run_of(whole), BAD_IMAGES)
    train_here(config, steps=killed)
    path = Path(run_of(config).root) / BAD_IMAGES
    path.write_bytes(path.read_bytes() + b'{"id": "torn')
    rows = train_here(config)
    counts = [(row["step"], row["bad_images"]) for row in expected if row["step"] in (9, 18)]
    assert [(row["step"], row["bad_images"]) for row in rows if row["step"] in (9, 18)] == counts
    assert read_metrics(run_of(config), BAD_IMAGES) == listed


def of_a_rank(rank: int, shards: str, folder: str, limit: float) -> str:
    try:
        train_here(small_config(shards, folder, f"run-{limit}", **{"data.max_bad_fraction": limit}), rank=rank)
    except UserError as error:
        return str(error)
    return ""


def test_two_workers_list_what_each_met_and_stop_together(shards: Storage, tmp_path: Path) -> None:
    assert run_ranks(2, of_a_rank, shards.uri, str(tmp_path), 0.1) == ["", ""]
    lines = (tmp_path / "run-0.1" / BAD_IMAGES).read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == bad_ids(shards) and len(lines) == BAD
    first, second = run_ranks(2, of_a_rank, shards.uri, str(tmp_path), 0.01)
    assert first == second and "unreadable images in epoch 0" in first
    assert first.count("; ") == 4, "three are named"


def test_a_very_long_list_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LISTED_AT_MOST", 5)
    run = Storage(str(tmp_path))
    for _ in range(2):
        log = MetricsLog(run, 0)
        for number in range(8):
            log.list_bad([{"id": f"{number}", "reason": "r"}, {"id": f"{number}", "reason": "again"}])
        log.close()
        assert [image["id"] for image in read_metrics(run, BAD_IMAGES)] == list("01234")
