"""Each format is opened again by its own library, by the very lines that its card gives, and gives the same features."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import yaml
from torch import Tensor, nn

from swav_ray import load_backbone
from swav_ray.errors import UserError
from swav_ray.export import export
from swav_ray.export.formats import FORMATS, misfit
from swav_ray.swav.resnet import resnet
from swav_ray.train.backbones import load
from tests.exported import untrained_run
from tests.swav.reference_files import Widened, saved, shaken, training_file, trunk_and_heads

IMAGES = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))  # neither the batch nor the size exported with
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "safetensors": "safetensors", "onnx": "onnxruntime"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Backbones by what libraries have them: torchvision's ResNet-18, one of a depth without a name, the demo's kind."""
    place = str(tmp_path_factory.mktemp("runs"))
    return {
        "resnet18": untrained_run(place, "resnet18", **{"probe.resize": 33}),
        "resnet10": untrained_run(place, "resnet10", **{"backbone.arch": "resnet10"}),
        "small": untrained_run(
            place, "small", **{"backbone.arch": "resnet10", "backbone.base_width": 4, "backbone.stem": "small"}
        ),
        "own": untrained_run(place, "own", **{"backbone.arch": "tests.test_export:own_backbone"}),
    }


class Own(nn.Module):
    """A backbone of the user's own, with weights that share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.twice = nn.Sequential(self.conv)
        self.num_features = 5

    def forward(self, images: Tensor) -> Tensor:
        return self.twice(images).mean((2, 3))


def own_backbone() -> nn.Module:
    return Own()


def code_in(card: Path, language: str = "python") -> str:
    """The one block of code of a language in a card's section on use."""
    section = card.read_text().split("## Use")[1].split("\n## ")[0]
    (block,) = re.findall(f"```{language}\n(.*?)```", section, flags=re.DOTALL)
    return str(block)


@torch.no_grad()
def features_by_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"images": IMAGES}
    exec(code_in(folder / "README.md"), names)
    return torch.as_tensor(names["features"])


