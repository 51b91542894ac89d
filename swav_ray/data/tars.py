"""Images in tar files as WebDataset has them: members that share a name up to its first dot are one sample."""

from __future__ import annotations

import functools
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Self, cast

from swav_ray.data.chunks import Source
from swav_ray.data.decode import BadImageError
from swav_ray.data.labels import Labels, entry_of
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError, did_you_mean

READ_BYTES = 2**20
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)  # gzip's errors are OSErrors


@dataclass(frozen=True)
class Tars:
    """A chunk of one or more tar files, read from beginning to end.

    Args:
        names: of the tar files below ``root``.
        size: bytes of all of them.
        image: which member of a sample is the image, as `jpg` or `left.png`; empty: the only one that is an image.
        label: key of the `.json` member that holds the label; empty: the `.cls` member, else `label` or `cls` in `.json`.
    """

    root: Storage
    names: tuple[str, ...]
    size: int
    labels: Labels
    endings: frozenset[str]
    image: str = ""
    label: str = ""
    count: int = 0

    def signature(self) -> str:
        return json.dumps([self.names, self.size, self.image, self.label])

    def __iter__(self) -> Iterator[Source]:
        for name in self.names:
            for key, members in samples(self.root, name):
                yield self._source(f"{name}/{key}", members)

    def _source(self, id: str, members: dict[str, bytes]) -> Source:
        where = f"{self.root.uri}/{id}"
        images = [self.image] if self.image else [e for e in members if f".{e.rpartition('.')[2]}" in self.endings]
        if len(images) > 1:
            raise UserError(f"{where}: holds {' and '.join(sorted(images))}; say which is the image, as in --image {images[0]}")
        if not images or images[0] not in members:
            return Source(id, -1, functools.partial(_missing, self.image, tuple(sorted(members))))
        return Source(id, self.labels.number(self._label(members, where), where), functools.partial(bytes, members[images[0]]))

    def _label(self, members: dict[str, bytes], where: str) -> Any:
        if "cls" in members and not self.label:
            return members["cls"].decode(errors="replace").strip()
        if "json" not in members:
            return None
        try:
            entries = json.loads(members["json"])
        except ValueError:
            raise UserError(f"{where}.json: not valid JSON") from None
        return entry_of(entries if isinstance(entries, dict) else {}, self.label, ("label", "cls"), f"{where}.json")


def _missing(image: str, members: Sequence[str]) -> bytes:
    raise BadImageError(f"no {image or 'image'} among {', '.join(members)}" + (did_you_mean(image, members) if image else ""))


def samples(root: Storage, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar file: the name its members share, and their bytes by what follows its first dot.

    Raises:
        UserError: the file is broken or cut off.
    """
    place, count = f"{root.uri}/{name}", 0
    key, members = "", {}  # type: ignore[var-annotated]
    try:
        with (
            root.arrow.open_input_stream(root.path(name), compression=None, buffer_size=READ_BYTES) as stream,
            tarfile.open(
                fileobj=cast(IO[bytes], stream), mode="r|*", bufsize=READ_BYTES, tarinfo=_Header, errors="backslashreplace"
            ) as tar,
        ):
            for member in tar:
                folder, slash, file = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = file.partition(".")
                if not member.isfile() or not stem or stem.startswith("__"):
                    continue  # hidden files, and what WebDataset says of the whole
                if folder + slash + stem != key:
                    if members:
                        yield key, members
                    key, members = folder + slash + stem, {}
                members[ending.lower()] = cast(IO[bytes], tar.extractfile(member)).read()
                count += 1
    except StorageAwayError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise UserError(f"{place}: broken after {count} members ({reason}); fetch it again or leave it out") from None
    if members:
        yield key, members


class _Header(tarfile.TarInfo):
    """Headers read strictly: Python takes a broken one, or none, for the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the end as it should be
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
