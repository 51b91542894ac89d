"""swav-ray: SwAV image features, learnt without labels on elastic Ray clusters."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_backbone`` on first use, so that importing the package (and ``--help``) does not import torch."""
    if name == "load_backbone":
        from swav_ray.export import load_backbone

        return load_backbone
    raise AttributeError(f"module 'swav_ray' has no attribute {name!r}")
