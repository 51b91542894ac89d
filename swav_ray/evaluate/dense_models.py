"""torchvision's detection and segmentation networks on a ResNet of ours.

Shapes: N images, H and W pixels, C classes without the background, which is class 0.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swav_ray.errors import UserError
from swav_ray.evaluate.dense_metrics import UNLABELLED
from swav_ray.evaluate.dense_protocol import Dense, Detection, Segmentation
from swav_ray.evaluate.finetune import LAYERS, STEM, frozen_parts
from swav_ray.swav.resnet import ResNet

RATIOS = (0.5, 1.0, 2.0)  # heights over widths of anchors
AUX_RATE = 10  # the second classifier learns so many times as fast, as in torchvision's recipe


class Trunk(nn.Module):
    """Images to the maps of some of a ResNet's layers, by name. What is frozen stays in eval mode.

    Raises:
        UserError: the backbone is no ResNet of four layers.
    """

    def __init__(self, backbone: nn.Module, layers: dict[str, str], protocol: Dense) -> None:
        super().__init__()
        missing = [name for name in (*STEM, *LAYERS) if not hasattr(backbone, name)]
        if not isinstance(backbone, ResNet):
            why = f"has no {missing[0]}" if missing else "is another module"
            raise UserError(f"detection and segmentation need a ResNet of this package; {type(backbone).__name__} {why}")
        self.backbone, self.layers = backbone, layers
        self._still = frozen_parts(backbone, protocol.frozen)
        if protocol.batch_norm == "frozen":
            self._still += [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
        for module in self._still:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        maps = OrderedDict[str, Tensor]()
        for layer in LAYERS:
            x = getattr(net, layer)(x)
            if layer in self.layers:
                maps[self.layers[layer]] = x
        return maps


class Pyramid(nn.Module):
    """Images to a feature pyramid of five levels, `0` to `3` and `pool`."""

    def __init__(self, trunk: Trunk, channels: int) -> None:
        super().__init__()
        self.trunk, self.out_channels = trunk, channels
        widths = [trunk.backbone.num_features // 2 ** (3 - level) for level in range(4)]
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.trunk(images))


Rgb = tuple[float, float, float]


def detector(backbone: nn.Module, num_classes: int, protocol: Detection, mean: Rgb, std: Rgb) -> FasterRCNN:
    """A Faster or Mask R-CNN for lists of images ``(3, H, W)`` in [0, 1], which it resizes and normalises itself.

    Args:
        num_classes: without the background.

    Raises:
        UserError: the backbone is no ResNet of this package.
    """
    trunk = Trunk(backbone, {layer: str(level) for level, layer in enumerate(LAYERS)}, protocol)
    width, channels = protocol.box_head, protocol.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(protocol.seed)
        parts = {
            "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in protocol.anchor_sizes), (RATIOS,) * 5),
            "box_head": TwoMLPHead(channels * 7 * 7, width),
            "box_predictor": FastRCNNPredictor(width, num_classes + 1),
            "box_batch_size_per_image": protocol.box_samples,
            "min_size": protocol.sizes,
            "max_size": protocol.max_size,
            "image_mean": list(mean),
            "image_std": list(std),
        }
        pyramid = Pyramid(trunk, channels)
        if protocol.head == "faster-rcnn":
            return FasterRCNN(pyramid, **parts)
        parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes + 1)
        return MaskRCNN(pyramid, **parts)


def segmenter(backbone: nn.Module, num_classes: int, protocol: Segmentation) -> FCN | DeepLabV3:
    """An FCN or DeepLabV3: normalised images ``(N, 3, H, W)`` to scores ``(N, 1 + C, H, W)`` under `out`, and maybe `aux`.

    The backbone is changed: its last layers dilate.

    Raises:
        UserError: the backbone is no ResNet of this package.
    """
    layers = {"layer4": "out"} | ({"layer3": "aux"} if protocol.aux_weight else {})
    trunk = Trunk(backbone, layers, protocol)
    dilate(trunk.backbone, protocol.dilated_layers)
    width, outputs = trunk.backbone.num_features, num_classes + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(protocol.seed)
        aux = FCNHead(width // 2, outputs) if protocol.aux_weight else None
        if protocol.head == "fcn":
            return FCN(trunk, FCNHead(width, outputs), aux)
        return DeepLabV3(trunk, DeepLabHead(width, outputs, protocol.atrous_rates), aux)


def dilate(backbone: ResNet, layers: int) -> None:
    """Let the last so many layers keep the resolution and dilate their 3x3 convolutions instead, as torchvision's do."""
    before = 1
    for layer in LAYERS[len(LAYERS) - layers :]:
        for position, block in enumerate(getattr(backbone, layer)):
            convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
            for convolution in convolutions:
                convolution.stride = (1, 1)
            for index, convolution in enumerate(c for c in convolutions if c.kernel_size == (3, 3)):
                # The layer's first one carried the stride: the step it did not take shows only behind it.
                rate = before if position == index == 0 else before * 2
                convolution.dilation = convolution.padding = (rate, rate)
        before *= 2


def optimizer_of(model: nn.Module, protocol: Dense) -> torch.optim.Optimizer:
    """SGD over what learns; `initial_lr` of a group is its rate before the schedule."""
    faster = [value for name, value in model.named_parameters() if name.startswith("aux_classifier.")]
    rest = [value for name, value in model.named_parameters() if value.requires_grad and not name.startswith("aux_classifier.")]
    groups = [
        {"params": values, "lr": protocol.lr * scale, "initial_lr": protocol.lr * scale}
        for values, scale in ((rest, 1), (faster, AUX_RATE))
        if values
    ]
    return torch.optim.SGD(groups, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def loss_of(model: nn.Module, protocol: Dense, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """The loss of one pass, a mean over its images.

    Args:
        targets: of detection `boxes`, `labels` and maybe `masks` as torchvision takes them; of segmentation `map`
            ``(H, W)`` of classes, 255 where none is given.
    """
    if isinstance(protocol, Detection):
        return torch.stack(list(model(images, targets).values())).sum()
    maps_NHW = torch.stack([target["map"] for target in targets])
    scores = model(torch.stack(images))
    loss = _cross_entropy(scores["out"], maps_NHW)
    if "aux" in scores and isinstance(protocol, Segmentation):
        loss = loss + protocol.aux_weight * _cross_entropy(scores["aux"], maps_NHW)
    return loss


def _cross_entropy(scores: Tensor, maps_NHW: Tensor) -> Tensor:
    """The mean over labelled pixels; 0 where there is none, of which torch's own mean is no number."""
    total = nn.functional.cross_entropy(scores, maps_NHW, ignore_index=UNLABELLED, reduction="sum")
    return total / (maps_NHW != UNLABELLED).sum().clamp_min(1)
