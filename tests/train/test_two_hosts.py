"""Two hosts, each with its own address and net: the doctor sees both, a run trains on both, and then on the one that is left
when the other is taken off the net without a word."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@contextmanager
def ray_on_two_hosts(folder: Path) -> Iterator[tuple[Hosts, dict[str, str]]]:
    """A head with two processors and a node with one, a slot each, and the environment of a driver on the head.

    What all print is in ``folder/out``.
    """
    ray_folder = Path("/tmp") / f"hosts-{os.getpid()}"  # short: socket paths end at 107 characters
    environment = {"PYTHONPATH": str(ROOT), TRACE: str(folder / "trace"), "RAY_AUTH_MODE": "disabled"}
    with Hosts() as hosts, (folder / "out").open("w") as output:
        head, port = hosts.addresses[0], _free_port()
        beginning = ("--head", "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false", *PORTS)
        hosts.start(0, *RAY, *beginning, "--node-ip-address", head, "--resources", '{"slot": 1}',
                    "--temp-dir", f"{ray_folder}/0", output=output, **environment)  # fmt: skip
        wait_for("head", lambda: said(folder).count("Ray runtime started") == 1, folder)
        hosts.start(1, *RAY, "--address", f"{head}:{port}", *PORTS, "--num-cpus", "1", "--node-ip-address", hosts.addresses[1],
                    "--resources", '{"slot": 1}', "--temp-dir", f"{ray_folder}/1", output=output, **environment)  # fmt: skip
        wait_for("node", lambda: said(folder).count("Ray runtime started") == 2, folder)
        yield hosts, environment | {"RAY_ADDRESS": f"{head}:{port}", "RAY_TMPDIR": f"{ray_folder}/0"}
    shutil.rmtree(ray_folder, ignore_errors=True)


def said(folder: Path) -> str:
    return (folder / "out").read_text()


def wait_for(what: str, condition: Callable[[], Any], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"no {what}: {said(folder)[-3000:]}"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def test_the_doctor_goes_over_the_network_that_training_takes(tmp_path: Path) -> None:
    """The name of a host leads to its loopback, as Debian's 127.0.1.1 does: by itself gloo would take that one."""
    with ray_on_two_hosts(tmp_path) as (hosts, environment), (tmp_path / "report").open("w") as output:
        command = (sys.executable, "-m", "swav_ray", "doctor", "--cluster", "--json")
        hosts.start(0, *command, output=output, **environment).wait(SECONDS)
    report = (tmp_path / "report").read_text()
    found = {check["name"]: check for check in json.loads(report[report.index("{") :])["checks"]}
    assert found["gloo"]["state"] == "ok" and "an all-reduce over 2 nodes" in found["gloo"]["found"], found["gloo"]["found"]


def test_two_hosts_train_together_and_one_goes_on_alone(tmp_path: Path) -> None:
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

    def workers(count: int) -> list[int]:
        return [row["workers"] for row in read_metrics(run) if "loss" in row][-count:]

    with ray_on_two_hosts(tmp_path) as (hosts, environment), (tmp_path / "out").open("a") as output:
        command = (sys.executable, "-m", "swav_ray", "pretrain", str(tmp_path / "hosts.yaml"))
        driver = hosts.start(0, *command, output=output, **environment)
        wait_for("steps on both hosts", lambda: workers(5) == [2] * 5, tmp_path)
        cut_at = time.time()
        hosts.cut()
        wait_for("steps on one host", lambda: workers(3) == [1] * 3, tmp_path)
        print(f"alone {time.time() - cut_at:.0f} s after the cut")
        assert driver.wait(SECONDS) == 0, said(tmp_path)[-3000:]
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
