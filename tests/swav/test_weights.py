"""Every file somebody may hand in: the known ones give the same features as their own library, hostile ones one line."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from swav_ray.errors import UserError
from swav_ray.swav.resnet import Bottleneck, resnet
from swav_ray.swav.weights import _design, _trunk, read_backbone
from tests.swav.reference_files import Widened, saved, shaken, training_file, trunk_and_heads

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return shaken(Widened(1))


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    return dict(shaken(resnet("resnet10", base_width=4)).state_dict())


@torch.no_grad()
def assert_same_features(content: bytes, peer: nn.Module, *, close: float = 0) -> None:
    backbone, _ = read_backbone(content, "file")
    assert not backbone.training and all(value.dtype == torch.float32 for value in backbone.parameters())
    torch.testing.assert_close(backbone(IMAGES), peer(IMAGES), rtol=close, atol=close)


# --- the reference's


def test_the_test_writes_the_reference_key_set(resnet50: nn.Module) -> None:
    """28.355 M parameters in 166 tensors, as SWAV_FACTS 2 counted by running the reference."""
    state = trunk_and_heads(resnet50)
    learnt = {key: value for key, value in state.items() if "running" not in key and "tracked" not in key}
    assert len(learnt) == 166 and round(sum(value.numel() for value in learnt.values()) / 1e6, 3) == 28.355
    assert {key.split(".")[1] for key in state} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "projection_head", "prototypes")
    }


def test_a_training_file_of_the_reference(resnet50: nn.Module) -> None:
    assert_same_features(saved(training_file(trunk_and_heads(resnet50))), resnet50)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pretrained_file_of_the_reference(resnet50: nn.Module, zipped: bool) -> None:
    """Flat; the published ones are in the format before PyTorch 1.6."""
    assert_same_features(saved(trunk_and_heads(resnet50), zipped=zipped), resnet50)


def test_several_prototype_heads_are_left_out_too(resnet50: nn.Module) -> None:
    state = trunk_and_heads(resnet50)
    state["module.prototypes.prototypes0.weight"] = state.pop("module.prototypes.weight")
    assert_same_features(saved(state), resnet50)


def test_the_reference_w2() -> None:
    peer = shaken(Widened(2))
    state = trunk_and_heads(peer, 2)
    learnt = sum(value.numel() for key, value in state.items() if "running" not in key and "tracked" not in key)
    assert round(learnt / 1e6, 2) == 128.92
    assert_same_features(saved(state), peer)


@pytest.mark.parametrize("widen", [4, 5])
def test_shapes_of_w4_and_w5(widen: int) -> None:
    """Without their gigabytes: names and shapes are those of our network of that width, one for one."""
    with torch.device("meta"):
        there = Widened(widen).state_dict()
        design = _design(there, "file")
        ours = resnet("resnet50", base_width=64 * widen)
    assert design == (Bottleneck, (3, 4, 6, 3), 64 * widen, "imagenet")
    assert {key: value.shape for key, value in there.items()} == {key: value.shape for key, value in ours.state_dict().items()}


# --- other libraries'


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision_files_with_their_classifier(arch: str) -> None:
    peer = shaken(torchvision.models.get_model(arch))
    state = OrderedDict(peer.state_dict())
    peer.fc = nn.Identity()
    assert_same_features(saved(state), peer)
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}  # as before PyTorch 0.4.1
    assert_same_features(saved(old, zipped=False), peer)


def test_timm_files() -> None:
    timm = pytest.importorskip("timm")
    peer = shaken(timm.create_model("resnet26", num_classes=7))  # of a depth that has no name here
    state = {key: value.clone() for key, value in peer.state_dict().items()}
    peer.reset_classifier(0)
    assert_same_features(safetensors.torch.save(state), peer)
    assert_same_features(saved({"epoch": 3, "arch": "resnet26", "state_dict": state}), peer)


def test_a_checkpoint_of_ours_and_half_precision(tiny: dict[str, torch.Tensor]) -> None:
    peer = resnet("resnet10", base_width=4).eval()
    peer.load_state_dict(tiny)
    model = {f"backbone.{key}": value for key, value in tiny.items()} | {"projector.0.weight": torch.ones(3, 3)}
    assert_same_features(saved({"model": model, "queue": None, "row": 3}), peer)
    compiled = {f"module._orig_mod.{key}": value for key, value in tiny.items()}
    assert_same_features(saved(compiled), peer)
    half = {key: value.half() if value.is_floating_point() else value for key, value in tiny.items()}
    assert_same_features(safetensors.torch.save(half), peer, close=2e-2)
    assert_same_features(saved({key: value.double() for key, value in tiny.items()}), peer)


def test_the_small_stem_is_found() -> None:
    peer = shaken(resnet("resnet10", base_width=4, stem="small"))
    assert_same_features(saved(peer.state_dict()), peer)


def test_notes_of_a_safetensors_file_come_along(tiny: dict[str, torch.Tensor]) -> None:
    assert read_backbone(safetensors.torch.save(tiny, {"size": "28"}), "file")[1] == {"size": "28"}


# --- foreign


def refused(content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read_backbone(content, "some/file")
    message = str(caught.value)
    assert message.startswith("some/file: ") and len(message.splitlines()) == 1 and len(message) < 500
    assert (
        message.isprintable() and "weights_only" not in message and "trust" not in message
    )  # no advice of torch's to open it all the same
    return message


def other(state: dict[str, torch.Tensor], **changes: torch.Tensor) -> bytes:
    return saved(state | {key.replace("__", "."): value for key, value in changes.items()})


def test_other_networks_are_named(tiny: dict[str, torch.Tensor]) -> None:
    get = torchvision.models.get_model
    assert "holds no ResNet" in refused(saved(get("squeezenet1_1").state_dict()))
    assert "does not fit a resnet50 of width 64" in refused(saved(get("wide_resnet50_2").state_dict()))
    deep = {key: value for key, value in tiny.items() if key != "conv1.weight"} | {"conv1.0.weight": torch.ones(4, 3, 3, 3)}
    assert "its stem is not one convolution" in refused(saved(deep))
    assert "known stems are 7x7 and 3x3" in refused(other(tiny, conv1__weight=torch.ones(4, 1, 7, 7)))
    assert "attnpool" in refused(other(tiny, attnpool__weight=torch.ones(3)))
    assert "layer2 has blocks ['0', '5']" in refused(other(tiny, layer2__5__conv1__weight=torch.ones(3)))
    twice = {f"encoder_{which}.{key}": value for which in "qk" for key, value in tiny.items()}
    assert "several ResNets (encoder_q., encoder_k.)" in refused(saved(twice))
    assert "holds no ResNet" in refused(saved({"epoch": 3, "state_dict": {"linear.weight": torch.ones(3)}}))
    assert "holds no ResNet" in refused(saved([torch.ones(3)]))
    missing = {key: value for key, value in tiny.items() if key != "layer4.0.bn2.bias"}
    assert "layer4.0.bn2.bias" in refused(saved(missing))


def test_names_cannot_write_to_the_terminal(tiny: dict[str, torch.Tensor]) -> None:
    refused(saved(tiny | {"layer1.0.\x1b[2J": torch.ones(3), "layer1.0.extra": torch.ones(3)}))
    refused(saved({"layer1.0.\x1b[2J": torch.tensor(torch.nan)} | tiny | {"bn1.bias": torch.tensor(torch.nan)}))


def test_numbers_that_are_none(tiny: dict[str, torch.Tensor]) -> None:
    assert "holds int64, not real numbers" in refused(other(tiny, conv1__weight=tiny["conv1.weight"].long()))
    assert "bn1.bias is not finite" in refused(other(tiny, bn1__bias=torch.full((4,), torch.nan)))
    for lost in (tiny["bn1.bias"].to("meta"), tiny["bn1.bias"].to_sparse()):
        assert "bn1.bias" in refused(other(tiny, bn1__bias=lost))


@pytest.mark.parametrize("content", [b"", b"x", b"PNG, say" * 9, b"\x08\x07 onnx", b"PK", b"\x80", b"\x80\x02", b"\0" * 99])
def test_no_weights_at_all(content: bytes) -> None:
    refused(content)


# --- hostile


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path, tiny: dict[str, torch.Tensor]) -> None:
    sprung = tmp_path / "sprung"
    payload = {"state_dict": tiny, "optimizer": Trap(sprung)}
    pickle.loads(pickle.dumps(payload))
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    for content in (saved(payload), saved(payload, zipped=False), pickle.dumps(payload), pickle.dumps(payload, protocol=2)):
        assert "nothing in it was run" in refused(content)
        assert not sprung.exists()


def test_the_call_is_named(tmp_path: Path) -> None:
    assert "calls getattr," in refused(saved(Trap(tmp_path / "sprung")))  # by which the pickle gets at Path.touch
    numpy = pickle.dumps({"model": {"stem.conv1.weight": np.ones(3)}, "__author__": "x"}, protocol=2)  # detectron2's
    assert "_reconstruct" in refused(numpy)


def test_truncated_files(tiny: dict[str, torch.Tensor]) -> None:
    for whole in (saved(tiny), saved(tiny, zipped=False), safetensors.torch.save(tiny)):
        for kept in (0.001, 0.1, 0.5, 0.99):
            refused(whole[: int(len(whole) * kept)])
        refused(whole[:-1])


def test_damaged_bytes_never_raise_anything_else(tiny: dict[str, torch.Tensor]) -> None:
    """Random bytes changed, most of them in the parts that describe the rest."""
    draws = random.Random(0)
    whole = [saved(tiny), saved(tiny, zipped=False), safetensors.torch.save(tiny)]
    for content in whole * 40:
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draws.choice([draws.randrange(3000), draws.randrange(len(damaged)), -draws.randrange(1, 3000)])] = (
                draws.randrange(256)
            )
        try:
            read_backbone(bytes(damaged), "file")
        except UserError as error:
            assert len(str(error).splitlines()) == 1


def lying(header: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_lying_safetensors() -> None:
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for content in (
        lying({"a": row}),  # promises bytes that are not there
        lying({"a": {**row, "shape": [10**12]}}, b"12345678"),
        lying({"a": {**row, "data_offsets": [8, 0]}}, b"12345678"),
        lying({"a": {**row, "data_offsets": [0, 2**63]}}, b"12345678"),
        lying({"a": row, "b": row}, b"12345678"),  # both the same bytes
        lying({"a": row}, b"12345678", length=2**62),
        lying({"a": {**row, "shape": [-1, -2]}}, b"12345678"),
        lying({"a": {"dtype": "X"}}),
    ):
        assert "not a whole safetensors file" in refused(content)


def rezipped(content: bytes, compression: int, **changes: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return out.getvalue()


def test_bombs_in_an_archive(tiny: dict[str, torch.Tensor]) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in tiny.items()}
    assert "compressed, which torch.save never does" in refused(rezipped(saved(zeros), zipfile.ZIP_DEFLATED))
    read_backbone(rezipped(saved(tiny), zipfile.ZIP_STORED), "file")  # only the compression was the matter
    overlapping = bytearray(saved(tiny))
    sizes = overlapping.rindex(b"PK\x01\x02") + 20  # of the last entry: compressed and not
    overlapping[sizes : sizes + 8] = (2**31 - 1).to_bytes(4, "little") * 2
    refused(bytes(overlapping))


def test_a_small_file_cannot_claim_a_huge_network(tiny: dict[str, torch.Tensor]) -> None:
    """Tensors of stride 0: a million channels out of one number."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in resnet("resnet10", base_width=1 << 20).state_dict().items()}
    huge = {key: torch.ones(1).expand(shape) for key, shape in shapes.items() if shape}
    assert "claim more bytes than the file has" in refused(saved(huge))


def test_siblings_of_a_trunk_are_not_mixed_in(tiny: dict[str, torch.Tensor]) -> None:
    state = {f"encoder.{key}": value for key, value in tiny.items()} | {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    assert _trunk(state, "file").keys() == tiny.keys()
