"""Checkpoints: complete or invisible, and written behind the training's back.

A checkpoint is a folder of files and a manifest with their sizes and checksums. The manifest is written last and removed
first: whatever has none, or differs from it, is passed over and the one before is used. Nothing in it depends on the
number of workers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.background import Background

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.pt"
_NAME = re.compile(r"step-\d{9,}")
FOLDERS_IN_MEMORY = 2  # whose newest checkpoint a process keeps
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    step: int
    state: dict[str, Any]
    about: dict[str, Any]
    first: Callable[[], None] | None = None


class Checkpoints:
    """The checkpoints of one run, newest last. One process at a time writes.

    The process that wrote the newest one keeps its bytes (once the size of the state) and takes them when it is asked for
    that very one and the store's file is still the one it wrote.

    Args:
        folder: where they lie.
        keep_last: complete checkpoints kept; older ones are removed after a new one is complete.
        keep_every: those at the end of every so many epochs are kept for ever; 0: none.
    """

    _in_memory: ClassVar[dict[str, tuple[tuple[str, str, str], bytes]]] = {}  # by folder: which (name, checksum, stamp), bytes

    def __init__(self, folder: Storage, keep_last: int = 2, keep_every: int = 0) -> None:
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self._background: Background[_Job] = Background(self._commit, "swav-ray-checkpoint")
        self._passed_over: set[str] = set()  # names; not counted as kept, and left as they are
        self._for_ever: set[str] = set()

    def save(self, step: int, state: dict[str, Any], about: dict[str, Any]) -> None:
        """Write a checkpoint of ``state`` (tensors and plain values); ``about`` stands readable in its manifest.

        Raises:
            UserError: no space left, or the folder cannot be written. The checkpoints before it stay.
        """
        self._background.submit(_Job(step, state, about))
        self.wait()

    def save_async(
        self, step: int, state: dict[str, Any], about: dict[str, Any], first: Callable[[], None] | None = None
    ) -> None:
        """Copy ``state`` now, write it in the background. While another is being written the newest waits, and only it.

        Args:
            first: called in the background before anything is written; what it raises fails the checkpoint.
        """
        self._background.submit(_Job(step, snapshot(state), dict(about), first))

    def settled(self, timeout: float | None = None) -> bool:
        """Whether nothing is being written any more, after waiting for at most ``timeout`` seconds."""
        return self._background.idle(timeout)

    def failure(self) -> str | None:
        """Why the last checkpoint written in the background failed; None when it is complete, or none was begun."""
        error = self._background.error
        return None if error is None else str(error)  # _commit raises UserErrors only

    def wait(self) -> None:
        """Return when everything handed over is complete.

        Raises:
            UserError: it cannot be written.
        """
        self.settled()
        failure = self.failure()
        if failure is not None:
            raise UserError(failure) from self._background.error

    def close(self) -> None:
        """Finish what is being written; a failure has been logged and stays in :meth:`failure`."""
        self.settled()

    def foreign(self) -> list[str]:
        """Names in the folder that are no checkpoints."""
        return [name for name in self.folder.list() if not _NAME.fullmatch(name)]

    def clear(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it."""
        for name in self._names():
            self._remove(name)
        self._in_memory.pop(self.folder.uri, None)
        if not self.folder.is_s3:
            with contextlib.suppress(OSError):
                Path(self.folder.root).rmdir()

    def newest(self, before: str | None = None) -> tuple[str, dict[str, Any]] | None:
        """Name and manifest of the newest checkpoint (older than ``before``) whose manifest is good, or None."""
        names = [name for name in self._names() if before is None or name < before]
        return next(self._good(names), None)

    def holds(self, name: str, manifest: dict[str, Any]) -> bool:
        """Whether this process has the bytes of that very checkpoint in memory."""
        which = self._in_memory.get(self.folder.uri, (("", "", ""), b""))[0]
        return which[:2] == (name, manifest["files"][STATE]["sha256"])

    def state_bytes(self, name: str, manifest: dict[str, Any]) -> bytes | None:
        """The serialised state as its manifest describes it; None, with a warning, when it is damaged or gone."""
        expected = manifest["files"][STATE]
        which, content = self._in_memory.get(self.folder.uri, (None, b""))
        try:
            if which and which == (name, expected["sha256"], self.folder.stamp(f"{name}/{STATE}")):
                return content
            content = self.folder.read(f"{name}/{STATE}")
        except FileNotFoundError:
            content = b""
        if len(content) != expected["bytes"]:
            self._pass_over(name, f"damaged, {STATE} has {len(content)} bytes instead of {expected['bytes']}")
        elif hashlib.sha256(content).hexdigest() != expected["sha256"]:
            self._pass_over(name, f"damaged, the checksum of {STATE} differs")
        else:
            return content
        return None

    def latest(self, map_location: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and manifest of the newest checkpoint that is whole, or None. Nothing in it is executed."""
        seen: list[str] | None = None
        # Again when the list has changed meanwhile: a living writer may have removed the one that was being read.
        while (names := self._names()) != seen:
            seen = names
            for name, manifest in self._good(names):
                content = self.state_bytes(name, manifest)
                if content is not None:
                    return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True), manifest
        return None

    def _commit(self, job: _Job) -> None:
        name = f"step-{job.step:09d}"
        try:
            if job.first is not None:
                job.first()
            buffer = io.BytesIO()
            torch.save(job.state, buffer)
            content = buffer.getvalue()
            checksum = hashlib.sha256(content).hexdigest()
            files = {STATE: {"bytes": len(content), "sha256": checksum}}
            manifest = {"format": FORMAT, "step": job.step, "files": files, **job.about}
            if name in self._names():
                self._remove(name)  # what an earlier life left there, whole or not
            self.folder.write(f"{name}/{STATE}", content)
            stamp = self.folder.stamp(f"{name}/{STATE}")
            self.folder.write(f"{name}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        except Exception as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"{self.folder.uri}/{name}: checkpoint cannot be written: {reason}; earlier checkpoints are kept, "
                f"{'make room' if full else 'mend that'} and run the same command again"
            ) from error
        self._passed_over.discard(name)
        self._in_memory.pop(self.folder.uri, None)
        self._in_memory[self.folder.uri] = (name, checksum, stamp), content
        while len(self._in_memory) > FOLDERS_IN_MEMORY:
            self._in_memory.pop(next(iter(self._in_memory)))
        try:
            self._retain(name)
        except Exception as error:  # the new one is complete all the same
            logger.warning("%s: old checkpoints cannot be removed: %s", self.folder.uri, error)

    def _retain(self, newest: str) -> None:
        """Remove what is older than the last `keep_last` and not kept for ever, and the rests of dead writers."""
        complete = []
        for name in self._names():
            if name >= newest or name in self._passed_over:
                continue
            if name not in self._for_ever:
                manifest = self._manifest(name, incomplete_ok=True)
                if manifest is None:
                    if name not in self._passed_over:
                        self._remove(name)
                    continue
                if self._kept_for_ever(manifest):
                    self._for_ever.add(name)
            complete.append(name)
        for name in complete[: len(complete) + 1 - self.keep_last]:
            if name not in self._for_ever:
                self._remove(name)

    def _kept_for_ever(self, manifest: dict[str, Any]) -> bool:
        epoch = manifest.get("epoch")
        return bool(self.keep_every and epoch and manifest.get("row") == 0 and epoch % self.keep_every == 0)

    def _remove(self, name: str) -> None:
        # The manifest first: whoever is killed in between leaves an invisible rest, not half a checkpoint.
        self.folder.delete(f"{name}/{MANIFEST}")
        self.folder.delete(name)

    def _good(self, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(names):
            manifest = self._manifest(name)
            if manifest is not None:
                yield name, manifest

    def _names(self) -> list[str]:
        return [name for name in self.folder.list() if _NAME.fullmatch(name)]

    def _manifest(self, name: str, *, incomplete_ok: bool = False) -> dict[str, Any] | None:
        """The manifest of ``name``; None, with a warning, when there is none or none that can be used."""
        try:
            manifest = json.loads(self.folder.read(f"{name}/{MANIFEST}"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"of format {manifest['format']}, this version reads {FORMAT}")
            _ = manifest["step"], manifest["files"][STATE]["bytes"], manifest["files"][STATE]["sha256"]
        except FileNotFoundError:
            if not incomplete_ok:  # its writer was killed, or is still at work
                logger.warning("%s/%s: incomplete, it has no %s; the one before it is used", self.folder.uri, name, MANIFEST)
            return None
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            self._pass_over(name, f"{MANIFEST} cannot be used ({reason})")
            return None
        return dict(manifest)

    def _pass_over(self, name: str, reason: str) -> None:
        logger.warning("%s/%s: %s; the one before it is used", self.folder.uri, name, reason)
        self._passed_over.add(name)


def snapshot(state: Any) -> Any:
    """A copy on the CPU that shares no memory with ``state``, of nested containers, tensors and plain values.

    Copies from a GPU run side by side into pinned memory; the wait for them is the only one.
    """
    copied = _copy(state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_cuda:
            return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        copied: Any = type(value)((key, _copy(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # of a module's state: versions of its parts
            copied._metadata = _copy(value._metadata)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    return value
