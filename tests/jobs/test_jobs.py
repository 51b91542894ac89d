"""Jobs of a cluster that asks for a token: submitted, followed, stopped with their state saved, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from benchmarks.head import Head
from swav_ray.data.storage import Storage
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.metrics import read_metrics
from tests.outage import Proxy, reply
from tests.train.small import ROWS, small_config

SECONDS = 180.0  # patience for anything that is waited for
STEPS = 54  # of 6 epochs
DEFAULTS = {"backbone.arch": "benchmarks.traced:backbone", "epochs": 6, "data.crop_in": "worker"}
SUBMIT = (sys.executable, "-m", "swav_ray", "submit")
RAY_JOB = (sys.executable, "-m", "ray.scripts.scripts", "job")


def run(laptop: Path, head: Head, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = head.client_environment(**environment)
    return subprocess.run(command, cwd=laptop, env=env, capture_output=True, text=True, timeout=SECONDS)


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what} in {SECONDS:.0f} s"
        time.sleep(0.2)
    return answer


def losses(folder: Storage) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if "loss" in row]


def write_recipe(laptop: Path, shards: str, s3: str, name: str, **settings: Any) -> Storage:
    """`NAME.yaml`, which git ignores; the folder of its run."""
    config = small_config(shards, f"{s3}/jobs", name, **DEFAULTS | settings)
    (laptop / f"{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (laptop / ".gitignore").write_text("*.yaml\n")
    return Storage(config.storage) / name


def test_a_job_is_stopped_with_its_state_saved_and_submitted_again_goes_on(head, shards, s3, laptop):
    folder = write_recipe(laptop, shards, s3, "mine", **{"checkpoint.every_steps": 1000})
    submit = (*SUBMIT, "--address", head.dashboard, "--no-wait", "--", "pretrain", "mine.yaml")
    first = run(laptop, head, *submit)
    assert first.returncode == 0, first.stderr
    stop = f"ray job stop --address {head.dashboard} mine"
    assert f"job mine submitted to {head.dashboard}" in first.stdout and stop in first.stdout

    twice = run(laptop, head, *submit)
    assert twice.returncode == 2
    assert twice.stderr.startswith(
        f"swav-ray: job mine works on 'mine' already ({folder.uri}); watch it: ray job logs --follow"
    )

    def logs() -> str:
        return head.get("/api/jobs/mine/logs").json()["logs"]

    wait_for("step", lambda: "loss" in logs())
    actors = head.get("/api/v0/actors").json()["data"]["result"]["result"]
    assert any(actor["name"].startswith("mine worker 0 (") for actor in actors), "as the dashboard shows them"
    stopped = run(laptop, head, *RAY_JOB, *stop.split()[2:])
    assert stopped.returncode == 0, stopped.stderr
    saved = int(Checkpoints(folder / "checkpoints").newest()[1]["step"])
    assert 10 <= saved < STEPS
    assert f"run 'mine' stopped at step {saved}; the same command goes on from there" in logs()

    again = run(laptop, head, *SUBMIT, "--", "pretrain", "mine.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "job mine-2 submitted" in again.stdout and f"done: {folder.uri}" in again.stdout
    assert Checkpoints(folder / "checkpoints").newest()[1]["step"] == STEPS
    assert f"done: {folder.uri}" in again.stdout and "sdk.py" not in again.stdout + again.stderr
    rows = losses(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for epoch in range(6):
        ids = [identifier for row in rows if row["epoch"] == epoch for identifier in row["ids"]]
        assert len(ids) == len(set(ids)) == ROWS
    jobs = {job["submission_id"]: job for job in head.get("/api/jobs/").json() if job["submission_id"]}
    assert (jobs["mine"]["status"], jobs["mine-2"]["status"]) == ("STOPPED", "SUCCEEDED")
    assert jobs["mine-2"]["metadata"]["run"] == "mine"
    # No secret went along unasked.
    assert "testing" not in json.dumps(jobs["mine-2"]["runtime_env"])


def test_a_mistake_on_the_cluster_is_the_commands_own_end(head, laptop, s3):
    """Only the cluster can know that the shards are not there."""
    ended = run(laptop, head, *SUBMIT, "--", "pretrain", "demo-digits", "--storage", s3, "--set", f"data.train={s3}/none")
    assert ended.returncode == 2
    last = ended.stdout.strip().splitlines()[-1]
    assert last.startswith(f"swav-ray: {s3}/none: no manifest.json there, so no finished shards")


def test_a_job_whose_output_cannot_be_had_goes_on(head, laptop, s3):
    """As behind a proxy that knows no web sockets."""
    place = urlsplit(head.dashboard)
    proxy = Proxy((place.hostname, place.port))
    proxy.answer(b"GET /api/jobs/report/logs/tail", reply(403))
    ended = run(laptop, head, *SUBMIT, "--address", proxy.url, "--", "report", f"{s3}/none")
    proxy.cut()
    line = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended
    assert f"--address {proxy.url}: the cluster does not answer any more; job report may go on" in line


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_its_token_the_cluster_says_no(head, laptop, s3, token):
    file = laptop / "token"
    file.write_text(token)
    ended = run(
        laptop,
        head,
        *(*SUBMIT, "--", "pretrain", "demo-digits", "--storage", s3),
        RAY_AUTH_MODE="token" if token else "disabled",
        RAY_AUTH_TOKEN_PATH=str(file),
    )
    assert ended.returncode == 2, ended
    line = ended.stderr.strip().splitlines()[-1]
    assert line.startswith(f"swav-ray: --address {head.dashboard}: it wants a token, and not the one given here; set RAY_AUTH")
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_driver_without_the_token_is_told_so(head, laptop, s3, shards):
    """RAY_ADDRESS as on a head node, but another token."""
    file = laptop / "token"
    file.write_text("0" * 64)
    write_recipe(laptop, shards, s3, "driver")
    command = (sys.executable, "-m", "swav_ray", "pretrain", "driver.yaml")
    ended = run(laptop, head, *command, RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(file))
    assert ended.returncode == 2 and "it wants another token than" in ended.stderr.strip().splitlines()[-1], ended.stderr


def test_a_notice_without_the_token_is_told_so(head, laptop):
    file = laptop / "token"
    file.write_text("0" * 64)
    command = (sys.executable, "-m", "swav_ray", "drain")
    ended = run(laptop, head, *command, RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(file))
    line = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2 and f"the Ray cluster at {head.address} wants another token" in line, ended.stderr


@pytest.mark.slow
def test_a_sweep_as_rays_own_command_submits_it(head, shards, s3, laptop):
    """`ray job submit --working-dir . -- swav-ray tune space.yaml`, without our front."""
    write_recipe(laptop, shards, s3, "recipe", epochs=2)
    (laptop / ".gitignore").unlink()  # what git ignores, Ray leaves behind
    space = {
        "name": "sweep",
        "recipe": "recipe.yaml",
        "params": {"temperature": {"loguniform": [0.05, 0.3]}},
        "baseline": [{"temperature": 0.1}],
        "budget": {"trials": 2},
        "concurrency": 1,
    }
    (laptop / "space.yaml").write_text(yaml.safe_dump(space))
    submit = (*RAY_JOB, "submit", "--working-dir", ".", "--", "python", "-m", "swav_ray", "tune", "space.yaml")
    ended = run(laptop, head, *submit)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = Storage(f"{s3}/jobs/sweep")
    assert {"best.yaml", "leaderboard.csv", "report.html", "study.journal"} <= set(folder.list())
    assert "trial 1 done" in ended.stdout and f"best configuration: {folder.uri}/best.yaml" in ended.stdout
