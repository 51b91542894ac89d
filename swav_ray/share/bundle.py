"""A bundle: a plain zip, uncompressed, of what someone needs to use a run's features, and a manifest of checksums.

Of a run: `backbone.safetensors` (torchvision's names), `head.safetensors` (projector and prototypes), `config.yaml`,
`metrics.jsonl`, and a model card, `README.md`. No image, no image's name, no address of data or stores.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.model_card import CARD, card_of
from swav_ray.share.contents import CHUNK, FORMAT, MANIFEST, MOST_BYTES, check_content, check_kind, plain_name
from swav_ray.train.backbones import read_config

CONFIG, METRICS = "config.yaml", "metrics.jsonl"


@dataclass(frozen=True)
class Bundle:
    """A packed bundle: its file, the name it should get at the receiver's, and its contents with their bytes."""

    path: Path
    name: str
    files: dict[str, int]


def pack(source: str, folder: Path) -> Bundle:
    """Pack a run (its folder or `s3://` address), or one file, into a bundle in ``folder``.

    Raises:
        UserError: neither a run nor a file, a run without a checkpoint, or a file no bundle takes.
    """
    place = Storage(source)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if place.exists(CONFIG):
            name, about, paths = _of_run(source, place, Path(scratch))
        else:
            name, about, paths = _of_file(source, place, Path(scratch))
        return _zip(name, about, paths, folder / "bundle.zip")


def _zip(name: str, about: dict[str, Any], paths: list[Path], target: Path) -> Bundle:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:80] or "bundle"
    sizes = {path.name: path.stat().st_size for path in paths}
    if sum(sizes.values()) > MOST_BYTES:
        raise UserError(f"{', '.join(sizes)}: too large, a bundle holds {MOST_BYTES / 2**30:.1f} GiB")
    for path in paths:
        check_content(path)
    digests: dict[str, str] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for path in paths:
            digest = hashlib.sha256()
            with path.open("rb") as file, archive.open(zipfile.ZipInfo(path.name), "w") as member:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    member.write(chunk)
            digests[path.name] = digest.hexdigest()
        files = {name: {"bytes": size, "sha256": digests[name]} for name, size in sizes.items()}
        manifest = {"format": FORMAT, "name": name, "swav_ray": __version__, **about, "files": files}
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, indent=1))
    return Bundle(target, name, sizes)


def _of_file(source: str, place: Storage, scratch: Path) -> tuple[str, dict[str, Any], list[Path]]:
    parent, _, name = place.uri.rpartition("/")
    folder = Storage(parent or "/")
    if not folder.exists(name):
        raise UserError(f"{source}: neither a run nor a file")
    if not place.is_s3 and Path(place.root).is_dir():
        raise UserError(f"{source}: a folder that is no run (it has no {CONFIG})")
    if not plain_name(name) or name == MANIFEST:
        raise UserError(f"{source}: give the file a name of letters, digits, '.', '_' and '-', and not {MANIFEST}")
    check_kind(name)
    return Path(name).stem, {}, [folder.fetch(name, scratch)]


def _of_run(source: str, run: Storage, scratch: Path) -> tuple[str, dict[str, Any], list[Path]]:
    config = read_config(source)
    manifest = _weights(source, run, scratch)
    about = {"config_hash": config.hash(), "arch": config.backbone.arch}
    about |= {"step": manifest["step"], "epochs_done": manifest["epoch"]}
    (scratch / CONFIG).write_text(shareable(config).to_yaml())
    _metrics(run, scratch)
    (scratch / CARD).write_text(card_of(run, manifest))
    return config.name or "run", about, sorted(scratch.iterdir())


def shareable(config: Config) -> Config:
    """The configuration without addresses: where data and runs lie is nobody else's business, and may hold credentials."""
    data = config.data.model_copy(update={"train": "", "test": ""})
    return config.model_copy(update={"storage": Config.model_fields["storage"].default, "data": data})


def _weights(source: str, run: Storage, scratch: Path) -> dict[str, Any]:
    """Write the newest whole checkpoint's weights; its manifest."""
    from safetensors.torch import save_file

    from swav_ray.train.checkpoint import Checkpoints

    saved = Checkpoints(run / "checkpoints").latest()
    if saved is None:
        raise UserError(f"{source}: has no complete checkpoint yet; train it with swav-ray pretrain")
    state, manifest = saved
    parts: dict[str, dict[str, Any]] = {"backbone": {}, "head": {}}
    for key, tensor in state["model"].items():
        part = "backbone" if key.startswith("backbone.") else "head"
        parts[part][key.removeprefix("backbone.")] = tensor.contiguous()
    for part, tensors in parts.items():
        save_file(tensors, scratch / f"{part}.safetensors", metadata={"format": "pt"})  # one: several come in any order
    return manifest


def _metrics(run: Storage, scratch: Path) -> None:
    """Copy the metrics without what names images, line by line."""
    if not run.exists(METRICS):
        return
    # By another name first, for it may be the run's own file that is read.
    with run.fetch(METRICS, scratch).open() as lines, (scratch / "kept.jsonl").open("w") as kept:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run killed while writing it
                break
            row = {key: value for key, value in row.items() if not isinstance(value, list | dict)}  # as lists of ids are
            kept.write(json.dumps(row) + "\n")
    (scratch / "kept.jsonl").replace(scratch / METRICS)
