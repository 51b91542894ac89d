"""The card of a real run: Hugging Face reads it, its figures are the run's, and it gives no address away."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.model_card import card_of, card_of_weights
from swav_ray.train.backbones import View, read_config
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.metrics import read_metrics
from tests.exported import untrained_run
from tests.train.small import ROWS, STEPS, small_config, small_shards, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    place = tmp_path_factory.mktemp("alice")
    train_here(small_config(small_shards(str(place / "digits")), str(place), "first run"))
    return Storage(str(place / "first run"))


def card_at(run: Storage) -> str:
    """Of the newest checkpoint."""
    saved = Checkpoints(run / "checkpoints").newest()
    assert saved is not None
    return card_of(run, saved[1])


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_hugging_face_reads_it_and_the_figures_are_the_run_s(run: Storage) -> None:
    hub = pytest.importorskip("huggingface_hub")
    figures = next(row for row in read_metrics(run) if "probe/top1" in row)
    card = hub.ModelCard(card_at(run))
    assert (card.data.license, card.data.pipeline_tag) == ("unknown", "image-feature-extraction")
    probe, near = card.data.eval_results
    assert (probe.metric_type, probe.metric_value) == ("accuracy", round(figures["probe/top1"], 4))
    assert probe.metric_name == f"linear probe top-1, standard error {figures['probe/top1_stderr']:.4f}"
    assert (near.metric_value, near.dataset_name) == (round(figures["knn/top1"], 4), "digits, held-out part")
    assert f"| linear probe | {figures['probe/top1']:.4f} | {figures['probe/top1_stderr']:.4f} |" in card.text
    assert f"on {figures['probe/rows']} held-out training images of 10 classes" in card.text


def test_data_recipe_epochs_workers_and_versions(run: Storage) -> None:
    card, config = card_at(run), read_config(run.uri)
    assert f"Shards `digits`: {ROWS} images, 10 classes (labels not used)." in card
    assert f"| epochs | 2 of 2 |\n| steps | {STEPS} of {config.global_batch_size} images |\n| workers | 1 |" in card
    assert f"| configuration | `{config.hash()}` |" in card and f"| code | swav-ray {__version__}; " in card
    assert f"(ln K is {math.log(20):.4f})" in card and "| collapse watch | " in card
    assert "## Licence\n\nThe code that made these weights is Apache-2.0." in card
    (recipe,) = re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL)
    values = yaml.safe_load(recipe)
    again = Config.model_validate({**values, "data": {**values["data"], "train": config.data.train}})
    assert again.hash() == config.hash(), "the recipe in the card and the data make the same run"


def test_no_address_stands_in_it(run: Storage, tmp_path: Path) -> None:
    assert str(Path(run.root).parent) not in card_at(run) and "alice" not in card_at(run)
    place = "s3://KEY:SECRET@bucket"
    own = untrained_run(
        str(tmp_path / "alice"), "own", **{"data.train": place, "data.test": f"{place}/alice/test?token=SECRET"}
    )
    card = card_at(Storage(own))
    assert "Shards `bucket`, which could not be read when this card was written." in card
    assert not re.search("SECRET|KEY|alice|token", card)
    assert "Not measured" in card and "model-index" not in front_matter(card)
    assert "| code | swav-ray 9.9; card by swav-ray" in card and "| epochs | 3 of 25 |" in card
    assert not re.search("SECRET|alice", card_of_weights("s3://alice/SECRET@w.pth?token=SECRET", View()))


def test_workers_that_came_and_went(tmp_path: Path) -> None:
    run = Storage(untrained_run(str(tmp_path), "own"))
    run.write("metrics.jsonl", "".join(json.dumps({"step": n, "workers": 1 + n % 3}) + "\n" for n in range(9)).encode())
    assert "| workers | 1 to 3 |" in card_at(run)


def test_a_name_cannot_break_the_card(tmp_path: Path) -> None:
    run = Storage(untrained_run(str(tmp_path), "--- a: [`b`]"))
    run.write(
        "metrics.jsonl",
        json.dumps({"step": 1, "probe/top1": 0.5, "probe/top1_stderr": 0.1, "probe/rows": 9, "epochs_done": 1}).encode(),
    )
    card = card_at(run)
    assert front_matter(card)["model-index"][0]["name"] == "--- a: ['b']" and "\n# --- a: ['b']\n" in card


def test_no_run_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        card_of(Storage(str(tmp_path)), {"step": 0})