@pytest.mark.parametrize(
    ("run", "format"),
    [
        *(("resnet18", format) for format in LIBRARIES),
        *(("resnet10", format) for format in LIBRARIES),
        *((run, format) for run in ("small", "own") for format in ("safetensors", "onnx")),
    ],
)
def test_its_own_library_opens_it(
    run: str, format: str, runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(LIBRARIES[format])
    written = export(runs[run], str(tmp_path / "out"), format)
    assert sorted(Path(address).name for address in written) == sorted(path.name for path in (tmp_path / "out").iterdir())
    with torch.no_grad():
        ours = load_backbone(runs[run])(IMAGES)
    torch.testing.assert_close(features_by_the_card(tmp_path / "out", monkeypatch), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["torchvision", "timm", "safetensors"])
def test_we_open_our_exports_folder_or_file_and_know_what_they_want(format: str, runs: dict[str, str], tmp_path: Path) -> None:
    export(runs["resnet18"], str(tmp_path), format)
    (file,) = tmp_path.glob("model.*")
    for source in (tmp_path, file):
        loaded = load(str(source))
        with torch.no_grad():
            assert torch.equal(loaded.backbone(IMAGES), load_backbone(runs["resnet18"])(IMAGES))
        if format != "torchvision":  # whose files hold nothing but tensors
            assert loaded.view == load(runs["resnet18"]).view and loaded.view.size == 28


def test_from_and_to_s3(s3: str, tmp_path: Path) -> None:
    run = untrained_run(f"{s3}/runs", "small", **{"backbone.base_width": 4})
    assert export(run, f"{s3}/out", "safetensors") == [f"{s3}/out/model.safetensors", f"{s3}/out/README.md"]
    with torch.no_grad():
        assert torch.equal(load_backbone(f"{s3}/out")(IMAGES), load_backbone(run)(IMAGES))
        assert torch.equal(load_backbone(f"{s3}/out/model.safetensors")(IMAGES), load_backbone(run)(IMAGES))
    with pytest.raises(UserError, match="no file of weights is there"):
        load_backbone(f"{s3}/out/other.pth")


def test_a_file_at_the_root_is_not_looked_for_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swav-ray-nowhere.pth").write_bytes(b"any")
    with pytest.raises(UserError, match="no file of weights is there"):
        load_backbone("/swav-ray-nowhere.pth")


def test_timm_resizes_as_the_run_did(runs: dict[str, str], tmp_path: Path) -> None:
    data = pytest.importorskip("timm").data
    timm = pytest.importorskip("timm")
    export(runs["resnet18"], str(tmp_path), "timm")
    wanted = data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    view = load(runs["resnet18"]).view
    assert tuple(wanted["input_size"]) == (3, view.size, view.size)
    assert (tuple(wanted["mean"]), tuple(wanted["std"])) == (view.mean, view.std)
    steps = data.create_transform(**wanted, is_training=False).transforms
    assert (steps[0].size, tuple(steps[1].size)) == (view.resize, (view.size, view.size)) == (33, (28, 28))


# --- detectron2, which does not install here


def detectron2_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of detectron2's ResNet, written down from its documentation: stem, res2 to res5, norms inside convs."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{name}.norm.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")})

    conv("stem.conv1", 64, 3, 7, 7)
    inputs = 64
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
        inner, outer = 64 << stage, (64 << stage) * (1 if depth == 18 else 4)
        for index in range(blocks):
            name = f"res{stage + 2}.{index}"
            if inputs != outer:
                conv(f"{name}.shortcut", outer, inputs, 1, 1)
            if depth == 18:
                conv(f"{name}.conv1", inner, inputs, 3, 3)
                conv(f"{name}.conv2", inner, inner, 3, 3)
            else:
                conv(f"{name}.conv1", inner, inputs, 1, 1)
                conv(f"{name}.conv2", inner, inner, 3, 3)
                conv(f"{name}.conv3", outer, inner, 1, 1)
            inputs = outer
    return shapes


def detectron2_features(arrays: dict[str, np.ndarray], images: Tensor) -> Tensor:
    """Its forward pass over the names alone: the last map of a ResNet, averaged."""

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        weight = torch.from_numpy(arrays[f"{name}.weight"])
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        norm = [torch.from_numpy(arrays[f"{name}.norm.{part}"]) for part in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(x, *norm, training=False)

    x = nn.functional.max_pool2d(conv(images, "stem.conv1", 2).relu(), 3, 2, 1)
    for block in sorted({key.rsplit(".conv", 1)[0] for key in arrays if key.startswith("res") and ".conv" in key}):
        stride = 2 if block.endswith(".0") and not block.startswith("res2") else 1
        last = 3 if f"{block}.conv3.weight" in arrays else 2
        strided = last - 1  # the 3x3 of a bottleneck (STRIDE_IN_1X1 false), the first of two otherwise
        y = x
        for index in range(1, last + 1):
            y = conv(y, f"{block}.conv{index}", stride if index == strided else 1)
            y = y.relu() if index < last else y
        x = (y + (conv(x, f"{block}.shortcut", stride) if f"{block}.shortcut.weight" in arrays else x)).relu()
    return x.mean((2, 3))


@pytest.mark.parametrize("depth", [18, 50])
def test_detectron2_finds_its_names_and_shapes(depth: int, runs: dict[str, str], tmp_path: Path) -> None:
    source = runs["resnet18"]
    if depth == 50:
        source = str(tmp_path / "swav.pth.tar")
        Path(source).write_bytes(saved(trunk_and_heads(shaken(Widened(1)))))
    export(source, str(tmp_path / "out"), "detectron2")
    content = pickle.loads((tmp_path / "out" / "model.pkl").read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"} and content["matching_heuristics"] is True
    arrays = content["model"]
    assert {key: value.shape for key, value in arrays.items()} == detectron2_shapes(depth)
    assert all(type(value) is np.ndarray and value.dtype == np.float32 for value in arrays.values())
    with torch.no_grad():
        ours = load_backbone(source)(IMAGES)
        torch.testing.assert_close(detectron2_features(arrays, IMAGES), ours, rtol=1e-5, atol=1e-5)
    wanted = yaml.safe_load(code_in(tmp_path / "out" / "README.md", "yaml"))
    assert wanted["MODEL"]["RESNETS"] == {
        "DEPTH": depth,
        "STRIDE_IN_1X1": False,
        "RES2_OUT_CHANNELS": 64 if depth == 18 else 256,
    }
    assert wanted["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53] and wanted["INPUT"] == {"FORMAT": "RGB"}


def test_detectron2_takes_wide_bottlenecks(tmp_path: Path) -> None:
    (tmp_path / "wide.pth").write_bytes(saved(resnet("resnet50", base_width=128).half().state_dict()))
    export(str(tmp_path / "wide.pth"), str(tmp_path / "out"), "detectron2")
    wanted = yaml.safe_load(code_in(tmp_path / "out" / "README.md", "yaml"))["MODEL"]["RESNETS"]
    assert (wanted["WIDTH_PER_GROUP"], wanted["STEM_OUT_CHANNELS"], wanted["RES2_OUT_CHANNELS"]) == (128, 128, 512)
    arrays = pickle.loads((tmp_path / "out" / "model.pkl").read_bytes())["model"]
    assert arrays["res2.0.conv1.weight"].shape == (128, 128, 1, 1) and arrays["res2.0.conv3.weight"].shape == (512, 128, 1, 1)


# --- what does not fit


@pytest.mark.parametrize(
    ("run", "format", "what"),
    [
        *(("small", format, "resnet10 of width 4 with the small stem") for format in ("torchvision", "timm", "detectron2")),
        ("own", "timm", "Own"),
        ("resnet10", "detectron2", "resnet10 of width 64 with the imagenet stem"),
    ],
)
def test_what_does_not_fit_is_told_what_does(run: str, format: str, what: str, runs: dict[str, str], tmp_path: Path) -> None:
    fitting = "torchvision, timm, safetensors, onnx" if run == "resnet10" else "safetensors, onnx"
    with pytest.raises(UserError, match=f"{what} is not one of {format}'s ResNets; formats that fit are {fitting}$"):
        export(runs[run], str(tmp_path / "out"), format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["torchvision", "timm", "detectron2"])
def test_depth_width_and_stem_each_decide(format: str) -> None:
    with torch.device("meta"):
        assert not misfit(resnet("resnet18"), format)
        assert misfit(resnet("resnet18", stem="small"), format)
        assert misfit(resnet("resnet18", base_width=128), format)
        assert bool(misfit(resnet("resnet50", base_width=128), format)) == (format != "detectron2")
        assert bool(misfit(resnet("resnet10"), format)) == (format == "detectron2")


def test_a_missing_package_is_named(runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--format onnx: onnxscript is not installed; pip install 'swav-ray\[onnx\]'"):
        export(runs["small"], str(tmp_path / "out"), "onnx")
    assert not (tmp_path / "out").exists()


def test_pickles_for_detectron2_are_not_opened_again(runs: dict[str, str], tmp_path: Path) -> None:
    export(runs["resnet18"], str(tmp_path), "detectron2")
    with pytest.raises(UserError, match=r"it is a pickle that calls .*; nothing in it was run"):
        load_backbone(str(tmp_path / "model.pkl"))


def test_all_formats_are_in_the_help() -> None:
    from swav_ray.cli.weights import export as command

    shown = str(command.__annotations__["format"])
    assert all(format in shown for format in FORMATS)


# --- hostile runs and notes


def test_a_run_whose_checkpoint_is_no_weights(tmp_path: Path) -> None:
    """With a manifest that vouches for it."""
    from swav_ray.data.storage import Storage
    from swav_ray.train.checkpoint import Checkpoints
    from tests.swav.test_weights import Trap

    run = untrained_run(str(tmp_path), "run", **{"backbone.base_width": 4})
    checkpoints = Checkpoints(Storage(run) / "checkpoints")
    checkpoints.save(2000, {"model": Trap(tmp_path / "sprung")}, {})
    with pytest.raises(UserError, match=r"it is a pickle that calls .*; nothing in it was run"):
        load_backbone(run)
    assert not (tmp_path / "sprung").exists()
    checkpoints.save(2001, {"model": {"backbone.conv1.weight": torch.ones(3)}}, {})
    with pytest.raises(UserError, match=r"its checkpoint does not fit its config.yaml"):
        load_backbone(run)


@pytest.mark.parametrize("note", ["x", "[]", '{"size": 1000000}', '{"size": -3}', '{"std": [0, 0, 0]}', '{"other": 1}'])
def test_notes_that_lie(note: str, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in resnet("resnet10", base_width=4).state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"swav_ray.view": note})
    with pytest.raises(UserError, match=r"its note swav_ray.view is not one of ours"):
        load_backbone(str(tmp_path))


def test_a_file_of_the_reference_becomes_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    peer = shaken(Widened(1))
    (tmp_path / "swav_800ep_pretrain.pth.tar").write_bytes(saved(training_file(trunk_and_heads(peer))))
    export(str(tmp_path / "swav_800ep_pretrain.pth.tar"), str(tmp_path / "out"), "timm")
    with torch.no_grad():
        torch.testing.assert_close(features_by_the_card(tmp_path / "out", monkeypatch), peer(IMAGES), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.875
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CC BY-NC 4.0" in card and "library_name: timm\n" in card
