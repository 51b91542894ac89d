"""Weights in and out of the package."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.swav.resnet import ARCHITECTURES, resnet
from swav_ray.train.scoring import load_run


def load_backbone(uri_or_path: str) -> nn.Module:
    """The backbone of a run of ours (its folder or `s3://` address), or of the reference's checkpoints and torchvision files.

    Nothing in the file is executed (`weights_only`).

    Returns:
        A module from images ``(N, 3, H, W)`` to features ``(N, num_features)``, in eval mode.

    Raises:
        UserError: no such file, or one that holds no ResNet this package knows.
    """
    uri = str(uri_or_path)
    place = Storage(uri)
    if place.exists("config.yaml"):
        return load_run(uri)[1].eval()
    folder, _, name = place.uri.rpartition("/")
    try:
        content = torch.load(io.BytesIO(Storage(folder).read(name)), map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{uri}: neither a run nor a file of weights") from None
    except Exception as error:  # whatever a foreign file makes torch raise
        raise UserError(f"{uri}: not a file of weights that can be read safely: {str(error).splitlines()[0]}") from None
    return _from_state(content, uri).eval()


def _from_state(content: Any, uri: str) -> nn.Module:
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    heads = ("projection_head.", "prototypes.", "fc.")
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    if "conv1.weight" not in state:
        raise UserError(f"{uri}: holds no ResNet (no conv1.weight); known are our runs and the reference's checkpoints")
    width, small = state["conv1.weight"].shape[0], state["conv1.weight"].shape[-1] == 3
    blocks = tuple(len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in range(1, 5))
    deep = "layer1.0.conv3.weight" in state
    for arch, (block, layers) in ARCHITECTURES.items():
        if layers == blocks and (block.expansion == 4) == deep:
            backbone = resnet(arch, base_width=width, stem="small" if small else "imagenet")
            try:
                backbone.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(
                    f"{uri}: does not fit a {arch} of width {width}: {' '.join(str(error).split())[:200]}"
                ) from None
            return backbone
    raise UserError(f"{uri}: a ResNet with blocks {list(blocks)} is not one of {', '.join(ARCHITECTURES)}")
