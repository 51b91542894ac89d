"""The model card of a run, in Markdown, with the YAML front matter that Hugging Face reads.

It goes out with the weights, so it holds no address: of a data set its folder's name and counts, of a run its name.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.data.shards import Manifest, read_manifest
from swav_ray.data.storage import Storage
from swav_ray.train.backbones import View, read_config
from swav_ray.train.metrics import read_metrics
from swav_ray.yaml_files import dump

CARD = "README.md"  # the name under which a hub looks for it
TERMS = (
    "The code that made these weights is Apache-2.0. The weights belong to who trained them, under the terms of the images "
    "they were trained on: name the licence here and in `license` above before you publish them."
)
METHOD = "SwAV (arXiv [2006.09882](https://arxiv.org/abs/2006.09882)): image features learnt without labels"


def card_of(run: Storage, manifest: dict[str, Any], usage: str = "", library: str = "swav-ray") -> str:
    """The card of a run's checkpoint: its figures are those until then, the run may have gone on.

    Args:
        manifest: of the checkpoint from which the weights beside the card come.
        usage: Markdown that says how the weights beside the card are opened.
        library: that a hub shall offer to open them with.

    Raises:
        UserError: no run there.
    """
    config = read_config(run.uri)
    rows = [row for row in read_metrics(run) if row.get("step", 0) <= manifest["step"]]
    data = _data(config.data.train)
    figures: dict[str, Any] = next((row for row in reversed(rows) if "probe/top1" in row), {})
    sections = {
        "Use": _use(View.of(config), usage),
        "Worth": _worth(config, figures, data),
        "Data": _about_data(config, data, rows),
        "Training": _training(config, manifest, rows),
        "Licence": TERMS,
    }
    name = _word(config.name) or "swav-ray"
    return _page(name, library, f"{METHOD}; a {_arch(config)}.", sections, _results(name, config, figures))


def card_of_weights(source: str, view: View, usage: str = "", library: str = "swav-ray") -> str:
    """The card of weights that came as a file, of which no more is known than its name."""
    name = _name_of(source)
    terms = "As of the file they came from. The published SwAV weights are under CC BY-NC 4.0: not for commercial use."
    about = f"Converted by swav-ray {__version__}; how they were trained is not known here."
    return _page(
        name,
        library,
        f"The trunk of `{name}`, a ResNet without its classifier.",
        {"Use": _use(view, usage), "Origin": about, "Licence": terms},
    )


def _page(name: str, library: str, summary: str, sections: dict[str, str], results: list[dict[str, Any]] | None = None) -> str:
    front: dict[str, Any] = {
        "license": "unknown",
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["swav", "self-supervised-learning", "resnet", "swav-ray"],
    }
    if results:
        front["model-index"] = [{"name": name, "results": results}]
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items() if text)
    return f"---\n{dump(front)}---\n\n# {name}\n\n{summary}\n\n{body}"


def _use(view: View, usage: str) -> str:
    return (
        f"`images` is `(N, 3, {view.size}, {view.size})`: the short side resized to {view.resize} px, the centre cut, values "
        f"from 0 to 1 normalised with mean {list(view.mean)} and std {list(view.std)}.\n\n{usage}"
    )


def _worth(config: Config, figures: dict[str, Any], data: Manifest | None) -> str:
    if not figures:
        return "Not measured: the training images had no labels, or the run has not come to its first probe."
    rows = figures["probe/rows"]
    lines = [
        f"After epoch {figures['epochs_done']} of {config.epochs}, on {rows:,} held-out training images"
        f"{f' of {len(data.classes)} classes' if data and data.classes else ''}, frozen features:",
        "",
        "| | top-1 | standard error |",
        "|---|---|---|",
    ]
    for key, what in (("probe", "linear probe"), ("knn", "weighted nearest neighbours")):
        if f"{key}/top1" in figures:
            lines.append(f"| {what} | {figures[f'{key}/top1']:.4f} | {figures[f'{key}/top1_stderr']:.4f} |")
    return "\n".join(lines)


def _results(name: str, config: Config, figures: dict[str, Any]) -> list[dict[str, Any]]:
    if not figures:
        return []
    kinds = (("probe", "linear probe top-1"), ("knn", "weighted nearest neighbours top-1"))
    metrics = [
        {
            "type": "accuracy",
            "value": round(figures[f"{key}/top1"], 4),
            "name": f"{what}, standard error {figures[f'{key}/top1_stderr']:.4f}",
        }
        for key, what in kinds
        if f"{key}/top1" in figures
    ]
    dataset = {"type": "custom", "name": f"{_name_of(config.data.train)}, held-out part"}
    return [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}]


def _data(uri: str) -> Manifest | None:
    try:
        return read_manifest(Storage(uri))
    except Exception:  # the shards may be long gone, or in a store that this machine has no key to
        return None


def _about_data(config: Config, data: Manifest | None, rows: list[dict[str, Any]]) -> str:
    name = _name_of(config.data.train)
    if data is None:
        return f"Shards `{name}`, which could not be read when this card was written."
    labels = f"{len(data.classes):,} classes (labels not used)" if data.classes else "no labels"
    lines = [f"Shards `{name}`: {data.num_rows:,} images, {labels}."]
    if data.skipped or data.transcoded:
        lines.append(
            f"Of the source, {len(data.skipped):,} unreadable images were left out and {data.transcoded:,} transcoded."
        )
    bad = next((row["bad_images"] for row in reversed(rows) if "bad_images" in row), 0)
    if bad:
        lines.append(f"{bad:,} images were unreadable in training and skipped.")
    return " ".join(lines) + f" Fingerprint of the source: `{data.source[:16]}`."


def _training(config: Config, manifest: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    workers = sorted({row["workers"] for row in rows if "workers" in row})
    last: dict[str, Any] = next((row for row in reversed(rows) if "verdict" in row), {})
    facts = {
        "epochs": f"{manifest['epoch']} of {config.epochs}",
        "steps": f"{manifest['step']:,} of {config.global_batch_size} images",
        "workers": f"{workers[0]} to {workers[-1]}" if len(workers) > 1 else str(workers[0]) if workers else "unknown",
        "last loss": f"{last['loss']:.4f} (ln K is {math.log(config.num_prototypes):.4f})" if "loss" in last else "unknown",
        "collapse watch": last.get("verdict", "unknown").replace("_", " "),
        "configuration": f"`{config.hash()}`",
        "code": f"swav-ray {manifest.get('version', 'unknown')}; card by swav-ray {__version__}, PyTorch {torch.__version__}",
    }
    recipe = config.computed()
    for where in ("train", "test"):
        recipe["data"].pop(where)
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"| | |\n|---|---|\n{table}\n\n```yaml\n{dump(recipe)}```"


def _arch(config: Config) -> str:
    net = config.backbone
    return net.arch if ":" in net.arch else f"{net.arch} of width {net.base_width} with the {net.stem} stem"


def _name_of(uri: str) -> str:
    """The last part of an address: no folders, keys, or queries."""
    return _word(uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1].rsplit("@", 1)[-1])


def _word(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
