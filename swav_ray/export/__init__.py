"""Weights out of the package, as a folder that another library opens as its own; and in, by `load_backbone`."""

from __future__ import annotations

from torch import nn

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError, did_you_mean
from swav_ray.export.formats import FORMATS, misfit
from swav_ray.model_card import CARD, card_of, card_of_weights
from swav_ray.train.backbones import load


def load_backbone(uri_or_path: str) -> nn.Module:
    """The backbone of a run of ours (its folder or `s3://` address), an export, the reference's, torchvision's or timm's file.

    Nothing in the file is executed (`weights_only`).

    Returns:
        A module from images ``(N, 3, H, W)`` to features ``(N, num_features)``, in eval mode.

    Raises:
        UserError: no such file, or one that holds no ResNet this package knows.
    """
    return load(str(uri_or_path)).backbone


def export(source: str, dest: str, format: str) -> list[str]:
    """Write a backbone in one of :data:`FORMATS` into a folder, with its model card as README.md.

    Args:
        source: whatever :func:`load_backbone` takes.
        dest: folder, local or `s3://`; files of the same names in it are replaced.

    Returns:
        Addresses of what was written.

    Raises:
        UserError: no such format, one that the backbone does not fit, or a package it takes that is not installed.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: not known{did_you_mean(format, FORMATS)}; formats are {', '.join(FORMATS)}")
    folder = Storage(dest)
    if folder.exists("config.yaml"):
        raise UserError(f"{dest}: is a run; export to a folder of its own")
    loaded = load(source)
    reason = misfit(loaded.backbone, format)
    if reason:
        fitting = ", ".join(name for name in FORMATS if not misfit(loaded.backbone, name))
        raise UserError(f"{source}: {reason}; formats that fit are {fitting}")
    loaded.backbone.float()
    files, usage = FORMATS[format](loaded, source)
    library = "timm" if format == "timm" else "swav-ray"
    if loaded.manifest is not None:
        card = card_of(Storage(source), loaded.manifest, usage, library)
    else:
        card = card_of_weights(source, loaded.view, usage, library)
    for name, content in [*files.items(), (CARD, card.encode())]:
        folder.write(name, content)
    return [f"{folder.uri}/{name}" for name in [*files, CARD]]
