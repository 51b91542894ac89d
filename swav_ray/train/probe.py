"""What the backbone is worth right now: features of shards, spread over the workers, and the linear probe on them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swav_ray.config import Config
from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.multicrop import centre_crop
from swav_ray.data.shards import Shards
from swav_ray.evaluate.features import extract, normalise
from swav_ray.evaluate.knn import knn
from swav_ray.evaluate.linear_probe import linear_probe
from swav_ray.train.build import evaluation_sizes
from swav_ray.train.world import World


@dataclass(frozen=True)
class Labelled:
    """Evaluation views of labelled images: N pictures (N, S, S, 3), their labels and ids."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]


_KEPT: dict[tuple[Any, ...], Labelled] = {}  # the last: wanted again at the next probe, and by a sweep's next trial here
KEPT_BYTES = 1 << 30


def probe_images(config: Config, part: int = 0, parts: int = 1) -> Labelled:
    """The labelled training images that probes use, those of every ``parts``-th row group."""
    wanted = (config.data.train, config.probe.max_rows, part, parts, *evaluation_sizes(config))
    if wanted in _KEPT:
        return _KEPT[wanted]
    data = _load(*wanted)
    _KEPT.clear()
    if data.images.nbytes <= KEPT_BYTES:
        _KEPT[wanted] = data
    return data


def _load(uri: str, max_rows: int | None, part: int, parts: int, size: int, resize: int) -> Labelled:
    """The labelled images of every ``parts``-th row group, ``max_rows`` of the whole set at most."""
    shards = Shards(uri)
    keep = shards.num_rows if max_rows is None else min(max_rows, shards.num_rows)
    images, labels, ids = [], [], []
    for table in shards.iter_groups(["id", "label", "jpeg"], part, parts):
        for identifier, label, jpeg in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if label < 0 or _fraction(identifier, "sample") >= keep / shards.num_rows:
                continue
            try:
                images.append(centre_crop(decode(jpeg), resize, size))
            except BadImageError:
                continue
            labels.append(label)
            ids.append(identifier)
    stacked = np.stack(images) if images else np.empty((0, size, size, 3), dtype=np.uint8)
    return Labelled(stacked, np.array(labels, dtype=np.int64), ids)


def features_of(config: Config, backbone: nn.Module, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """``(N, D)`` frozen features on the CPU."""

    dtype = next(backbone.parameters()).dtype

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(images), 256):
            yield normalise(images[start : start + 256], config.augment.mean, config.augment.std, device).to(dtype)

    return extract(backbone, batches())


def probe_backbone(config: Config, backbone: nn.Module, world: World) -> dict[str, Any]:
    """Linear-probe accuracy on the held-out part of the training images: figures on rank 0, nothing elsewhere.

    Every worker embeds its share of the row groups; linear probe and nearest neighbours share the features. Nothing is
    scored if the images have no labels.
    """
    started = time.monotonic()
    data = probe_images(config, world.rank, world.size)
    features = features_of(config, backbone, data.images, world.device)
    parts = world.gather((features, data.labels, data.ids))
    if parts is None:
        return {}
    ids = np.array([identifier for _, _, part in parts for identifier in part])
    if len(ids) < 10:
        return {}
    order = np.argsort(ids)  # by id, so that the figure does not depend on the number of workers
    features = torch.cat([part for part, _, _ in parts if len(part)])[order]
    labels = torch.from_numpy(np.concatenate([part for _, part, _ in parts]))[order]
    held = held_out(config, list(ids[order]))
    if labels[~held].unique().numel() < 2 or not held.any():
        return {}
    score = linear_probe(features[~held], labels[~held], features[held], labels[held])
    near = knn(features[~held], labels[~held], features[held], labels[held], k=min(20, int((~held).sum())))
    return {
        "probe/top1": score.top1,
        "probe/top5": score.top5,
        "probe/top1_stderr": score.top1_stderr,
        "probe/rows": score.num_test,
        "probe/seconds": time.monotonic() - started,
        "knn/top1": near.top1,
        "knn/top1_stderr": near.top1_stderr,
    }


def held_out(config: Config, ids: list[str]) -> Tensor:
    """Which images the probe is scored on: a fixed share, by id, the same in every run and trial."""
    return torch.tensor([_fraction(identifier, "holdout") < config.probe.holdout for identifier in ids])


def _fraction(identifier: str, purpose: str) -> float:
    digest = hashlib.blake2b(f"{purpose}:{identifier}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64


def shrunk(images: NDArray[np.uint8]) -> Tensor:
    """``(N, 3, 16, 16)`` floats of pictures shrunk by area."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, 16)


def pixel_features(*sets: Tensor) -> list[Tensor]:
    """``(N, 3 * 16 * 16)`` of each set of shrunk pictures; one channel of it where all sets are grey."""
    grey = all(bool((pixels == pixels[:, :1]).all()) for pixels in sets)
    return [(pixels[:, :1] if grey else pixels).flatten(1) for pixels in sets]
