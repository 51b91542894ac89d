"""What the prototypes and the features of a run see: a bounded, seeded sample of its training images through its weights.

Shapes: N images, K prototypes, F features.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor, nn

from swav_ray.config import Config
from swav_ray.data.decode import BadImageError, decode
from swav_ray.data.multicrop import centre_crop
from swav_ray.data.shards import GROUP_ROWS, Shards
from swav_ray.evaluate.features import normalise
from swav_ray.report.page import GREY, figure, safe
from swav_ray.swav.model import SwAV
from swav_ray.train.build import evaluation_sizes

ROWS = 2000  # images looked at
GROUPS = 64  # row groups they are read from, at most: a group is the least that a store gives
BATCH = 64
SHOWN, NEAREST = 12, 8  # prototypes, and images of each
SIDE = 72  # px of an image on the page
NAMED_CLASSES = 12  # in the map, the most frequent
COLOURS = (
    *("#3a86d4", "#d98a1f", "#2a9d74", "#d4495d", "#8e5bd0", "#8f6a4e"),
    *("#d670b0", "#9aa32b", "#2fb3c4", "#e0b400", "#c96a3a", "#5f9e4a"),
)


@dataclass
class Sample:
    """N images of the training data and what the model makes of them.

    Attributes:
        jpegs: small ones, for the page.
        names: of the classes by image; empty where an image has no label.
        features_NF: of the backbone, unit rows.
        scores_NK: cosines with the prototypes.
        rows: of the data set.
        unreadable: of the images looked at, which are not among the N.
    """

    jpegs: list[bytes]
    names: list[str]
    features_NF: Tensor
    scores_NK: Tensor
    rows: int
    unreadable: int


@torch.no_grad()
def look(config: Config, model: SwAV, most: int = ROWS) -> Sample:
    """Embed at most ``most`` training images, drawn by the run's seed; on a GPU if there is one.

    Raises:
        UserError: the shards are not there or damaged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device, torch.float32).eval()
    shards = Shards(config.data.train)
    sample = Sample([], [], torch.empty(0, 0), torch.empty(0, 0), shards.num_rows, 0)
    features, scores = [], []
    for images, labels in _batches(config, shards, most, sample):
        pixels = normalise(images, config.augment.mean, config.augment.std, device)
        found = model.backbone(pixels)
        scores.append(model.prototypes(nn.functional.normalize(model.projector(found), dim=1)).cpu())
        features.append(nn.functional.normalize(found.float(), dim=1).cpu())
        sample.jpegs += [_jpeg(image) for image in images]
        classes = shards.manifest.classes
        sample.names += ["" if n < 0 else classes[n] if n < len(classes) else str(n) for n in labels]
    if features:
        sample.features_NF, sample.scores_NK = torch.cat(features), torch.cat(scores)
    return sample


def _batches(config: Config, shards: Shards, most: int, sample: Sample) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Evaluation views (n, S, S, 3) and labels of the drawn images, n at most `BATCH`."""
    rng = np.random.default_rng(config.seed)
    sizes = shards.rows_per_group
    wanted = min(len(sizes), most, max(GROUPS, math.ceil(most / GROUP_ROWS)))
    groups = np.sort(rng.choice(len(sizes), wanted, replace=False))
    size, resize = evaluation_sizes(config)
    left = most
    for number, group in enumerate(groups):
        share = math.ceil(left / (len(groups) - number))
        rows = np.sort(rng.permutation(int(sizes[group]))[:share])
        table = shards.read_group(int(group), ["label", "jpeg"]).take(rows)
        images, labels = [], []
        for label, jpeg in zip(table.column("label").to_pylist(), table.column("jpeg").to_pylist(), strict=True):
            try:
                images.append(centre_crop(decode(jpeg), resize, size))
                labels.append(label)
            except BadImageError:
                sample.unreadable += 1
        left -= len(rows)
        for start in range(0, len(images), BATCH):
            yield np.stack(images[start : start + BATCH]), labels[start : start + BATCH]


def _jpeg(image: np.ndarray) -> bytes:
    picture = Image.fromarray(image)
    if picture.width > SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def grids(sample: Sample) -> str:
    """HTML: of some prototypes, from the one with most images to the one with fewest, the nearest images."""
    winners = sample.scores_NK.argmax(dim=1)
    counts = torch.bincount(winners, minlength=sample.scores_NK.shape[1])
    used = [k for k in torch.argsort(counts, descending=True, stable=True).tolist() if counts[k] > 0]
    picked = [used[round(at)] for at in np.linspace(0, len(used) - 1, min(SHOWN, len(used)))]
    parts = []
    for k in picked:
        nearest = torch.topk(sample.scores_NK[:, k], min(NEAREST, len(sample.jpegs))).indices.tolist()
        pictures = "".join(_picture(sample, row) for row in nearest)
        names = Counter(sample.names[row] for row in nearest if sample.names[row])
        said = f"prototype {k}: nearest to {int(counts[k])} of {len(sample.jpegs):,} images"
        if names:
            said += "; shown: " + ", ".join(f"{count} of class {name}" for name, count in names.most_common(3))
            said += f" and {len(names) - 3} more classes" if len(names) > 3 else ""
        parts.append(f'<figure><div class="thumbs">{pictures}</div><figcaption>{html.escape(said)}</figcaption></figure>')
    return f'<div class="prototypes">{"".join(parts)}</div>'


def _picture(sample: Sample, row: int) -> str:
    content = base64.b64encode(sample.jpegs[row]).decode()
    name = html.escape(sample.names[row] or "image without a label")
    return f'<img src="data:image/jpeg;base64,{content}" alt="{name}" title="{name}">'


def feature_map(sample: Sample) -> go.Figure:
    """The images in the plane of their features' two largest principal components, coloured by class where there is one."""
    centred = sample.features_NF - sample.features_NF.mean(dim=0)
    _, strengths, axes = torch.linalg.svd(centred, full_matrices=False)
    at = centred @ axes[:2].T
    shares = (strengths.square() / strengths.square().sum().clamp_min(1e-12)).tolist()
    frequent = [name for name, _ in Counter(filter(None, sample.names)).most_common(NAMED_CLASSES)]
    others = len({*sample.names} - {*frequent, ""})
    groups: dict[str, list[int]] = {name: [] for name in (f"{others} other classes", "no label", *sorted(frequent))}
    for row, name in enumerate(sample.names):
        group = name if name in frequent else "no label" if not name else f"{others} other classes"
        groups[group].append(row)
    traces, colours = [], iter(COLOURS)
    for group, rows in groups.items():
        if not rows:
            continue
        colour = next(colours) if group in frequent else GREY
        traces.append(
            go.Scatter(
                x=at[rows, 0].tolist(),
                y=at[rows, 1].tolist(),
                mode="markers",
                name=safe(group if len(group) < 24 else group[:22] + "…"),
                marker={"color": colour, "size": 6, "opacity": 0.75},
                hovertext=[safe(sample.names[row] or "no label") for row in rows],
                hoverinfo="text",
            )
        )
    axis = {"zeroline": False, "showticklabels": False}
    x, y = (axis | {"title": f"component {n + 1} ({shares[n]:.0%} of the spread)"} for n in range(2))
    return figure(traces, 520, xaxis=x, yaxis=y, legend={"orientation": "h", "y": -0.1, "yanchor": "top", "x": 0})
