"""Our ResNets are torchvision's, at any width; plus the stem for small images."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from swav_ray.swav.resnet import ARCHITECTURES, resnet

WITHOUT_PEER = "resnet10"


def shake(model: nn.Module) -> None:
    """Give every parameter and buffer, batch norm's too, a value of its own."""
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.01 * torch.randn(value.shape, generator=generator))


def torchvision_state(arch: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """torchvision's network, and what it would hand over: all but the classifier."""
    peer = pytest.importorskip("torchvision").models.get_model(arch)
    shake(peer)
    peer.fc = nn.Identity()
    return peer, peer.state_dict()


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {WITHOUT_PEER}))
def test_torchvision_weights_load_strictly_and_give_the_same_features(arch: str) -> None:
    peer, state = torchvision_state(arch)
    ours = resnet(arch)
    ours.load_state_dict(state, strict=True)
    assert list(ours.state_dict()) == list(state)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    ours, peer = ours.double(), peer.double()  # in float32 small convolutions round in another order (test_small_conv.py)
    for training in (True, False):  # training first, which also moves the running statistics
        features = ours.train(training)(images)
        assert features.shape == (2, ours.num_features)
        torch.testing.assert_close(features, peer.train(training)(images), rtol=1e-9, atol=1e-9)


def test_init_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = resnet("resnet18")
    conv = model.layer3[0].conv1.weight
    assert conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # Kaiming, fan out
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # the last of each block too: no zero_init_residual
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize(("arch", "num_features"), [("resnet10", 512), ("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("widen", [1, 2])
def test_features_widen_with_the_stem(arch: str, num_features: int, widen: int) -> None:
    with torch.device("meta"):
        model = resnet(arch, base_width=64 * widen)
        assert model.num_features == num_features * widen
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, num_features * widen)


NARROW = """
import torch
from swav_ray.swav.resnet import resnet

torch.manual_seed(0)
narrow, exact = (resnet("resnet10", base_width=WIDTH, stem="small") for _ in range(2))
exact.load_state_dict(narrow.state_dict())
narrow, exact = narrow.to(memory_format=torch.channels_last).layer2, exact.double().layer2
for _ in range(4):
    images = torch.randn(128, WIDTH, 56, 56).to(memory_format=torch.channels_last)
    for net, pixels in ((narrow, images), (exact, images.double())):
        net.zero_grad()
        net(pixels).square().mean().backward()
    for mine, true in zip(narrow.parameters(), exact.parameters()):
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=1e-3, atol=1e-4)
print("equal")
"""


@pytest.mark.parametrize("width", [4, 8])
def test_narrow_networks_train_right_on_a_cpu(width: int) -> None:
    """In a process of its own: torch's own layer would end it (see `_StridedPointwise`)."""
    code = NARROW.replace("WIDTH", str(width))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


def test_small_stem_keeps_the_resolution() -> None:
    model = resnet("resnet10", base_width=8, stem="small")
    images = torch.randn(2, 3, 16, 16)
    assert model.conv1.weight.shape == (8, 3, 3, 3)
    assert model.maxpool(model.conv1(images)).shape == (2, 8, 16, 16)
    assert model(images).shape == (2, model.num_features) == (2, 64)
    assert list(model.state_dict()) == list(resnet("resnet10", base_width=8).state_dict())


def test_imagenet_stem_quarters_the_resolution() -> None:
    model = resnet("resnet10", base_width=8)
    assert model.maxpool(model.conv1(torch.randn(2, 3, 64, 64))).shape == (2, 8, 16, 16)


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny"):
        resnet("resnet10", stem="tiny")
