"""Versions on every node: what this package asks for, and that nodes agree."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from swav_ray.doctor.check import Check, by_node, failure, listed, ok, skipped, warning

PACKAGE = "swav-ray"
# Where these differ, nodes cannot talk or compute different things.
MUST_AGREE = (PACKAGE, "ray", "torch", "torchvision", "numpy", "pillow", "numba")


def requirements() -> tuple[str, list[Requirement]]:
    """The Python and the packages that the installed package asks for; nothing where it is run from a bare checkout."""
    try:
        about = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "", []
    wanted = [Requirement(text) for text in about.requires or []]
    python = str(about.metadata["Requires-Python"] or "")
    return python, [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def names(wanted: list[Requirement]) -> list[str]:
    """Whose versions to look up."""
    return [PACKAGE, *(one.name for one in wanted)]


def check_versions(nodes: Mapping[str, Mapping[str, Any]], python: str, wanted: list[Requirement]) -> list[Check]:
    """Python and packages against what is asked for, and between nodes."""
    return [_python(nodes, python), _packages(nodes, wanted), *([_agreement(nodes, wanted)] if len(nodes) > 1 else [])]


def _python(nodes: Mapping[str, Mapping[str, Any]], asked: str) -> Check:
    found = {node: str(facts["python"]) for node, facts in nodes.items()}
    wrong = {node: version for node, version in found.items() if not SpecifierSet(asked).contains(version, prereleases=True)}
    if wrong:
        return failure("python", f"{by_node(wrong)}, {PACKAGE} needs {asked}", f"install Python {asked} there")
    if len({version.rpartition(".")[0] for version in found.values()}) > 1:
        return failure("python", by_node(found), "use one Python version on all nodes: Ray sends code between them")
    if len(set(found.values())) > 1:
        return warning("python", by_node(found), "use one Python version on all nodes, best by one image")
    return ok("python", next(iter(found.values())))


def _packages(nodes: Mapping[str, Mapping[str, Any]], wanted: list[Requirement]) -> Check:
    if not wanted:
        return skipped("packages", f"{PACKAGE} is not installed here, so what it needs is unknown; pip install it")
    wrong: dict[str, str] = {}
    mends: dict[str, None] = {}
    for node, facts in nodes.items():
        parts = []
        if facts["packages"].get(PACKAGE) is None:
            parts.append(f"{PACKAGE} is missing")
            mends[PACKAGE] = None
        for one in wanted:
            version = facts["packages"].get(one.name)
            if version is None or not one.specifier.contains(version, prereleases=True):
                parts.append(f"{one.name} {version or 'is missing'}, needed {one.specifier}")
                mends[f"'{one.name}{one.specifier}'"] = None
        if parts:
            wrong[node] = listed(parts)
    if wrong:
        return failure("packages", by_node(wrong), f"pip install {' '.join(mends)} there, or use one image for all nodes")
    some = next(iter(nodes.values()))["packages"]
    shown = ", ".join(f"{name} {some[name]}" for name in (PACKAGE, "ray", "torch") if some.get(name))
    return ok("packages", f"{shown}; all {len(wanted)} requirements are met")


def _agreement(nodes: Mapping[str, Mapping[str, Any]], wanted: list[Requirement]) -> Check:
    differing = {}
    for name in names(wanted):
        versions = {node: str(facts["packages"].get(name)) for node, facts in nodes.items()}
        if len(set(versions.values())) > 1:
            differing[name] = by_node(versions)
    grave = {name: text for name, text in differing.items() if name in MUST_AGREE}
    mend = "install the same versions on all nodes, best by one image"
    if grave:
        return failure("agreement", listed(f"{name}: {text}" for name, text in grave.items()), mend)
    if differing:
        return warning("agreement", listed(f"{name}: {text}" for name, text in differing.items()), mend)
    return ok("agreement", f"the same versions on {len(nodes)} nodes")
