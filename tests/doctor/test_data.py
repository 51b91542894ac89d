"""The doctor on shards: whole ones pass, each planted fault is named with its mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swav_ray.config import Config, load_config
from swav_ray.doctor.check import State
from swav_ray.doctor.data import check_data
from swav_ray.doctor.nodes import Here
from tests.doctor.spoilt import copied, rewritten
from tests.train.small import ROWS, small_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


def states(place: object, config: Config | None = None) -> dict[str, tuple[State, str, str]]:
    return {check.name: (check.state, check.found, check.mend) for check in check_data(Here(), str(place), config)}


def test_whole_shards_pass(shards: str) -> None:
    found = states(shards, load_config("demo-digits"))
    assert {state for state, _, _ in found.values()} == {State.OK}
    assert list(found) == ["data", "data files", "pictures", "labels", "batch"]
    assert f"{ROWS} rows" in found["data files"][1] and "checksums of 1 verified" in found["data files"][1]


def test_no_manifest(tmp_path: Path) -> None:
    state, found, mend = states(tmp_path)["data"]
    assert state is State.FAILURE and "no manifest.json" in found and "swav-ray shard" in mend


def test_a_manifest_that_is_none(shards: str, tmp_path: Path) -> None:
    (copied(shards, tmp_path / "s") / "manifest.json").write_text("{")
    state, found, mend = states(tmp_path / "s")["data files"]
    assert state is State.FAILURE and "not valid JSON" in found and "again" in mend


def test_a_missing_file(shards: str, tmp_path: Path) -> None:
    place = copied(shards, tmp_path / "s")
    next(place.glob("*.parquet")).unlink()
    state, found, _ = states(place)["data files"]
    assert state is State.FAILURE and "is in the manifest but not there" in found


def test_a_file_cut_short(shards: str, tmp_path: Path) -> None:
    place = copied(shards, tmp_path / "s")
    file = next(place.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "bytes, the manifest says" in states(place)["data files"][1]


def test_a_flipped_byte(shards: str, tmp_path: Path) -> None:
    place = copied(shards, tmp_path / "s")
    file = next(place.glob("*.parquet"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    state, found, mend = states(place)["data files"]
    assert state is State.FAILURE and file.name in found and "differs from its checksum" in found and "--check" in mend


def test_other_row_groups(shards: str, tmp_path: Path) -> None:
    place = rewritten(shards, tmp_path / "s", lambda rows: None, group_rows=100)
    assert "row groups of 100 rows, not 64" in states(place)["data files"][1]


def test_rows_that_the_manifest_does_not_count(shards: str, tmp_path: Path) -> None:
    place = copied(shards, tmp_path / "s")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["num_rows"] += 1
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert f"says {ROWS + 1} rows, its files have {ROWS}" in states(place)["data files"][1]


def test_one_bad_picture_is_a_warning_many_are_a_failure(shards: str, tmp_path: Path) -> None:
    def spoil(count: int) -> Any:
        def change(rows: list[dict[str, Any]]) -> None:
            for row in rows[:count]:
                row["jpeg"] = b"no picture"

        return change

    one = states(rewritten(shards, tmp_path / "one", spoil(1)))["pictures"]
    assert one[0] is State.WARNING and "1 of" in one[1] and "bad_images.jsonl" in one[2]
    many = states(rewritten(shards, tmp_path / "many", spoil(20)))["pictures"]
    assert many[0] is State.FAILURE and "20 of" in many[1] and "data.max_bad_fraction" in many[2]
    allowed = load_config("demo-digits", {"data.max_bad_fraction": 0.5})
    assert states(tmp_path / "many", allowed)["pictures"][0] is State.WARNING


@pytest.mark.parametrize(
    ("label", "every", "state", "words"),
    [
        (-1, 1, State.WARNING, "none of"),
        (-1, 2, State.WARNING, "have none"),
        (10, 2, State.FAILURE, "label 10 where the manifest names 10 classes"),
        (3, 1, State.WARNING, "have the same"),
    ],
)
def test_labels(shards: str, tmp_path: Path, label: int, every: int, state: State, words: str) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows[::every]:
            row["label"] = label

    found = states(rewritten(shards, tmp_path / "s", change))["labels"]
    assert found[0] is state and words in found[1] and found[2]


def test_a_batch_larger_than_the_data(shards: str) -> None:
    config = load_config("demo-digits", {"global_batch_size": ROWS + 1, "queue_length": 0})
    state, found, mend = states(shards, config)["batch"]
    assert state is State.FAILURE and f"global_batch_size {ROWS + 1}" in found and f"--set global_batch_size={ROWS}" in mend


def test_shards_on_s3(shards: str, s3: str) -> None:
    from swav_ray.data.storage import Storage

    place = Storage(f"{s3}/doctor-data")
    for path in Path(shards).iterdir():
        if path.is_file():
            place.put(path, path.name)
    assert {state for state, _, _ in states(place.uri).values()} == {State.OK}
    place.delete("")


def test_shards_that_only_the_nodes_may_read(shards: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    from swav_ray.data.storage import Storage

    place = Storage(f"{s3}/doctor-data-of-nodes")
    for path in Path(shards).iterdir():
        if path.is_file():
            place.put(path, path.name)

    class WithKeys(Here):
        """A node with a role, whose asker has none."""

        def ask_each(self, *args: Any, **more: Any) -> Any:
            answers = super().ask_each(*args, **more)
            S3FileSystem.clear_instance_cache()  # which hold the keys they have found
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.delenv(name)
            return answers

    found = {check.name: check for check in check_data(WithKeys(), place.uri, None)}
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()
    place.delete("")
    assert found["data"].state is State.OK
    assert found["data files"].state is State.FAILURE and "cannot be read from here: NoCredentials" in found["data files"].found
    assert "this process the nodes' keys or role" in found["data files"].mend
