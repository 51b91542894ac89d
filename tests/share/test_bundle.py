"""What is in a bundle, and what is not: no data, no address, nothing that runs."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.share import bundle as bundles
from swav_ray.share import contents
from swav_ray.share.bundle import pack
from swav_ray.share.unpack import unpack
from swav_ray.swav.model import SwAV
from swav_ray.train.backbones import load, load_run
from tests.train.small import small_config, small_shards, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a few hundred digits that logged the ids of its images."""
    place = tmp_path_factory.mktemp("private-place")
    train_here(small_config(small_shards(str(place / "shards")), str(place), "mine", precision="float32"))
    assert '"ids"' in (place / "mine" / "metrics.jsonl").read_text()
    return place / "mine"


def opened(source: str, tmp_path: Path) -> tuple[Path, dict]:
    for name in ("packed", "unpacked"):
        (tmp_path / name).mkdir()
    packed = pack(source, tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == [packed.path]
    return tmp_path / "unpacked", unpack(packed.path, tmp_path / "unpacked")


def check_run(run: Path, folder: Path, manifest: dict) -> None:
    assert sorted(manifest["files"]) == [
        "README.md",
        "backbone.safetensors",
        "config.yaml",
        "head.safetensors",
        "metrics.jsonl",
    ]
    config, backbone = load_run(str(run))
    assert manifest["name"] == "mine" and (manifest["config_hash"], manifest["arch"]) == (config.hash(), config.backbone.arch)
    weights = load_file(folder / "backbone.safetensors")
    assert weights.keys() == backbone.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in backbone.state_dict().items())
    head = load_file(folder / "head.safetensors")
    assert head["prototypes.weight"].shape == (20, 8) and "projector.0.weight" in head
    shared = Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert (shared.storage, shared.data.train, shared.data.test) == ("runs", "", "")
    assert shared.model_copy(update={"storage": config.storage, "data": config.data}) == config
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    originals = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in originals]
    assert any("probe/top1" in row for row in rows) and not any("ids" in row for row in rows)
    card = (folder / "README.md").read_text()
    probed = next(row["probe/top1"] for row in reversed(originals) if "probe/top1" in row)
    assert f"{probed:.4f}" in card and config.hash() in card
    pixels = torch.rand(2, 3, 28, 28)
    received, trained = load(str(folder)), load(str(run))
    assert torch.equal(received.backbone(pixels), trained.backbone(pixels)) and received.view == trained.view


def test_a_run(run, tmp_path):
    folder, manifest = opened(str(run), tmp_path)
    check_run(run, folder, manifest)
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"private-place" not in everything and str(run.parent).encode() not in everything


def test_a_run_on_s3(run, s3, tmp_path):
    place = Storage(f"{s3}/share/mine")
    for path in run.rglob("*"):
        if path.is_file():
            place.write(str(path.relative_to(run)), path.read_bytes())
    check_run(run, *opened(place.uri, tmp_path))
    single = pack(f"{place.uri}/metrics.jsonl", tmp_path)
    assert list(single.files) == ["metrics.jsonl"]


def test_the_card_tells_of_the_weights_beside_it(run, tmp_path):
    """Where the newest checkpoint is damaged, the one before it goes out, with the figures of then."""
    shutil.copytree(run, tmp_path / "damaged")
    newest = max((tmp_path / "damaged" / "checkpoints").iterdir())
    (newest / "state.pt").write_bytes(b"junk")
    folder, manifest = opened(str(tmp_path / "damaged"), tmp_path)
    card = (folder / "README.md").read_text()
    assert 0 < manifest["step"] < int(newest.name.removeprefix("step-"))
    assert f"| steps | {manifest['step']:,} of " in card
    losses = {row["step"]: row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").open()) if "verdict" in row}
    last = losses[max(step for step in losses if step <= manifest["step"])]
    assert f"| last loss | {last:.4f} " in card


def test_the_bundle_is_a_plain_zip_that_says_nothing_of_this_machine(run, tmp_path):
    packed = pack(str(run), tmp_path)
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)
    first = packed.path.read_bytes()
    assert pack(str(run), tmp_path).path.read_bytes() == first


def test_what_cannot_be_shared_says_why(run, tmp_path, monkeypatch):
    def refused(name: str) -> str:
        with pytest.raises(UserError) as caught:
            pack(str(tmp_path / name), tmp_path)
        assert not (tmp_path / "bundle.zip").exists()
        return str(caught.value)

    assert "neither a run nor a file" in refused("nothing")
    (tmp_path / "folder").mkdir()
    assert "a folder that is no run" in refused("folder")
    (tmp_path / "folder" / "config.yaml").write_text("- 1")
    assert "config.yaml: not a configuration" in refused("folder")
    (tmp_path / "folder" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert "has no complete checkpoint yet" in refused("folder")
    torch.save({}, tmp_path / "weights.pth")
    assert "write them as safetensors first" in refused("weights.pth")
    (tmp_path / "weights.onnx").write_bytes(pickle.dumps([1]))
    assert "a pickle or an archive under a false name" in refused("weights.onnx")
    for content in (b"\x10" + bytes(30), pickle.dumps([1])):
        (tmp_path / "weights.safetensors").write_bytes(content)
        assert "not a whole safetensors file" in refused("weights.safetensors")
    (tmp_path / "a b.txt").write_text("x")
    assert "give the file a name of letters" in refused("a b.txt")
    (tmp_path / "manifest.json").write_text("{}")
    assert "and not manifest.json" in refused("manifest.json")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    assert "not a text (UTF-8)" in refused("latin.txt")
    (tmp_path / "long.txt").write_bytes(b"x" * 2000)
    monkeypatch.setattr(bundles, "MOST_BYTES", 1000)
    assert "too large" in refused("long.txt")


def test_a_head_is_no_pickle_whatever_its_length(tmp_path):
    """A safetensors file begins with the length of its header, of a ResNet-50's head 80 03: a pickle's first bytes."""
    head = SwAV(nn.Identity(), num_features=2048, hidden_dim=2048, feature_dim=128, num_prototypes=30).state_dict()
    save_file(head, tmp_path / "head.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "head.safetensors").read_bytes()[:2] == b"\x80\x03"
    folder, manifest = opened(str(tmp_path / "head.safetensors"), tmp_path)
    assert list(manifest["files"]) == ["head.safetensors"] and load_file(folder / "head.safetensors").keys() == head.keys()


def test_the_largest_bundle_is_a_zip_of_the_first_kind(tmp_path, monkeypatch):
    """As large beside a limit of 1 MiB as the real one beside 2 GiB, less the directory."""
    assert contents.MOST_BYTES < zipfile.ZIP64_LIMIT - 2**20
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2**20 - 1)
    monkeypatch.setattr(bundles, "MOST_BYTES", 2**20 - 2**12)
    (tmp_path / "a.txt").write_bytes(b"x" * (2**20 - 2**12))
    opened(str(tmp_path / "a.txt"), tmp_path)
    (tmp_path / "b.txt").write_bytes(b"x" * 2**20)
    with pytest.raises(UserError, match=r"b\.txt: too large"):
        pack(str(tmp_path / "b.txt"), tmp_path)


def test_the_name_at_the_receivers_is_plain(tmp_path):
    for name, plain in (("x.y", "x.y"), ("../a b", "a-b"), ("ä", "bundle"), ("..", "bundle"), ("q" * 200, "q" * 80)):
        (tmp_path / "a.txt").write_text("x")
        assert bundles._zip(name, {}, [tmp_path / "a.txt"], tmp_path / "x.zip").name == plain
