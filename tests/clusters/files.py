"""What the checks of `clusters/` share: its files, what they are held to, and how a mistake is told."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonschema import Draft7Validator

from swav_ray.config_sections import Elastic

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# As long as a run may stand still without holding its nodes: found stuck, found silent, waited for its checkpoint.
RESTART_SECONDS = sum(
    Elastic.model_fields[name].default for name in ("stuck_seconds", "silent_seconds", "checkpoint_wait_seconds")
)
MARKET = "ray.io/market-type"  # Ray's own label
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|(?i:secret_?access_?key|access_?key_?id|gcp_credentials|password|auth_token|api_?key)[\"']?\s*[:=]\s*[\"']?"
    r"(?![~{$])\S"
)


class Group(NamedTuple):
    """Nodes of one kind: how many there may be, and what each has."""

    key: str  # where it stands in its file
    least: int
    most: int
    cpus: float
    gpus: float


class _Once(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C where it can be: much is read here
    """Refuses a key that stands twice in a mapping, as kubectl does; PyYAML takes the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def documents(text: str) -> list[Any]:
    """What a YAML file holds."""
    return list(yaml.load_all(text, _Once))


def name_of(path: Iterable[Any]) -> str:
    """``spec.workerGroupSpecs[1].maxReplicas`` of a path in a document."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def schema_mistakes(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """``key: what is wrong`` for each violation of a JSON schema; the deepest of alternatives."""
    found = []
    for error in Draft7Validator(schema).iter_errors(value):
        while error.context:
            error = max(error.context, key=lambda inner: len(inner.absolute_path))
        key = name_of(error.absolute_path)
        found.append(f"{at}.{key}: {error.message}" if at else f"{key}: {error.message}")
    return found


def gibibytes(text: str) -> float:
    """Of ``26Gi``, ``10g`` (docker's) or a number of bytes."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"": 2**-30, "Mi": 2**-10, "m": 2**-10, "Gi": 1, "g": 1}[unit]


def secret_mistakes(text: str) -> list[str]:
    return [
        f"line {text[: match.start()].count(chr(10)) + 1}: {match[0]!r} looks like a credential"
        for match in SECRETS.finditer(text)
    ]
