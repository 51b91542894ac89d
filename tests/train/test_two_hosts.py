"""A run over two hosts, each with its own address and net; then one of them is taken off the net without a word."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.hosts import Hosts, why_not
from benchmarks.traced import TRACE
from swav_ray.data.storage import Storage
from swav_ray.train.events import read_events
from swav_ray.train.metrics import read_metrics
from tests.train.small import ROWS, small_config, small_shards

ROOT = Path(__file__).parents[2]
SECONDS = 180.0
EPOCHS = 12
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
PORTS = ("--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(2**27))


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_two_hosts_train_together_and_one_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_folder = Path("/tmp") / f"hosts-{os.getpid()}"  # short: socket paths end at 107 characters
    request.addfinalizer(lambda: shutil.rmtree(ray_folder, ignore_errors=True))
    settings = {
        "backbone.arch": "benchmarks.traced:backbone",
        "data.crop_in": "worker",
        "epochs": EPOCHS,
        "elastic.min": 1,
        "elastic.max": 2,
        "elastic.resources": {"slot": 1},
        "elastic.cooldown_seconds": 0.5,
        "elastic.silent_seconds": 10,
        "elastic.stuck_seconds": 60,
    }
    config = small_config(small_shards(str(tmp_path / "shards")), str(tmp_path / "runs"), "hosts", **settings)
    (tmp_path / "hosts.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = Storage(config.storage) / "hosts"
    environment = {"PYTHONPATH": str(ROOT), TRACE: str(tmp_path / "trace"), "RAY_AUTH_MODE": "disabled"}

    def workers(count: int) -> list[int]:
        return [row["workers"] for row in read_metrics(run) if "loss" in row][-count:]

    with Hosts() as hosts, (tmp_path / "out").open("w") as output:
        head, port = hosts.addresses[0], _free_port()

        def wait_for(what: str, condition: Callable[[], Any]) -> None:
            deadline = time.monotonic() + SECONDS
            while not condition():
                said = (tmp_path / "out").read_text()[-3000:]
                assert time.monotonic() < deadline, f"no {what}: {read_events(run)} {said}"
                time.sleep(0.1)

        beginning = ("--head", "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false", *PORTS)
        hosts.start(0, *RAY, *beginning, "--node-ip-address", head, "--resources", '{"slot": 1}',
                    "--temp-dir", f"{ray_folder}/0", output=output, **environment)  # fmt: skip
        wait_for("head", lambda: "Ray runtime started" in (tmp_path / "out").read_text())
        hosts.start(1, *RAY, "--address", f"{head}:{port}", *PORTS, "--num-cpus", "1", "--node-ip-address", hosts.addresses[1],
                    "--resources", '{"slot": 1}', "--temp-dir", f"{ray_folder}/1", output=output, **environment)  # fmt: skip
        driver = hosts.start(0, sys.executable, "-m", "swav_ray", "pretrain", str(tmp_path / "hosts.yaml"), output=output,
                             RAY_ADDRESS=f"{head}:{port}", RAY_TMPDIR=f"{ray_folder}/0", **environment)  # fmt: skip
        wait_for("steps on both hosts", lambda: workers(5) == [2] * 5)
        cut_at = time.time()
        hosts.cut()
        wait_for("steps on one host", lambda: workers(3) == [1] * 3)
        print(f"alone {time.time() - cut_at:.0f} s after the cut")
        assert driver.wait(SECONDS) == 0, (tmp_path / "out").read_text()[-3000:]
    rows = [row for row in read_metrics(run) if "loss" in row]
    for epoch in range(EPOCHS):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    assert {row["workers"] for row in rows} == {1, 2}
    assert [event["event"] for event in read_events(run)].count("lost") >= 1


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
