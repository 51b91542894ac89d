"""What each library wants to find, and how its user opens it; every snippet is run by a test where the library installs."""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from swav_ray import __version__
from swav_ray.errors import UserError
from swav_ray.swav.resnet import BasicBlock, Design, ResNet
from swav_ray.train.backbones import VIEW, Loaded

Files = tuple[dict[str, bytes], str]  # by name; and Markdown that says how to open them
LARGEST_PROTOBUF = 2**31 - 1  # bytes
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # timm has them under the same names


def misfit(backbone: nn.Module, format: str) -> str:
    """Why the backbone is none of the ResNets that the format's library has; empty where it is one."""
    if format in ("safetensors", "onnx"):
        return ""
    if not isinstance(backbone, ResNet):
        return f"{type(backbone).__name__} is not one of {format}'s ResNets"
    design = backbone.design
    # detectron2 builds bottlenecks of any width, but only of depths it knows.
    width_is_free = format == "detectron2" and design.block is not BasicBlock
    depth_is_known = format != "detectron2" or design.arch in TORCHVISION
    if design.stem != "imagenet" or not (design.base_width == 64 or width_is_free) or not depth_is_known:
        return f"{design} is not one of {format}'s ResNets"
    return ""


def _state(backbone: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in backbone.state_dict().items()}


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```\n"


def _torchvision(loaded: Loaded, source: str) -> Files:
    design = _design(loaded)
    net = f"torchvision.models.{design.arch}()"
    if design.arch not in TORCHVISION:
        net = f"torchvision.models.resnet.ResNet(torchvision.models.resnet.{design.block.__name__}, {list(design.layers)})"
    out = io.BytesIO()
    torch.save(_state(loaded.backbone), out)
    return {"model.pth": out.getvalue()}, _code(
        "import torch, torchvision\n\n"
        f"model = {net}\n"
        "model.fc = torch.nn.Identity()\n"
        'model.load_state_dict(torch.load("model.pth", weights_only=True))\n'
        "features = model.eval()(images)"
    )


def _timm(loaded: Loaded, source: str) -> Files:
    design, view = _design(loaded), loaded.view
    named = design.arch in TORCHVISION
    about: dict[str, Any] = {
        "architecture": design.arch if named else "resnet18" if design.block is BasicBlock else "resnet50",
        "num_classes": 0,
        "num_features": loaded.backbone.num_features,
        "pretrained_cfg": {
            "input_size": [3, view.size, view.size],
            "crop_pct": math.floor(1e6 * view.size / view.resize) / 1e6,  # timm rounds size / crop_pct down
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": view.mean,
            "std": view.std,
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    if not named:
        about["model_args"] = {"layers": list(design.layers)}
    files = {"config.json": json.dumps(about, indent=1).encode(), "model.safetensors": _safe(loaded)}
    return files, _code(
        "import timm\n\n"
        'model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder; on a hub "hf-hub:USER/NAME"\n'
        "features = model(images)"
    )


def _safe(loaded: Loaded) -> bytes:
    notes = {"format": "pt", "swav_ray.version": __version__, VIEW: loaded.view.model_dump_json()}
    return safetensors.torch.save(_state(loaded.backbone), notes)


def _safetensors(loaded: Loaded, source: str) -> Files:
    if isinstance(loaded.backbone, ResNet):
        code = 'from swav_ray import load_backbone\n\nfeatures = load_backbone("model.safetensors")(images)'
    else:
        arch = loaded.run.backbone.arch if loaded.run else ""
        module, _, factory = arch.partition(":")
        code = (
            f"import safetensors.torch\nfrom {module} import {factory}\n\nmodel = {factory}()\n"
            'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))\n'
            "features = model.eval()(images)"
        )
    return {"model.safetensors": _safe(loaded)}, _code(code)


def _onnx(loaded: Loaded, source: str) -> Files:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error.name} is not installed; pip install 'swav-ray[onnx]'") from None
    if sum(value.numel() * value.element_size() for value in loaded.backbone.state_dict().values()) > LARGEST_PROTOBUF:
        raise UserError(f"{source}: more than 2 GB of weights do not fit into one ONNX file; export safetensors")
    size, auto = loaded.view.size, torch.export.Dim.AUTO  # a backbone may well insist on its size
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            loaded.backbone,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch"), 2: auto, 3: auto},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # a backbone of the user's own may do anything
        raise UserError(f"{source}: torch.onnx cannot export this backbone: {' '.join(str(error).split())[:200]}") from None
    assert program is not None
    return {"model.onnx": program.model_proto.SerializeToString()}, _code(
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        'features = session.run(["features"], {"images": images.numpy()})[0]'
    )


def _detectron2(loaded: Loaded, source: str) -> Files:
    design, view = _design(loaded), loaded.view
    arrays = {
        _detectron2_name(key): value.numpy() for key, value in _state(loaded.backbone).items() if "num_batches" not in key
    }
    content = pickle.dumps({"model": arrays, "__author__": "swav-ray", "matching_heuristics": True}, protocol=2)
    width = f"    WIDTH_PER_GROUP: {design.base_width}\n    STEM_OUT_CHANNELS: {design.base_width}\n"
    return {"model.pkl": content}, _code(
        "MODEL:\n"
        "  WEIGHTS: model.pkl\n"
        f"  PIXEL_MEAN: {[round(255 * value, 3) for value in view.mean]}\n"
        f"  PIXEL_STD: {[round(255 * value, 3) for value in view.std]}\n"
        "  RESNETS:\n"
        f"    DEPTH: {design.arch.removeprefix('resnet')}\n"
        "    STRIDE_IN_1X1: false\n"
        f"    RES2_OUT_CHANNELS: {design.base_width * design.block.expansion}\n"
        f"{'' if design.base_width == 64 else width}"
        "INPUT:\n"
        "  FORMAT: RGB",
        "yaml",
    )


def _detectron2_name(key: str) -> str:
    """``layer1.0.bn1.weight`` -> ``res2.0.conv1.norm.weight``; the stem has a name of its own, shortcuts are one module."""
    first, _, rest = key.partition(".")
    key = f"res{int(first[-1]) + 1}.{rest}" if first.startswith("layer") else f"stem.{key}"
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for index in (1, 2, 3):
        key = key.replace(f"bn{index}.", f"conv{index}.norm.")
    return key


def _design(loaded: Loaded) -> Design:
    assert isinstance(loaded.backbone, ResNet)  # or there is a misfit
    return loaded.backbone.design


FORMATS: dict[str, Callable[[Loaded, str], Files]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "detectron2": _detectron2,
}
