"""What travels to the cluster: whole configurations, absolute addresses, files that git ignores, no passwords."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from swav_ray.config import load_config
from swav_ray.errors import UserError
from swav_ray.jobs.parcel import pack_run, pack_sweep, pack_words, write_zip
from swav_ray.tune.space import load_space

SPACE: dict[str, Any] = {
    "name": "small",
    "recipe": "recipe.yaml",
    "params": {"temperature": {"loguniform": [0.05, 0.3]}},
    "overrides": {"epochs": 2, "warmup_epochs": 1},
    "budget": {"trials": 2, "hours": 1},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and a space, which git ignores."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*.yaml\nsecret.txt\n")
    (tmp_path / "secret.txt").write_text("never")
    (tmp_path / "my_code.py").write_text("BACKBONE = 1\n")
    recipe = load_config("demo-digits", {"data.train": "shards/train", "storage": "s3://bucket/runs"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path


def test_a_run_travels_whole_with_absolute_addresses(here: Path) -> None:
    config = load_config("recipe.yaml", {"elastic.max": 3, "temperature": 0.2}).model_copy(update={"name": "mine"})
    parcel = pack_run(config)
    (path,) = parcel.files
    assert parcel.arguments == ["pretrain", path, "--name", "mine"]
    assert (parcel.name, parcel.folder) == ("mine", "s3://bucket/runs/mine")
    assert parcel.local == {"data.train": str(here / "shards/train")}  # which the command tells the user
    (here / "arrived.yaml").write_bytes(parcel.files[path])
    there = load_config("arrived.yaml")
    assert there.data.train == str(here / "shards/train")
    assert there.model_copy(update={"data": config.data}) == config


def test_a_sweep_travels_with_its_recipe_and_the_command_line(here: Path, tmp_path: Path) -> None:
    parcel = pack_sweep("run", Path("space.yaml"), {"epochs": 3}, budget={"trials": 5}, concurrency=2)
    assert parcel.arguments[:2] == ["tune", "run"] and parcel.name == "small"
    assert parcel.folder == "s3://bucket/runs/small"
    there = tmp_path / "there"
    for name, content in parcel.files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        space = load_space(Path(parcel.arguments[2]))
    assert (space.trials, space.budget.hours, space.concurrency) == (5, 1, 2)
    assert space.recipe == "recipe.yaml"  # part of what makes it the same sweep
    assert space.config({}, trial=True).epochs == 3
    assert space.config({}, trial=False).data.train == str(here / "shards/train")
    assert space.config({}, trial=False).storage == "s3://bucket/runs"


def test_a_recipe_from_elsewhere_may_be_called_as_the_space_is(here: Path, tmp_path_factory) -> None:
    recipe = tmp_path_factory.mktemp("elsewhere") / "space.yaml"
    (here / "recipe.yaml").rename(recipe)
    (here / "space.yaml").write_text(yaml.safe_dump(SPACE | {"recipe": str(recipe)}))
    parcel = pack_sweep("run", Path("space.yaml"), {})
    space = yaml.safe_load(parcel.files[parcel.arguments[2]])
    assert space["recipe"] == ".swav-ray/space.yaml" and "data" in yaml.safe_load(parcel.files[space["recipe"]])


def test_a_sweep_without_a_place_says_where_it_will_be(here: Path) -> None:
    (here / "space.yaml").write_text(yaml.safe_dump(SPACE | {"recipe": "demo-digits"}))
    assert pack_sweep("run", Path("space.yaml"), {}).local == {"storage": str(here / "runs")}


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("postgresql://me:hunter2-secret@db/studies", "postgresql://me:***@db/studies holds a password"),
        ("postgresql://me@db/studies?password=hunter2-secret", "postgresql://me"),
        ("sqlite:///study.db", "would lie in the job's own folder"),
    ],
)
def test_a_study_with_a_password_or_in_the_jobs_own_folder_stays(
    here: Path, monkeypatch: pytest.MonkeyPatch, study: str, said: str
) -> None:
    monkeypatch.setattr("swav_ray.tune.space.check_study_url", lambda value: value)  # the drivers are not installed here
    (here / "space.yaml").write_text(yaml.safe_dump(SPACE | {"study": study}))
    with pytest.raises(UserError) as caught:
        pack_sweep("run", Path("space.yaml"), {})
    assert said in str(caught.value) and "hunter2" not in str(caught.value)


def test_other_commands_travel_as_they_are_with_full_paths(here: Path) -> None:
    (here / "runs" / "mine").mkdir(parents=True)
    words = ["probe", "runs/mine", "--test", "s3://bucket/test", "--protocol", "linear", "runs/none"]
    assert pack_words(words).arguments == ["probe", str(here / "runs/mine"), *words[2:]]


def test_yaml_files_of_any_command_come_along_with_absolute_addresses(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "recipe.yaml").write_text("epochs: 1\n")
    parcel = pack_words(["bench", "recipe.yaml", "--set", "epochs=3", "mine/recipe.yaml", "none.yaml"])
    first, second = parcel.files
    assert parcel.arguments == ["bench", first, "--set", "epochs=3", second, "none.yaml"]
    assert all(path.startswith(".swav-ray/") and path.endswith("recipe.yaml") for path in parcel.files)
    assert yaml.safe_load(parcel.files[first])["data"]["train"] == str(here / "shards/train")
    assert yaml.safe_load(parcel.files[second]) == {"epochs": 1}
    assert parcel.local == {"data.train": str(here / "shards/train")}
    (here / "recipe.yaml").write_text("data: {train: 's3://AKIAPLANTED:hunter2@bucket/x'}")
    with pytest.raises(UserError, match="must hold no key or password"):
        pack_words(["bench", "recipe.yaml"])


def test_a_path_that_may_not_be_entered_travels_as_it_is(closed: Path) -> None:
    assert pack_words(["probe", f"{closed}/mine"]).arguments == ["probe", f"{closed}/mine"]


def test_the_folder_brings_code_but_not_what_git_ignores_and_ours_come_whatever_it_says(here: Path, tmp_path_factory) -> None:
    away = tmp_path_factory.mktemp("away")
    config = load_config("recipe.yaml").model_copy(update={"name": "mine"})
    package = write_zip(pack_run(config), ".", away / "job.zip")
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert {"my_code.py", ".swav-ray/config.yaml"} <= names
    assert not names & {"secret.txt", "recipe.yaml", "space.yaml"} and not any(name.startswith(".git/") for name in names)
    again = write_zip(pack_run(config), ".", away / "again.zip")
    assert again.read_bytes() == package.read_bytes(), "the same content is uploaded once"


def test_no_such_folder(here: Path) -> None:
    with pytest.raises(UserError, match="--working-dir none: no such folder"):
        write_zip(pack_words(["report"]), "none", here / "job.zip")
