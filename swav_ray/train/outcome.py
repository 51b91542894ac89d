"""The folder of a protocol's training: its state while it runs, its results and weights when it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from swav_ray import __version__
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.checkpoint import Checkpoints

RESULTS = "results.json"
_R = TypeVar("_R")


class Outcome:
    """One training's folder, local or on `s3://`.

    Args:
        about: which training this is, as plain values; nothing else may go on from its state.
        files: names of the weights it will write.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, out: str, about: dict[str, Any], files: Sequence[str]) -> None:
        self.folder, self.about, self.files = Storage(out), json.loads(json.dumps(about)), files
        if self.folder.exists("config.yaml"):
            raise UserError(f"--out {self.folder.uri}: is a run; give a folder of its own")
        # Two: the newer one is replaced by one of the same step, once that is scored.
        self._checkpoints = Checkpoints(self.folder / "checkpoints", keep_last=2)

    def found(self, kind: Callable[..., _R]) -> tuple[dict[str, Any] | None, list[_R]]:
        """State and figures, each a ``kind``, of an earlier life; no state where there is none, or where all is done."""
        uri = self.folder.uri
        state: dict[str, Any] | None = None
        try:
            if self.folder.exists(RESULTS):
                found = json.loads(self.folder.read(RESULTS))
                about, rows = found["about"], found["epochs"]
            elif (saved := self._checkpoints.latest()) is not None:
                state, manifest = saved
                about, rows = manifest["about"], manifest["epochs"]
            else:
                self._refuse_foreign()
                return None, []
            history = [kind(**row) for row in rows]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--out {uri}/{RESULTS}: not one of this version; name another folder") from None
        if about != self.about:
            raise UserError(f"--out {uri}: holds a training of other weights, data or settings; name another folder")
        return state, history

    def _refuse_foreign(self) -> None:
        """Raise a UserError where a training that begins would write over what others left."""
        there = [f"checkpoints/{name}" for name in self._checkpoints.foreign()]
        there += [name for name in self.files if self.folder.exists(name)]
        if there:
            raise UserError(f"--out {self.folder.uri}: holds a {there[0]} that others left; give a folder of its own")

    def save(self, state: dict[str, Any], rows: list[dict[str, Any]], step: int) -> None:
        """The state after so many steps or epochs, and the figures until then."""
        about = {"epoch": len(rows), "row": 0, "about": self.about, "epochs": rows, "version": __version__}
        self._checkpoints.save(step, state, about)

    def finish(self, weights: dict[str, tuple[nn.Module, dict[str, str]]], rows: list[dict[str, Any]], **more: Any) -> None:
        """The weights, by file with notes of theirs, then the results, and no state any more."""
        for file, (module, notes) in weights.items():
            self.folder.write(file, safetensors.torch.save(_plain(module), {"format": "pt", **notes}))
        results = {"about": self.about, **more, "epochs": rows, "version": __version__}
        self.folder.write(RESULTS, json.dumps(results, indent=1).encode())
        self._checkpoints.clear()


def digest_of(module: nn.Module) -> str:
    """A name for its weights."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes()


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in module.state_dict().items()}
