"""The commands: help at once, and every mistake of a user is one line on stderr and exit code 2, before Ray starts."""

from __future__ import annotations

import errno
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import swav_ray
from swav_ray import cli
from swav_ray.config import Config, load_config, recipe_names
from tests.commands import Ended, run_command
from tests.data.pictures import encode, picture

ROOT = Path(__file__).parents[1]
K_TAU = str(ROOT / "search_spaces" / "k_tau.yaml")
RECIPE = str(Path(__file__).with_name("recipe.yaml"))
COMMANDS = (
    "shard",
    "pretrain",
    "submit",
    "tune",
    "probe",
    "knn",
    "finetune",
    "transfer",
    "report",
    "export",
    "share",
    "receive",
)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ended]:
    """``swav-ray ARGS`` in this process, in an empty folder; a command that would start Ray fails the test."""

    def no_ray(**_: Any) -> None:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr("swav_ray.train.session.connect", no_ray)
    monkeypatch.chdir(tmp_path)

    return functools.partial(run_command, monkeypatch, capsys)


def assert_one_line(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("swav-ray: ") and ended.err.endswith("\n") and len(ended.err.splitlines()) == 1, ended.err
    assert "Traceback" not in ended.err + ended.out
    for text in said:
        assert text in ended.err


# --- help and version


def test_help_lists_the_commands_and_each_has_its_own() -> None:
    runner = CliRunner()
    top = runner.invoke(cli.app, ["--help"])
    assert top.exit_code == 0 and all(command in top.stdout for command in COMMANDS)
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert commands | {group.name for group in cli.app.registered_groups} >= set(COMMANDS)
    for command in COMMANDS:
        shown = runner.invoke(cli.app, [command, "--help"])
        assert shown.exit_code == 0 and "Usage" in shown.stdout


def test_version_is_answered_without_a_command(call: Callable[..., Ended]) -> None:
    assert call("--version") == Ended(0, f"{swav_ray.__version__}\n", "")
    assert call("--version", "tune").out == f"{swav_ray.__version__}\n"


def test_no_command_shows_the_help(call: Callable[..., Ended]) -> None:
    ended = call()
    assert ended.code == 2 and "Usage" in ended.out + ended.err


def test_options_of_the_documentation_are_there() -> None:
    runner = CliRunner()
    for command, options in {
        "pretrain": ("--set", "--workers", "--name", "--storage"),
        "submit": ("--address", "--working-dir", "--env", "--no-wait"),
        "tune run": ("--set", "--trials", "--concurrency", "--dry-run"),
        "tune confirm": ("--set", "--concurrency"),
        "shard": ("--image", "--label", "--classes", "--max-side", "--quality", "--check"),
        "probe": ("--test", "--train", "--size", "--protocol", "--set", "--out", "--quick"),
        "knn": ("--test", "--train", "--size", "--k", "--temperature", "--quick"),
        "finetune": ("--test", "--train", "--size", "--labels", "--freeze", "--protocol", "--set", "--out", "--quick"),
        "transfer": (
            *("--task", "--train", "--test", "--train-images", "--test-images", "--protocol", "--size"),
            *("--metric", "--set", "--out", "--quick"),
        ),
        "report": ("--out", "--images"),
        "export": ("--format",),
    }.items():
        shown = runner.invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
        assert all(option in shown for option in options)


@pytest.mark.parametrize("command", [[str(Path(sys.executable).with_name("swav-ray"))], [sys.executable, "-m", "swav_ray"]])
def test_the_installed_command(command: list[str], tmp_path: Path) -> None:
    def run(*args: str) -> Ended:
        done = subprocess.run([*command, *args], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        return Ended(done.returncode, done.stdout, done.stderr)

    if command[1:]:  # not installed, the package is found from its own folder only
        tmp_path = ROOT
    assert run("--version") == Ended(0, f"{swav_ray.__version__}\n", "")
    shown = run("--help")
    assert shown.code == 0 and "pretrain" in shown.out and not shown.err
    assert_one_line(run("pretrain", "demo-digit"), "no recipe 'demo-digit' (did you mean 'demo-digits'?)")
    assert_one_line(run("tune", "none.yaml"), "none.yaml: no such file")


# --- mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        # pretrain
        (["pretrain", "demo-digit"], ["no recipe 'demo-digit' (did you mean 'demo-digits'?)", *recipe_names()]),
        (["pretrain", "none.yaml"], ["none.yaml: no such file"]),
        (["pretrain", "folder/none"], ["folder/none: no such file"]),
        (
            ["pretrain", "demo-digits", "--set", "temprature=1"],
            ["--set: unknown key 'temprature' (did you mean 'temperature'?)"],
        ),
        (["pretrain", "demo-digits", "--set", "epochs"], ["--set epochs: write key=value"]),
        (["pretrain", "demo-digits", "--set", "epochs=[1"], ["--set epochs=[1: the value is not valid YAML"]),
        (["pretrain", "demo-digits", "--set", "epochs=2001-99-99"], ["the value is not valid YAML"]),
        (["pretrain", "demo-digits", "--set", "epochs=many"], ["epochs = 'many': input should be a valid integer"]),
        (["pretrain", RECIPE, "--set", "num_prototypes=700"], ["num_prototypes 700 is more than the 625 rows in sight"]),
        (["pretrain", "demo-digits", "--set", "a\nb=1"], ["unknown key 'a\\nb'"]),
        (["pretrain", "demo-digits", "--workers", "0"], ["--workers 0: need 1 <= MIN <= MAX"]),
        (["pretrain", "demo-digits", "--workers=-1"], ["--workers -1: need 1 <= MIN <= MAX"]),
        (["pretrain", "demo-digits", "--workers", "3:1"], ["--workers 3:1: need 1 <= MIN <= MAX"]),
        (["pretrain", "demo-digits", "--workers", "0:2"], ["--workers 0:2: need 1 <= MIN <= MAX"]),
        (["pretrain", "demo-digits", "--workers", "x"], ["--workers x: write a number, or MIN:MAX as in 1:8"]),
        (["pretrain", "demo-digits", "--workers", "1:2:3"], ["--workers 1:2:3: write a number, or MIN:MAX"]),
        (["pretrain", "demo-digits", "--workers", "1.5"], ["--workers 1.5: write a number, or MIN:MAX"]),
        (["pretrain", "demo-digits", "--workers", "2:"], ["--workers 2:: write a number, or MIN:MAX"]),
        (["pretrain", "demo-digits", "--workers", ":2"], ["--workers :2: write a number, or MIN:MAX"]),
        (["pretrain", "demo-digits", "--workers", ""], ["--workers : write a number, or MIN:MAX"]),
        (["pretrain", RECIPE, "--workers", "9"], ["9 workers cannot share 8 blocks a step"]),
        (["pretrain", "imagenet-100ep"], ["data.train is not set; give shards with --set data.train=FOLDER"]),
        (["pretrain", "demo-digits", "--set", "data.train=none"], ["no manifest.json there, so no finished shards"]),
        (["pretrain", "demo-digits", "--storage", "gs://bucket/runs"], ["gs://bucket/runs", "only local folders and s3://"]),
        # shard
        (["shard", "none", "out"], ["none: no such file or folder"]),
        (["shard", "empty", "out"], ["empty: holds no image"]),
        (["shard", "no_images", "out"], ["no_images: holds no image"]),
        (["shard", "none/*.tar", "out"], ["none: no such folder"]),
        (["shard", "none.txt", "out"], ["none.txt: no such file"]),
        (["shard", "images", "out", "--max-side", "3"], ["--max-side 3: at least 8 pixels"]),
        (["shard", "images", "out", "--quality", "101"], ["--quality 101: from 1 to 100"]),
        (["shard", "images", "out", "--label", "breed"], ["--label: is for tar and Parquet files"]),
        (["shard", "images", "out", "--classes", "none.txt"], ["--classes none.txt: no such text file"]),
        (["shard", "demo:digits", "out", "--quality", "80"], ["demo:digits takes no other option than --check"]),
        (["shard", "empty", "s3://"], ["s3://: an s3:// address needs a bucket"]),
        (["shard", "empty", "ftp://host/out"], ["only local folders and s3:// are supported"]),
        # probe and knn
        (["probe", "none"], ["none: not a run (it has no config.yaml)"]),
        (["probe", "empty"], ["empty: not a run (it has no config.yaml)"]),
        (["probe", "other_run"], ["other_run/config.yaml: not a configuration of this version"]),
        (["probe", "new_run"], ["new_run: has no complete checkpoint yet"]),
        (["knn", "empty"], ["empty: not a run (it has no config.yaml)"]),
        (["knn", "empty", "--k", "0"], ["--k 0: at least one neighbour must vote"]),
        (["knn", "empty", "--k", "5,x"], ["--k 5,x: write numbers with commas between"]),
        (["knn", "empty", "--temperature", "0"], ["--temperature 0: a temperature is above 0"]),
        (
            ["probe", "empty", "--protocol", "liner"],
            ["no protocol 'liner' (did you mean 'linear'?); known are finetune,"],
        ),
        (["probe", "empty", "--protocol", "none.yaml"], ["none.yaml: no such file"]),
        (["probe", "empty", "--set", "epochs=3"], ["--set and --out go with --protocol linear"]),
        (
            ["probe", "empty", "--protocol", "linear", "--set", "epoch=3"],
            ["--set: unknown key 'epoch' (did you mean"],
        ),
        (["finetune", "empty", "--labels", "10"], ["--labels 10: a share above 0, up to 1"]),
        (["finetune", "empty", "--freeze", "layer5"], ["--set: frozen = 'layer5': input should be 'none', 'layer1', "]),
        (["finetune", "empty"], ["empty: not a run (it has no config.yaml)"]),
        (["transfer", "empty", "--test", "any"], ["transfer: give the shards of the other data set with --train and --test"]),
        (
            ["transfer", "a", "--test", "b", "--train", "c", "--metric", "map"],
            ["--metric map: not known; known are top1,"],
        ),
        (["probe", "gs://bucket/run"], ["only local folders and s3:// are supported"]),
        (
            ["probe", "no_images/note.txt"],
            ["note.txt: is no file of weights; known are safetensors and what torch.save writes"],
        ),
        # export
        (["export", "empty", "out"], ["empty: not a run (it has no config.yaml)"]),
        (["export", "new_run", "out"], ["new_run: has no complete checkpoint yet"]),
        (["export", "new_run", "other_run"], ["other_run: is a run; export to a folder of its own"]),
        (["export", "new_run", "out", "--format", "tim"], ["--format tim: not known (did you mean 'timm'?); formats are"]),
        # report
        (["report", "new_run", "--out", "empty"], ["--out empty: a folder; name the file, as empty/report.html"]),
        (["report", "new_run", "--out", "pages/"], ["--out pages/: a folder; name the file, as pages/report.html"]),
        # tune
        (["tune", "none.yaml"], ["none.yaml: no such file"]),
        (["tune", "empty"], ["empty: cannot be read"]),
        (["tune", "no_images/note.txt"], ["note.txt: must hold keys and values, found str"]),
        (["tune", K_TAU, "--trials", "0"], ["the command line: budget.trials = 0: "]),
        (["tune", K_TAU, "--concurrency", "0"], ["the command line: concurrency = 0: "]),
        (["tune", K_TAU, "--dry-run", "-1"], ["--dry-run -1: "]),
        (["tune", K_TAU, "--set", "epochs"], ["--set epochs: write key=value"]),
        (["tune", K_TAU, "--set", "epoch=3"], ["--set: epoch: the configuration has no such key (did you mean 'epochs'?)"]),
        (["tune", K_TAU, "--set", "epochs=0"], ["epochs = 0: input should be greater than or equal to 1"]),
        (["tune", K_TAU, "--set", "temperature=0.1"], ["temperature stands in params and in overrides"]),
    ],
    ids=lambda value: " ".join(value)[-60:].replace(str(ROOT), "") if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    args: list[str], said: list[str], call: Callable[..., Ended], tmp_path: Path
) -> None:
    for folder in ("empty", "no_images", "other_run", "new_run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "no_images" / "note.txt").write_text("no image")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"any")
    (tmp_path / "other_run" / "config.yaml").write_text("epochs: 3\nunheard_of: 4\n")
    (tmp_path / "new_run" / "config.yaml").write_text(load_config(RECIPE).to_yaml())
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(call(*args), *said)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "swav-ray: No space left on device\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "swav-ray: a: Is a directory\n"),
        (FileExistsError(errno.EEXIST, "File exists", "a", None, "b"), "swav-ray: b: File exists\n"),
        (PermissionError("Access\nDenied"), "swav-ray: Access Denied\n"),
    ],
)
def test_what_a_disk_answers_is_one_line(
    error: Exception, said: str, call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("swav_ray.train.scoring.score_run", fails)
    assert call("knn", "run") == Ended(2, "", said)


def test_what_a_store_answers_is_one_line(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    s3fs.S3FileSystem.clear_instance_cache()  # with the keys of tests before
    try:
        assert_one_line(call("knn", "s3://bucket/run"), "s3://bucket/run/config.yaml: Unable to locate credentials")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_fault_of_ours_is_told_in_full(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_ray.train.scoring.score_run", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        call("knn", "run")


def test_what_typer_itself_refuses_is_exit_code_2_without_a_traceback(call: Callable[..., Ended]) -> None:
    for args in (["nope"], ["pretrain"], ["tune", K_TAU, "--dry-run", "x"], ["pretrain", "demo-digits", "--nope"]):
        ended = call(*args)
        assert ended.code == 2 and "Error" in ended.err and "Traceback" not in ended.err


def test_an_interruption_says_how_to_go_on(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a command that saves nothing, and of one in a group."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swav_ray.train.scoring.score_run", interrupted)
    monkeypatch.setattr("swav_ray.tune.space.load_space", interrupted)
    for args in (["knn", "run"], ["tune", "confirm", K_TAU]):
        ended = call(*args)
        assert ended.code == 130
        assert ended.err == "swav-ray: stopped; the same command goes on from what was saved, else from the start\n"


# --- what the commands pass on


def test_shard_tells_what_it_made_and_how(call: Callable[..., Ended], tmp_path: Path) -> None:
    for row in range(3):
        (tmp_path / f"images/{'ab'[row % 2]}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"images/{'ab'[row % 2]}/{row}.jpg").write_bytes(encode(picture(40, 20, row)))
    (tmp_path / "images/a/x.png").write_bytes(encode(picture(12, 10), "PNG"))
    (tmp_path / "images/a/broken.jpg").write_bytes(b"broken")
    ended = call("shard", "images", "out", "--check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.split("\n")[-5:] == [
        f"4 images in 1 files, 2 classes, 1 transcoded, 1 unreadable and skipped: {tmp_path}/out",
        "  transcoded 1: PNG",
        "  skipped a/broken.jpg: not an image",
        "all checksums hold",
        "",
    ]
    ended = call("shard", "images", "small", "--max-side", "20", "--quality", "70")
    assert "4 transcoded, 1 unreadable and skipped; changed: max_side 20, quality 70:" in ended.out
    assert_one_line(call("shard", "images", "out", "--max-side", "20"), "out: already holds shards of another source, or made")


def test_a_dry_run_says_what_the_sweep_will_cost(call: Callable[..., Ended], tmp_path: Path) -> None:
    ended = call("tune", K_TAU, "--dry-run", "1")
    assert ended.code == 0 and ended.err == "" and len(ended.out.splitlines()) > 2
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_so_many_configurations_and_the_same_ones_again(
    call: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swav_ray.tune.estimate.estimate", lambda space: SimpleNamespace(lines=list))  # seconds of training
    first, second = call("tune", K_TAU, "--dry-run", "5"), call("tune", K_TAU, "--dry-run", "5")
    assert first == second and first.code == 0 and first.err == ""
    head, *lines = first.out.splitlines()
    space = yaml.safe_load(Path(K_TAU).read_text(encoding="utf-8"))
    assert head.startswith(f"{space['budget']['trials']} trials, {space['concurrency']} at a time")
    assert [line.split(":")[0].strip() for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[0] == "  0: " + ", ".join(f"{key}={value}" for key, value in space["baseline"][0].items())
    assert len(set(lines)) == 5 and all("num_prototypes=" in line and "temperature=" in line for line in lines)
    assert call("tune", K_TAU, "--dry-run", "3").out.splitlines()[1:] == lines[:3]
    assert call("tune", K_TAU, "--dry-run", "2", "--trials", "50", "--concurrency", "4").out.startswith(
        "50 trials, 4 at a time"
    )
    assert list(tmp_path.iterdir()) == []


def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that `pretrain` would train, from now on."""
    configs: list[Config] = []

    def run(config: Config, show: Any, tell: Any) -> dict[str, Any]:
        configs.append(config)
        return {"probe/top1": 0.98, "probe/top1_stderr": 0.004, "probe/rows": 800}

    monkeypatch.setattr("swav_ray.train.trainer.resolve", lambda config: config)
    monkeypatch.setattr("swav_ray.train.trainer.pretrain", run)
    monkeypatch.setattr("swav_ray.train.session.connect", lambda **_: None)
    return configs


def test_pretrain_trains_what_was_asked_for(
    call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = started(monkeypatch)
    ended = call("pretrain", RECIPE, "--set", "epochs=3", "--set", "augment.rotation=5", "--workers", "2:4")
    assert ended.code == 0 and "0.9800 ± 0.0040" in ended.out and "next: swav-ray probe runs/recipe" in ended.out
    (config,) = configs
    wanted = load_config(RECIPE, {"epochs": 3, "augment.rotation": 5, "elastic.min": 2, "elastic.max": 4})
    assert config == wanted.model_copy(update={"name": "recipe"})


def test_a_run_is_named_by_the_option_the_configuration_or_the_file(
    call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = started(monkeypatch)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"num_prototypes": 100, "name": "inside"}))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump({"num_prototypes": 100}))
    call("pretrain", "mine.yaml", "--name", "given", "--storage", "elsewhere", "--workers", "3")
    call("pretrain", "mine.yaml")
    call("pretrain", "./plain.yaml")
    assert [config.name for config in configs] == ["given", "inside", "plain"]
    assert [config.storage for config in configs] == ["elsewhere", "runs", "runs"]
    assert [(config.elastic.min, config.elastic.max) for config in configs] == [(3, 3), (1, 1), (1, 1)]


@pytest.mark.parametrize("found", [True, False])
def test_tune_leaves_the_best_configuration_here_or_says_why_not(
    found: bool, call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from swav_ray.tune.sweep import Outcome, Sweep

    asked: list[Any] = []
    best = tmp_path / "runs" / "k_tau" / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(load_config(RECIPE).to_yaml())
    row = {"rank": 1, "name": "trial 0", "status": "complete" if found else "failed", "probe/top1": 0.97 if found else None}
    row |= {"stderr": 0.01, "epochs_done": 6, "seconds": 60.0, "num_prototypes": 100, "temperature": 0.1, "error": ""}

    def run(self: Sweep) -> Outcome:
        asked.append(self.space)
        return Outcome(pd.DataFrame([row]), best if found else None, str(best.parent), [])

    monkeypatch.setattr(Sweep, "run", run)
    monkeypatch.setattr("swav_ray.train.session.connect", lambda **_: None)
    ended = call("tune", K_TAU, "--set", "epochs=3", "--trials", "9", "--concurrency", "1")
    (space,) = asked
    assert (space.overrides["epochs"], space.budget.trials, space.concurrency) == (3, 9, 1)
    if found:
        assert ended.code == 0 and "0.9700 ± 0.0100" in ended.out
        assert (tmp_path / "best.yaml").read_text() == best.read_text()
        assert ended.out.splitlines()[-1] == f"next: swav-ray pretrain best.yaml, or swav-ray tune confirm {K_TAU}"
    else:
        assert_one_line(ended, "no trial completed; see", "leaderboard.md for the reasons")
        assert not (tmp_path / "best.yaml").exists()
