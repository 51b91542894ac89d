"""Files of weights to backbones, without trust in the file: nothing in it is executed, and nothing it claims is believed.

Known are safetensors and PyTorch's own formats, old and new, whoever wrote them: this package, the reference
(`module.` before every name, projection head and prototypes beside the trunk), torchvision, timm. Depth, width and stem
are found from the shapes.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from swav_ray.errors import UserError
from swav_ray.swav.resnet import BasicBlock, Bottleneck, Design, ResNet

HEADS = ("projection_head.", "prototypes.", "projector.", "fc.", "head.")  # what may stand beside a trunk
STEMS: dict[tuple[int, ...], str] = {(3, 7, 7): "imagenet", (3, 3, 3): "small"}
LANDMARK = "layer1.0.conv1.weight"  # its name shows where in a file the trunk is


def read_backbone(content: bytes, source: str) -> tuple[ResNet, dict[str, str]]:
    """The ResNet in a file's bytes, float32 and in eval mode, and the notes of a safetensors file.

    Args:
        source: what to call the file in messages.

    Raises:
        UserError: truncated, foreign or hostile bytes, or no ResNet of this package in them.
    """
    found, notes = _read(content, source)
    state = _trunk(found, source)
    if sum(value.numel() * value.element_size() for value in state.values()) > len(content):
        raise UserError(f"{source}: its tensors claim more bytes than the file has; it is damaged or was made to deceive")
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            if not value.is_floating_point():
                raise UserError(f"{source}: {key} holds {str(value.dtype).removeprefix('torch.')}, not real numbers")
            if not value.isfinite().all():
                raise UserError(f"{source}: {key} is not finite; the training that made it had diverged")
    design = _design(state, source)
    with torch.device("meta"):
        backbone = ResNet(*design)
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        backbone.load_state_dict(floats, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source}: does not fit a {design}: {_short(error)}") from None
    return backbone.eval(), notes


def reason_of(error: Exception) -> str:
    """Why PyTorch would not read a file, without its advice to trust it."""
    text = str(error)
    refused = re.search(r"Unsupported global: GLOBAL ([\w.]+)", text)
    if refused:
        return f"it is a pickle that calls {refused[1]}, which weights have no need of; nothing in it was run"
    if "weights_only" in text:
        _, _, detail = text.partition("WeightsUnpickler error:")
        detail = detail.strip().partition("\n")[0] or "TorchScript, or a format of old"
        return f"it is a pickle of more than weights ({_short(detail)}); nothing in it was run"
    return f"it is damaged, or no file of weights ({_short(error)})"


def _short(error: object) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(character for character in text if character.isprintable())  # a file's names may hold anything


def _read(content: bytes, source: str) -> tuple[Any, dict[str, str]]:
    if content[8:9] == b"{":
        try:
            tensors = safetensors.torch.load(content)
        except Exception as error:  # whatever a lying header makes it raise
            raise UserError(f"{source}: not a whole safetensors file ({_short(error)})") from None
        length = int.from_bytes(content[:8], "little")
        return tensors, dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))
    if not content.startswith((b"PK", b"\x80")):
        what = "is empty" if not content else "is no file of weights"
        raise UserError(f"{source}: {what}; known are safetensors and what torch.save writes")
    try:
        if content.startswith(b"PK"):
            _refuse_bombs(content)
        with warnings.catch_warnings():  # what torch has to say about foreign files comes as the one line below
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), {}
    except Exception as error:  # whatever a foreign file makes torch raise
        raise UserError(f"{source}: {reason_of(error)}") from None


def _refuse_bombs(content: bytes) -> None:
    """torch.save compresses nothing; entries that unpack to more than there is would fill the memory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("its entries claim more bytes than the file has")


def _trunk(found: Any, source: str) -> dict[str, Tensor]:
    """The trunk's tensors by torchvision's names."""
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and key.isprintable() and _plain(value)}
    places = [key.removesuffix(LANDMARK) for key in tensors if key.endswith(LANDMARK)]
    if len(places) != 1:
        what = f"several ResNets ({', '.join(places)[:100]})" if places else f"no ResNet (nothing ends in {LANDMARK})"
        raise UserError(
            f"{source}: holds {what}; known are our runs and exports, the reference's, torchvision's and timm's files"
        )
    names = {key.removeprefix(places[0]): value for key, value in tensors.items() if key.startswith(places[0])}
    return {key: value for key, value in names.items() if not key.startswith(HEADS)}


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _design(state: dict[str, Tensor], source: str) -> Design:
    if "conv1.weight" not in state:
        raise UserError(f"{source}: its stem is not one convolution (no conv1.weight), so it is no ResNet of this package")
    width, *kernel = state["conv1.weight"].shape
    if tuple(kernel) not in STEMS:
        raise UserError(
            f"{source}: conv1.weight is {[width, *kernel]}; known stems are 7x7 and 3x3 convolutions of 3 colour channels"
        )
    layers = []
    for stage in range(1, 5):
        blocks = {key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}
        if not blocks or blocks != {str(index) for index in range(len(blocks))}:
            raise UserError(
                f"{source}: layer{stage} has blocks {sorted(blocks)[:9]}; a ResNet counts them from 0 in four layers"
            )
        layers.append(len(blocks))
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    return Design(block, tuple(layers), width, STEMS[tuple(kernel)])
