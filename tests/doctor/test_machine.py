"""`swav-ray doctor` on one machine: what it prints, its exit codes, and faults that need no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swav_ray.cli.app import app
from swav_ray.doctor import on_node
from swav_ray.doctor.check import State
from swav_ray.doctor.gpus import check_gpus, visible
from tests.commands import Ended, run_command

SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret-key-of-the-test", "RAY_AUTH_TOKEN": "token-of-the-test-0123456789abcdef"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def checks_of(ended: Ended) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(ended.out)["checks"]}


def test_a_healthy_machine_has_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: Any, digits: Any, tmp_path: Path) -> None:
    ended = run_command(
        monkeypatch,
        capsys,
        *("doctor", "--config", "demo-digits", "--data", digits.train, "--storage", str(tmp_path / "runs"), "--json"),
    )
    found = checks_of(ended)
    assert ended.code == 0, [check for check in found.values() if check["state"] == "failure"]
    assert json.loads(ended.out)["passed"]
    for name in (
        "python",
        "packages",
        "gpus",
        "byte code",
        "threads",
        "checkpoints",
        "storage",
        "data",
        "data files",
        "memory",
    ):
        assert found[name]["state"] == "ok", found[name]
    assert not any(check["mend"] for check in found.values() if check["state"] in ("ok", "skipped"))
    assert not (tmp_path / "runs").exists()


def test_what_is_not_asked_is_skipped_and_says_how_to_ask(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ended = run_command(monkeypatch, capsys, "doctor")
    assert ended.code == 0
    assert "skipped  data: not asked; give --data URI" in ended.out
    assert ended.out.splitlines()[-1].startswith("this machine: ") and "0 failures" in ended.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("recipe", "settings", "name", "words", "mend"),
    [
        ("imagenet-200ep", [], "data", "data.train is not set", "--set data.train=FOLDER"),
        ("demo-digits", ["--set", "trackers=[wandb]"], "trackers", "wandb is not installed", "pip install 'swav-ray[wandb]'"),
    ],
)
def test_what_a_run_is_refused_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, recipe: str, settings: list[str], name: str, words: str, mend: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]  # as Python sees what is not there
    ended = run_command(monkeypatch, capsys, "doctor", "--config", recipe, *settings, "--json")
    found = checks_of(ended)[name]
    assert ended.code == 1 and found["state"] == "failure" and words in found["found"] and mend in found["mend"]


def test_environment_faults(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "512")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    ended = run_command(monkeypatch, capsys, "doctor", "--json")
    found = checks_of(ended)
    assert ended.code == 1
    assert found["byte code"]["state"] == "warning" and "unset it" in found["byte code"]["mend"]
    assert found["threads"]["state"] == "warning" and "OMP_NUM_THREADS=512" in found["threads"]["found"]
    assert found["authentication"]["state"] == "failure" and "RAY_AUTH_TOKEN_PATH" in found["authentication"]["found"]


def test_few_open_files() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512));"
        "import sys; sys.argv = ['swav-ray', 'doctor', '--json']; from swav_ray.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["open files"]
    assert done.returncode == 1 and found["state"] == "failure"
    assert "512 open files" in found["found"] and "ulimit -n 65536" in found["mend"]


def says(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put an `nvidia-smi` of that shell script first."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use one here")
    says(monkeypatch, tmp_path, "echo 'NVIDIA A10G, 470.57.02, 23028'")
    ended = run_command(monkeypatch, capsys, "doctor", "--json")
    found = checks_of(ended)["gpus"]
    assert ended.code == 1 and found["state"] == "failure"
    assert "driver 470.57.02" in found["found"] and "pytorch.org" in found["mend"]


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    says(
        monkeypatch,
        tmp_path,
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
    )
    found = checks_of(run_command(monkeypatch, capsys, "doctor", "--json"))["gpus"]
    assert found["state"] == "failure" and "could not communicate" in found["found"] and "--gpus all" in found["mend"]


def test_a_driver_that_says_more_than_it_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """And a GPU without memory of its own: everything else is still found."""
    says(monkeypatch, tmp_path, "echo 'NVIDIA GB10, 580.1, [N/A]'; echo 'WARNING: infoROM is corrupted'")
    here = on_node.facts([], [])
    assert here["python"] and here["gpus"]["devices"] == [{"name": "NVIDIA GB10", "driver": "580.1", "memory": 0}]
    usable = {"a": here | {"gpus": here["gpus"] | {"usable": 1, "cuda": "13.0"}}}
    check = check_gpus(usable)
    assert check.state is State.WARNING and "nvidia-smi says: WARNING: infoROM is corrupted" in check.found
    says(monkeypatch, tmp_path, "echo 'WARNING: infoROM is corrupted'")
    found = checks_of(run_command(monkeypatch, capsys, "doctor", "--json"))
    assert found["python"]["state"] == "ok" and found["gpus"]["state"] == "failure" and "infoROM" in found["gpus"]["found"]


def test_the_driver_is_asked_once(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    says(monkeypatch, tmp_path, f"echo asked >> {tmp_path}/calls; echo 'NVIDIA A10G, 570.1, 23028'")
    run_command(monkeypatch, capsys, "doctor", "--config", "demo-digits", "--storage", str(tmp_path), "--json")
    assert (tmp_path / "calls").read_text() == "asked\n"


@pytest.mark.parametrize(("named", "count"), [("0,5", 2), ("", 0), ("-1", 0), ("0,1,2,3,4,5,6,7,8", 8), (None, 8)])
def test_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, named: str | None, count: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible(8) == count


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    says(monkeypatch, tmp_path, "for i in 1 2 3 4 5 6 7 8; do echo 'NVIDIA A10G, 570.1, 23028'; done")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    each = ("--config", "demo-digits", "--set", "elastic.gpus_per_worker=1", "--set", "elastic.cpus_per_worker=0.01")
    found = checks_of(run_command(monkeypatch, capsys, "doctor", *each, "--workers", "4", "--json"))["workers"]
    assert found["state"] == "failure" and "this process sees 1" in found["found"]


def test_a_disk_too_small_for_the_checkpoints(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    ended = run_command(
        monkeypatch,
        capsys,
        *("doctor", "--config", "imagenet-100ep", "--set", "checkpoint.keep_last=100000000"),
        *("--storage", str(tmp_path), "--json"),
    )
    found = checks_of(ended)["checkpoints"]
    assert ended.code == 1 and found["state"] == "failure"
    assert "100000001 checkpoints" in found["found"] and "checkpoint.keep_last" in found["mend"]


def test_a_batch_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ended = run_command(
        monkeypatch,
        capsys,
        *("doctor", "--config", "imagenet-100ep", "--set", "global_batch_size=1048576", "--workers", "1", "--json"),
    )
    found = checks_of(ended)["memory"]
    assert ended.code == 1 and found["state"] == "failure"
    assert "1048576 rows x 8 crops of resnet50" in found["found"] and "--set elastic.max_rows_per_device=" in found["mend"]


def test_more_workers_than_the_machine_has_cpus(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found = checks_of(run_command(monkeypatch, capsys, "doctor", "--workers", "4000", "--json"))["workers"]
    assert found["state"] == "warning" and "--workers 4000" in found["found"] and "RAY_ADDRESS" in found["mend"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster"], "RAY_ADDRESS is not set"),
        (["--workers", "3:1"], "need 1 <= MIN <= MAX"),
        (["--config", "no-such-recipe"], "no recipe 'no-such-recipe'"),
        (["--set", "epochs=3"], "--config, which is not given"),
        (["--storage", "gs://bucket/runs"], "only local folders and s3://"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], words: str
) -> None:
    ended = run_command(monkeypatch, capsys, "doctor", *arguments)
    assert ended.code == 2 and words in ended.err and len(ended.err.splitlines()) == 1 and not ended.out


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_is_not_the_clusters_own(monkeypatch: pytest.MonkeyPatch, capsys: Any, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    ended = run_command(monkeypatch, capsys, "doctor")
    assert ended.code == 2 and "give HOST:6379" in ended.err


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: Any, s3: str) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    address = s3.replace("s3://", "s3://user:password-of-the-test@")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace("//", "//user:password-of-the-test@"))
    for arguments in (
        ("--storage", s3),
        ("--storage", address),
        ("--data", address, "--json"),
        ("--data", f"{s3}/x", "--json"),
    ):
        ended = run_command(monkeypatch, capsys, "doctor", *arguments)
        for value in (*SECRETS.values(), "password-of-the-test"):
            assert value not in ended.out + ended.err
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    refused = run_command(monkeypatch, capsys, "doctor", "--storage", address)
    assert refused.code == 2 and "an address holds no keys" in refused.err
    assert "from env" in run_command(monkeypatch, capsys, "doctor", "--storage", s3).out


def test_on_a_terminal_it_is_a_table() -> None:
    from rich.console import Console

    from swav_ray.doctor.check import failure, ok
    from swav_ray.doctor.examine import Report
    from swav_ray.doctor.screen import show

    console = Console(force_terminal=True, width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show(Report("this machine", (ok("python", "3.12"), failure("disk", "full", "make room"))), console)
    text = console.export_text()
    assert "failure" in text and "-> make room" in text


def test_it_is_in_the_help() -> None:
    assert "doctor" in {command.callback.__name__ for command in app.registered_commands if command.callback}
