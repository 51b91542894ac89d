"""Checkpoints: complete or invisible.

A checkpoint is a folder of files and a manifest with their sizes and checksums, written last. Whatever has no manifest,
or differs from it, is passed over and the one before is used. Nothing in it depends on the number of workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import torch

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, newest last.

    Args:
        folder: where they lie.
        keep_last: complete checkpoints kept; older ones are removed after a new one is complete.
    """

    def __init__(self, folder: Storage, keep_last: int = 2) -> None:
        self.folder, self.keep_last = folder, keep_last

    def save(self, step: int, state: dict[str, Any], about: dict[str, Any]) -> None:
        """Write a checkpoint of ``state`` (tensors and plain values); ``about`` stands readable in its manifest.

        Raises:
            UserError: no space left, or the folder cannot be written. The checkpoints before it stay.
        """
        name = f"step-{step:09d}"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        files = {"state.pt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        try:
            self.folder.delete(name)  # what an earlier life left there, whole or not
            self.folder.write(f"{name}/state.pt", content)
            manifest = {"format": FORMAT, "step": step, "files": files, **about}
            self.folder.write(f"{name}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise UserError(
                f"{self.folder.uri}/{name}: checkpoint cannot be written: {error.strerror or error}; earlier checkpoints are "
                "kept, make room and run the same command again"
            ) from error
        for old in self.names()[: -self.keep_last]:
            self.folder.delete(old)

    def names(self) -> list[str]:
        """Names of checkpoints that have a manifest, oldest first."""
        found = [name for name in self.folder.list() if name.startswith("step-")]
        return [name for name in found if self.folder.exists(f"{name}/{MANIFEST}")]

    def latest(self, map_location: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and manifest of the newest checkpoint that is whole, or None."""
        for name, manifest in self._manifests():
            try:
                content = self.folder.read(f"{name}/state.pt")
            except FileNotFoundError:
                content = b""
            if hashlib.sha256(content).hexdigest() != manifest["files"]["state.pt"]["sha256"]:
                logger.warning("%s/%s: damaged (checksum differs), the one before it is used", self.folder.uri, name)
                continue
            return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True), manifest
        return None

    def _manifests(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(self.names()):
            try:
                manifest = json.loads(self.folder.read(f"{name}/{MANIFEST}"))
                if manifest["format"] != FORMAT:
                    raise ValueError(f"format {manifest['format']}")
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("%s/%s: manifest cannot be used (%s), the one before it is used", self.folder.uri, name, error)
                continue
            yield name, manifest
