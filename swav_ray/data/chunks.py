"""What a source is to those who make shards: images, in chunks that workers take whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Source:
    """One image to put into shards; `read` gives its bytes."""

    id: str
    label: int  # -1: none
    read: Callable[[], bytes]


class Chunk(Protocol):
    """A run of a source's images that one worker puts into shards. Pickles."""

    @property
    def size(self) -> int:
        """Bytes of the images, about."""

    @property
    def count(self) -> int:
        """How many images; 0 if nobody knows yet."""

    def signature(self) -> str:
        """What differs between two chunks with other images or labels."""

    def __iter__(self) -> Iterator[Source]:
        """The images, in the same order every time."""


@dataclass(frozen=True)
class Listed:
    """A chunk of images that can be read one by one."""

    sources: Sequence[Source]
    size: int = 0

    @property
    def count(self) -> int:
        return len(self.sources)

    def signature(self) -> str:
        digest = hashlib.sha256(str(self.size).encode())
        for source in self.sources:
            digest.update(f"{source.id}\0{source.label}\n".encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)


def cut(ordered: Sequence[str], sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in runs of about ``most`` bytes."""
    runs: list[list[str]] = [[]]
    total = 0
    for name in ordered:
        if total >= most:
            runs.append([])
            total = 0
        runs[-1].append(name)
        total += sizes[name]
    return runs


def scattered(name: str) -> bytes:
    """Sorting by it is a random order, the same on every machine."""
    return hashlib.blake2b(name.encode()).digest()


def chunks_of(sources: Sequence[Source], sizes: Mapping[str, int], most: int) -> list[Listed]:
    """Images in chunks of about ``most`` bytes, in an order that scatters folders and with them classes.

    Training shuffles within windows of some row groups only; over shards that lie class by class a batch would hold few.
    """
    of = {source.id: source for source in sources}
    runs = cut(sorted(of, key=scattered), sizes, most)
    return [Listed([of[id] for id in run], sum(sizes[id] for id in run)) for run in runs]
