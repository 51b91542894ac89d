"""What any figure of a sweep must be read against: the same probe on raw pixels and on an untrained backbone."""

from __future__ import annotations

import json
from typing import Any

import torch

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.evaluate import Score, linear_probe
from swav_ray.train.build import build_model
from swav_ray.train.probe import features_of, held_out, pixel_features, probe_images, shrunk

FILE = "baselines.json"


def measure_baselines(config: Config, folder: Storage) -> list[dict[str, Any]]:
    """Rows for the leaderboard; measured once for each sweep and kept in its folder. None if images have no labels."""
    if folder.exists(FILE):
        return list(json.loads(folder.read(FILE)))
    data = probe_images(config)
    held = held_out(config, data.ids)
    labels = torch.from_numpy(data.labels)
    rows = []
    if len(data.ids) >= 10 and labels[~held].unique().numel() > 1 and held.any():
        torch.manual_seed(config.seed)
        untrained = features_of(config, build_model(config).backbone, data.images, torch.device("cpu"))
        (pixels,) = pixel_features(shrunk(data.images))
        for name, features in (("random init", untrained), ("raw 16x16 pixels", pixels)):
            score: Score = linear_probe(features[~held], labels[~held], features[held], labels[held])
            rows.append({"name": name, "probe/top1": score.top1, "stderr": score.top1_stderr})
    folder.write(FILE, json.dumps(rows).encode())
    return rows
