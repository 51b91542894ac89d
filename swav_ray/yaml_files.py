"""YAML as users write it: numbers as they mean them, a key once, and the line of every entry for the errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swav_ray.errors import UserError

# What PyYAML lets through from a value it cannot build (`2001-99-99`, `!!int x`) beside its own errors.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads ``1e-3`` as a number, which YAML 1.1 takes for text."""


class Dumper(yaml.SafeDumper):
    """Writes what :class:`Loader` reads back: the text ``1e-3`` in quotes."""


for _kind in (Loader, Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


@dataclass(frozen=True)
class Lines:
    """Where in its file each entry stands; empty for values that come from no file."""

    file: str
    numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)  # path of keys and list positions -> 1-based line

    def place(self, path: Sequence[Any]) -> str:
        """``FILE:LINE`` of the entry at ``path``, or of the nearest one around it that stands in the file; else ``FILE``."""
        for length in range(len(path), 0, -1):
            line = self.numbers.get(tuple(path[:length]))
            if line is not None:
                return f"{self.file}:{line}"
        return self.file


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        any of NOT_YAML: it is none.
    """
    return yaml.load(text, Loader)  # a safe loader


def dump(values: dict[str, Any]) -> str:
    """``values`` as YAML, in their order."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False)


def read_mapping(path: Path) -> tuple[dict[str, Any], Lines]:
    """A YAML file that holds a mapping, and where its entries stand.

    Raises:
        UserError: no such file, not YAML, a key that stands twice, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # also a name with a null byte
        raise UserError(f"{path}: cannot be read: {error}") from None
    numbers: dict[tuple[Any, ...], int] = {}
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _number(node, (), numbers, str(path), set())
        content = loader.construct_document(node) if node is not None else None
    except NOT_YAML as error:
        raise UserError(_not_yaml(error, path)) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, found {type(content).__name__}")
    return content, Lines(str(path), numbers)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of :func:`read_mapping`."""
    return read_mapping(path)[0]


def _not_yaml(error: Exception, path: Path) -> str:
    """Without the snippet of the text that PyYAML shows: it may hold a password."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {' '.join(str(what).split())}"


def _number(node: yaml.Node, path: tuple[Any, ...], numbers: dict[tuple[Any, ...], int], file: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias: its entries stand where the anchor is
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            numbers[(*path, position)] = child.start_mark.line + 1
            _number(child, (*path, position), numbers, file, seen)
    elif isinstance(node, yaml.MappingNode):
        here: dict[str, int] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in here and key != "<<":
                raise UserError(f"{file}:{line}: {'.'.join(map(str, (*path, key)))} stands twice, first in line {here[key]}")
            here[key] = numbers[(*path, key)] = line
            _number(child, (*path, key), numbers, file, seen)
