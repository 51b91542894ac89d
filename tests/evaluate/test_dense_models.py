"""Our backbones under torchvision's heads are torchvision's own networks; what is frozen stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from swav_ray.errors import UserError
from swav_ray.evaluate.dense_models import detector, dilate, loss_of, optimizer_of, segmenter
from swav_ray.evaluate.dense_protocol import Detection, Segmentation
from swav_ray.swav import small_conv
from swav_ray.swav.resnet import Bottleneck, ResNet, resnet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NARROW = {"channels": 16, "box_head": 16, "box_samples": 16, "sizes": (64,), "anchor_sizes": (8, 16, 32, 64, 128)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backbone(arch: str = "resnet10", width: int = 8) -> ResNet:
    torch.manual_seed(3)
    return resnet(arch, base_width=width)


def pictures(count: int = 2, side: int = 64) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.rand(3, side, side, generator=g) for _ in range(count)]


def boxes(masks: bool = False) -> list[dict[str, Tensor]]:
    target = {"boxes": torch.tensor([[4.0, 4, 40, 36]]), "labels": torch.tensor([2])}
    if masks:
        target["masks"] = torch.zeros(1, 64, 64, dtype=torch.uint8)
        target["masks"][:, 4:36, 4:40] = 1
    return [target, copy.deepcopy(target)]


def test_a_mask_rcnn_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published settings with a ResNet-18: the same names behind the trunk, losses and detections."""
    monkeypatch.setattr(small_conv, "MOST_PIXELS", 0)  # which rounds in another order than torchvision's convolutions
    theirs = MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5),
        num_classes=4,
        min_size=64,
        image_std=list(STD),
        box_batch_size_per_image=16,
    )
    ours = detector(backbone("resnet18", 64), 3, Detection(head="mask-rcnn", sizes=(64,), box_samples=16), MEAN, STD)
    state = theirs.state_dict()
    names = {name: name.replace("backbone.trunk.backbone.", "backbone.body.") for name in ours.state_dict()}
    assert set(names.values()) == set(state)
    ours.load_state_dict({name: state[other] for name, other in names.items()})
    losses = []
    for model in (ours, theirs):
        model.train().roi_heads.detections_per_img = 3  # each is a mask, the dearest of all
        torch.manual_seed(0)
        losses.append(model(pictures(), boxes(masks=True)))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], msg=name)
    with torch.no_grad():
        found, wanted = ours.eval()(pictures(1))[0], theirs.eval()(pictures(1))[0]
    assert len(found["boxes"]) and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_dilated_as_torchvisions(layers: int) -> None:
    """A ResNet-50 of narrow stages: the same maps, so the same strides, dilations and paddings."""
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 2, 3, 2], replace_stride_with_dilation=[False, layers > 1, layers > 0]
    ).eval()
    ours = ResNet(Bottleneck, (1, 2, 3, 2)).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    dilate(ours, layers)
    image = pictures(1)[0][None]
    with torch.no_grad():
        x = ours.maxpool(ours.relu(ours.bn1(ours.conv1(image))))
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x, y = getattr(ours, name)(x), getattr(theirs, name)(y)
            torch.testing.assert_close(x, y)
    assert x.shape[-1] == {0: 2, 1: 4, 2: 8}[layers]


def test_basic_blocks_dilate_too() -> None:
    """What a dilated network computes at every second pixel is what the strided one computes."""
    strided, dilated = backbone().eval(), backbone().eval()
    dilate(dilated, 2)
    dilated.load_state_dict(strided.state_dict())
    image = pictures(1)[0][None]
    with torch.no_grad():
        for each in (strided, dilated):
            each.maps = each.maxpool(each.relu(each.bn1(each.conv1(image))))  # type: ignore[assignment]
            each.maps = each.layer4(each.layer3(each.layer2(each.layer1(each.maps))))  # type: ignore[assignment]
    torch.testing.assert_close(dilated.maps[..., ::4, ::4], strided.maps)


@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
def test_segmenters(head: str) -> None:
    protocol = Segmentation(head=head, crop=64, size=64)
    model = segmenter(backbone(), 3, protocol).train()
    scores = model(torch.stack(pictures()))
    assert {key: tuple(value.shape) for key, value in scores.items()} == {"out": (2, 4, 64, 64), "aux": (2, 4, 64, 64)}
    groups = optimizer_of(model, protocol).param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.02, 0.2])
    assert "aux" not in segmenter(backbone(), 3, Segmentation(head=head, aux_weight=0))(torch.stack(pictures()))


def test_the_segmenters_loss() -> None:
    """The mean over labelled pixels of all images, and that of the second classifier at its weight; none labelled: 0."""
    protocol = Segmentation(crop=64, size=64)
    model = segmenter(backbone(), 3, protocol).eval()
    maps = torch.randint(4, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    maps[:, :20] = 255
    targets = [{"map": each} for each in maps]
    scores = model(torch.stack(pictures()))
    out, aux = (nn.functional.cross_entropy(scores[name], maps, ignore_index=255) for name in ("out", "aux"))
    torch.testing.assert_close(loss_of(model, protocol, pictures(), targets), out + 0.5 * aux)
    assert loss_of(model, protocol, pictures(), [{"map": torch.full((64, 64), 255)}] * 2) == 0


@pytest.mark.parametrize(("frozen", "norm"), [("none", "live"), ("none", "frozen"), ("layer1", "live"), ("all", "live")])
def test_what_is_frozen_stays(frozen: str, norm: str) -> None:
    protocol = Detection(frozen=frozen, batch_norm=norm, **NARROW)
    model = detector(backbone(), 3, protocol, MEAN, STD).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizer_of(model, protocol)
    loss_of(model, protocol, pictures(), boxes()).backward()
    optimizer.step()
    inside = "backbone.trunk.backbone."
    for name, value in model.state_dict().items():
        if name.startswith(inside):
            short = name.removeprefix(inside)
            is_norm = "bn" in short or "downsample.1" in short
            still = frozen == "all" or (norm == "frozen" and is_norm)
            still = still or (frozen == "layer1" and short.startswith(("conv1.", "bn1.", "layer1.")))
            assert torch.equal(value, before[name]) == still, name
    assert not torch.equal(model.rpn.head.cls_logits.weight, before["rpn.head.cls_logits.weight"])


def test_heads_depend_on_the_seed_alone() -> None:
    one, two, other = (detector(backbone(), 3, Detection(seed=seed, **NARROW), MEAN, STD) for seed in (1, 1, 2))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.roi_heads.box_head.fc6.weight, other.roi_heads.box_head.fc6.weight)


def test_any_other_network_is_refused() -> None:
    with pytest.raises(UserError, match="need a ResNet of this package; Linear has no conv1"):
        segmenter(nn.Linear(2, 2), 3, Segmentation())
