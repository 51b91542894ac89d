"""Secrets of the environment stand in no file that a command writes and in no line that it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from tests.commands import run_command
from tests.train.small import small_config, small_shards

ROOT = Path(__file__).parents[1]
PLANTED = {
    name: f"planted-{name.lower().replace('_', '-')}-7f3a"
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
        "SWAV_RAY_SHARE_PASSWORD",
        "PGPASSWORD",
        "GITHUB_TOKEN",
    )
}
PLANT = b"planted-"


class Desk:
    """A user's folder, where every file a command makes can be found: its own, temporary ones, Ray's, the home's."""

    def __init__(self, place: Path, endpoint: str) -> None:
        self.place = place
        self.ray = Path(tempfile.mkdtemp(prefix="sec-", dir="/tmp"))  # short: socket paths end at 107 characters
        for name in ("tmp", "home", "work"):
            (place / name).mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WANDB_", "RAY_"))}
        self.environment = {
            **{name: value for name, value in kept.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **PLANTED,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(place / "work"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{place}/work/mlflow.db",
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            "RAY_TMPDIR": str(self.ray),
            "PYTHONPATH": str(ROOT),
            "SWAV_RAY_STORAGE_PATIENCE": "1",
            "SWAV_RAY_LOGS": "json",
        }
        self.printed: list[str] = []

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "swav_ray", *words],
            cwd=self.place / "work",
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        self.printed.append(done.stdout + done.stderr)
        return self.printed[-1]

    def leaks(self, bucket: Storage) -> list[str]:
        """Every place in which a planted secret stands."""
        found = [f"printed: {line}" for text in self.printed for line in text.splitlines() if PLANT.decode() in line]
        for folder in (self.place, self.ray):
            files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
            found += [str(path) for path in files if PLANT in path.read_bytes()]
        found += [f"{bucket.uri}/{name}" for name in bucket.find() if PLANT in bucket.read(name)]
        return found


@pytest.fixture
def desk(tmp_path: Path, s3: str) -> Iterator[Desk]:
    made = Desk(tmp_path, os.environ["AWS_ENDPOINT_URL"])
    yield made
    shutil.rmtree(made.ray, ignore_errors=True)


def test_no_secret_of_the_environment_is_written_or_printed(desk: Desk, s3: str, tmp_path: Path, monkeypatch) -> None:
    """A run with both trackers, its page, its bundle, and what goes wrong on the way."""
    from swav_ray.share.bundle import pack

    shards = small_shards(f"{s3}/secrets/shards")
    changes = {
        "epochs": 1,
        "warmup_epochs": 0,
        "data.crop_in": "worker",
        "data.backend": "reference",
        "trackers": ["wandb", "mlflow"],
    }
    config = small_config(shards, f"{s3}/secrets/runs", "kept", **changes)
    (tmp_path / "work" / "kept.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    desk.run("pretrain", "kept.yaml")
    desk.run("report", f"{s3}/secrets/runs/kept", "--images", "0")
    bundle = pack(f"{s3}/secrets/runs/kept", tmp_path)
    with zipfile.ZipFile(bundle.path) as archive:
        assert all(PLANT not in archive.read(name) for name in archive.namelist())

    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    desk.run("pretrain", "kept.yaml", "--name", "away", code=2, **away)
    inside = {"AWS_ENDPOINT_URL": "http://me:planted-endpoint@127.0.0.1:9"}
    assert "AWS_ENDPOINT_URL = http://***@127.0.0.1:9: takes no user" in desk.run("pretrain", "kept.yaml", code=2, **inside)
    assert desk.leaks(Storage(s3)) == []


@pytest.mark.slow
def test_no_secret_stands_in_what_a_sweep_leaves(desk: Desk, s3: str, tmp_path: Path) -> None:
    shards = small_shards(f"{s3}/secrets/shards")
    config = small_config(shards, str(tmp_path / "work" / "runs"), "", precision="float32")
    (tmp_path / "work" / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    space = {
        "name": "kept",
        "recipe": "recipe.yaml",
        "params": {"temperature": {"loguniform": [0.05, 0.3]}},
        "budget": {"trials": 2},
    }
    (tmp_path / "work" / "space.yaml").write_text(yaml.safe_dump(space))
    desk.run("tune", "space.yaml")
    desk.run("report", "runs/kept")
    study = {"study": "mysql+pymysql://me:planted-password@127.0.0.1:9/studies"}
    (tmp_path / "work" / "space.yaml").write_text(yaml.safe_dump(space | study))
    assert "planted" not in desk.run("tune", "space.yaml", code=2)
    (tmp_path / "work" / "space.yaml").unlink()  # the user's own
    assert desk.leaks(Storage(s3)) == []


def test_ray_tune_sends_no_keys_which_it_would_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution import class_cache

    from swav_ray.tune.running import keep_keys_off_the_logs

    sent = class_cache.ENV_VARS_TO_PROPAGATE
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", sent | {"AWS_SECRET_ACCESS_KEY"})
    keep_keys_off_the_logs()
    assert {name for name in sent if not name.startswith("AWS_")} == class_cache.ENV_VARS_TO_PROPAGATE


@pytest.mark.parametrize("words", [["pretrain", "demo-digits", "--storage"], ["report"], ["knn"], ["export"], ["shard"]])
def test_a_command_given_an_address_with_a_key_does_not_repeat_it(words: list[str], monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("s3://planted-key:planted-secret@bucket/runs", "s3://planted-key:planted/secret@bucket"):
        ended = run_command(monkeypatch, capsys, *words, address, *(["out"] if words[0] in ("export", "shard") else []))
        assert ended.code == 2 and "must hold no key or password" in ended.err and "planted" not in ended.err + ended.out
    assert not any(PLANT in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/a", "s3://key:se/cret@bucket", "s3://key@bucket"])
def test_an_address_with_a_key_is_refused(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        Storage(uri)
    assert "secret" not in str(caught.value) and "key@" not in str(caught.value)


def test_a_name_with_an_at_sign_is_a_name() -> None:
    assert Storage("s3://bucket/me@home/a:b").root == "bucket/me@home/a:b"
