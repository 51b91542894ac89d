"""Trackers get what metrics.jsonl has, a resumed run goes on in the same tracker run, and none can hurt a run."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train import trackers
from swav_ray.train.metrics import read_metrics
from swav_ray.train.trackers import Trackers, check_installed
from swav_ray.train.trainer import resolve
from tests.train.small import STEPS, small_config, small_shards, train_here


def needs(library: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_shards(str(tmp_path_factory.mktemp("shards")))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def told(rows: list[dict[str, Any]], key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in rows if key in row}


def wandb_records(run: Path) -> list[Any]:
    """All records of W&B's offline files: a LevelDB log of protocol buffers behind seven bytes of header."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        content, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, at)
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
    return found


@needs("mlflow")
def test_mlflow_holds_the_figures_of_a_run_and_of_its_second_life(shards: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    config = small_config(shards, str(tmp_path), "tracked", **{"trackers": ["mlflow"], "probe.every_epochs": 1})
    train_here(config, steps=6)
    first = json.loads((tmp_path / "tracked" / "trackers.json").read_text())
    train_here(config)
    assert json.loads((tmp_path / "tracked" / "trackers.json").read_text()) == first
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/tracked/mlflow.db")
    found = client.get_run(first["mlflow"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "tracked")
    assert found.data.params["num_prototypes"] == "20" and found.data.params["config_hash"] == config.hash()
    rows = read_metrics(Storage(str(tmp_path)) / "tracked")
    for key in ("loss", "lr", "probe/top1", "embedding_std"):
        history = {point.step: point.value for point in client.get_metric_history(first["mlflow"], key)}
        assert history == pytest.approx(told(rows, key)), key
    assert len(told(rows, "loss")) == STEPS and "time" not in found.data.metrics
    assert len(client.search_runs([found.info.experiment_id])) == 1


@needs("wandb")
def test_wandb_offline_holds_the_figures_of_a_run_and_of_its_second_life(shards: str, tmp_path: Path) -> None:
    config = small_config(shards, str(tmp_path), "tracked", **{"trackers": ["wandb"], "probe.every_epochs": 1})
    train_here(config, steps=6)
    train_here(config)
    records = wandb_records(tmp_path / "tracked")
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    identity = json.loads((tmp_path / "tracked" / "trackers.json").read_text())["wandb"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {(identity, "swav-ray", "tracked")}
    history: dict[int, dict[str, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            item = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.setdefault(int(item["_step"]), {}).update(item)
    rows = read_metrics(Storage(str(tmp_path)) / "tracked")
    for key in ("loss", "lr", "probe/top1", "embedding_std"):
        assert {step: row[key] for step, row in history.items() if key in row} == pytest.approx(told(rows, key)), key
    ends = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert ends == [0, 0]


@needs("mlflow")
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    rows = train_here(small_config(shards, str(tmp_path), "alone", trackers=["mlflow"]))
    assert len(rows) == STEPS
    said = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
    assert len(said) == 1 and said[0].startswith("trackers: mlflow is told no more: ")


class _Odd:
    """A tracker that does as its switches say, of a class that stands in for a library's."""

    held = threading.Event()
    rows: ClassVar[list[dict[str, Any]]] = []
    how = ""

    def open(self, config: Any, identity: str | None, folder: Path | None) -> str:
        return "odd"

    def tell(self, rows: list[dict[str, Any]]) -> None:
        if self.how == "hangs":
            self.held.wait(60)
        if self.how == "exits":
            raise SystemExit(3)
        self.rows.extend(rows)

    def close(self, failed: bool) -> None:
        self.rows.append({"failed": failed})


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Odd]]:
    monkeypatch.setitem(trackers.KINDS, "mlflow", _Odd)
    _Odd.held, _Odd.rows, _Odd.how = threading.Event(), [], ""
    yield _Odd
    _Odd.held.set()


def test_only_plain_numbers_are_told_in_order(odd: type[_Odd], shards: str, tmp_path: Path) -> None:
    config = small_config(shards, str(tmp_path), "odd", trackers=["mlflow"])
    told_to = Trackers(config, Storage(str(tmp_path)) / "odd")
    for step in range(200):
        told_to.write({"step": step, "loss": step / 7, "verdict": "healthy", "ids": ["a"], "advice": None, "time": 1.5})
    told_to.close(failed=True)
    assert odd.rows == [*({"step": step, "loss": step / 7} for step in range(200)), {"failed": True}]


@pytest.mark.parametrize(("how", "why"), [("hangs", "took more than 0 s"), ("exits", "SystemExit: 3")])
def test_one_that_hangs_or_exits_holds_up_nothing(
    odd: type[_Odd], how: str, why: str, shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd.how = how
    told_to = Trackers(small_config(shards, str(tmp_path), "odd", trackers=["mlflow"]), Storage(str(tmp_path)) / "odd")
    told_to.write({"step": 1, "loss": 1.0})
    if how == "exits":
        told_to._threads[0].join(60)
    told_to.close(seconds=0.2)
    told_to.write({"step": 2, "loss": 1.0})
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and why in said[0]


def test_one_that_lags_is_left(
    odd: type[_Odd], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 5)
    odd.how = "hangs"
    told_to = Trackers(small_config(shards, str(tmp_path), "odd", trackers=["mlflow"]), Storage(str(tmp_path)) / "odd")
    for step in range(100):
        told_to.write({"step": step})
    assert [record.getMessage() for record in caplog.records].count(
        "trackers: mlflow is told no more: it is 10,000 rows behind; metrics.jsonl has everything".replace("10,000", "5")
    ) == 1


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_one_line_before_anything_starts(
    library: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as Python sees what is not there
    config = small_config(shards, str(tmp_path), "none", trackers=[library])
    with pytest.raises(UserError, match=rf"^trackers: {library} is not installed; pip install 'swav-ray\[{library}\]'"):
        resolve(config)


def test_a_folder_of_that_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    config = small_config("x", str(tmp_path), "none", trackers=["wandb"])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="wandb is not installed"):
        check_installed(config)


def test_where_a_file_would_not_last_an_address_is_asked_for() -> None:
    for kind in (trackers._Wandb, trackers._MLflow):
        if importlib.util.find_spec("wandb" if kind is trackers._Wandb else "mlflow") is None:
            continue
        with pytest.raises(UserError, match="must name a place that lasts"):
            kind().open(small_config("x", "s3://bucket/runs", "x"), None, None)
