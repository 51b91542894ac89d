"""Labels of a source to numbers, and the names of these."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swav_ray.data.storage import locate
from swav_ray.errors import UserError, did_you_mean, shown


@dataclass(frozen=True)
class Labels:
    """Class names in the order of their numbers; without any, numbers are taken as they are."""

    classes: tuple[str, ...] = ()

    @functools.cached_property
    def _places(self) -> dict[Any, int]:
        return {name: place for place, name in enumerate(self.classes)}

    def number(self, label: Any, where: str) -> int:
        """The number of a label, -1 for none.

        Args:
            label: a number, a class name, or None.
            where: names the image in messages.

        Raises:
            UserError: it is neither a number in range nor a known name.
        """
        if label is None or label == "":
            return -1
        if label in self._places:
            return self._places[label]
        number = as_number(label)
        if number is None:
            if self.classes:
                raise UserError(f"{where}: no class {shown(label)}{did_you_mean(str(label), self.classes)}")
            raise UserError(f"{where}: label {shown(label)} is no number; give the names in order with --classes FILE")
        if number < -1 or (self.classes and number >= len(self.classes)):
            upper = f" to {len(self.classes) - 1}" if self.classes else " up"
            raise UserError(f"{where}: label {number} is out of range; labels go from 0{upper}, and -1 is none")
        return number


def as_number(label: Any) -> int | None:
    """A label as the number it is or spells, None if it is no whole number."""
    try:
        number = int(label)
    except (TypeError, ValueError):
        return None
    return number if isinstance(label, str) or number == label else None


def named_by(labels: Iterable[Any]) -> Labels:
    """Names for labels that are words, in sorted order; none if all are numbers."""
    words = {label for label in labels if label not in (None, "")}
    return Labels() if all(as_number(word) is not None for word in words) else Labels(tuple(sorted(map(str, words))))


def read_classes(uri: str) -> Labels:
    """Class names from a text file, one a line.

    Raises:
        UserError: no such file, or a name that is empty or there twice.
    """
    folder, name = locate(uri)
    try:
        lines = folder.read(name).decode().rstrip("\n").split("\n")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"--classes {uri}: no such text file") from None
    names = [line.strip() for line in lines]
    for place, entry in enumerate(names, 1):
        if not entry or entry in names[: place - 1]:
            raise UserError(f"--classes {uri}, line {place}: {f'{entry!r} is there twice' if entry else 'no name'}")
    return Labels(tuple(names))


def entry_of(entries: dict[str, Any], key: str, known: Sequence[str], where: str) -> Any:
    """The entry under ``key`` if given, else under the first of ``known`` that is there, else None.

    Raises:
        UserError: ``key`` is given and not there.
    """
    if key:
        if key not in entries:
            raise UserError(f"{where}: has no {key!r}{did_you_mean(key, entries)}; there are {', '.join(sorted(entries))}")
        return entries[key]
    return next((entries[name] for name in known if name in entries), None)
