"""The image: what the Dockerfile says, held to its linter, to the repository and to pyproject.toml. It is not built here."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.clusters.files import CLUSTERS, PROJECT, ROOT, secret_mistakes
from tests.clusters.runs import commands_in, parse

DOCKERFILE = CLUSTERS / "Dockerfile"
# Beside this Python; there are no wheels of it for some machines, and nothing is linted there.
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
ALLOWED = {"DL3013"}  # "pin versions in pip": of the project itself, whose versions stand in pyproject.toml
NEEDS = {"RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


class Base(NamedTuple):
    """``rayproject/ray:2.60.0-py311``"""

    ray: str
    python: str


def base_of(text: str) -> Base | None:
    match = re.search(r"^FROM rayproject/ray:(\d+\.\d+\.\d+)-py(3)(\d+)(-[a-z0-9]+)?$", text, re.MULTILINE)
    return None if match is None else Base(match[1], f"{match[2]}.{match[3]}")


@functools.cache
def base() -> Base:
    found = base_of(DOCKERFILE.read_text())
    assert found is not None, "clusters/Dockerfile: FROM: names no rayproject/ray:X.Y.Z-pyNNN"
    return found


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def mistakes(text: str) -> list[str]:
    found = secret_mistakes(text) + _lint(text)
    if found:
        return found
    said = instructions(text)
    found += _base_mistakes(text)
    environment = dict(word.split("=", 1) for name, rest in said if name == "ENV" for word in rest.split())
    found += [f"ENV {key}: must be {value}" for key, value in NEEDS.items() if environment.get(key) != value]
    copied = set()
    for source in (word for name, rest in said if name == "COPY" for word in rest.split()[:-1] if not word.startswith("--")):
        copied.add(source)
        if not (ROOT / source).exists():
            found.append(f"COPY {source}: the repository has no such file")
        if f"!{source}" not in (ROOT / ".dockerignore").read_text().splitlines():
            found.append(f"COPY {source}: .dockerignore keeps it from the builder")
    # What setuptools reads to build the wheel, and the sweeps that people start with.
    for needed in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "swav_ray", "search_spaces"):
        if needed not in copied:
            found.append(f"COPY: {needed} is needed in the image")
    return found + _install_mistakes(said)


def _lint(text: str) -> list[str]:
    if HADOLINT is None:
        return []
    done = subprocess.run([HADOLINT, "--format", "json", "-"], input=text, capture_output=True, text=True, timeout=60)
    assert done.stdout, f"hadolint says nothing: {done.stderr}"
    return [
        f"line {each['line']}: {each['code']} {each['message']}"
        for each in json.loads(done.stdout)
        if each["code"] not in ALLOWED
    ]


def _base_mistakes(text: str) -> list[str]:
    found, at = base_of(text), "FROM"
    if found is None:
        return [f"{at}: must be rayproject/ray:X.Y.Z-pyNNN, pinned to a version"]
    (ray,) = [wanted for wanted in map(Requirement, PROJECT["dependencies"]) if wanted.name == "ray"]
    if found.ray not in ray.specifier:
        return [f"{at}: Ray {found.ray} is not {ray.specifier} (pyproject.toml)"]
    if f"{found.python}.0" not in SpecifierSet(PROJECT["requires-python"]):
        return [f"{at}: Python {found.python} is not {PROJECT['requires-python']} (pyproject.toml)"]
    return []


def _install_mistakes(said: list[tuple[str, str]]) -> list[str]:
    """One `pip install` of the project itself: pyproject.toml holds the only list of versions."""
    runs = [words for name, rest in said if name == "RUN" for words in commands_in(rest)]
    pip = [words for words in runs if words[:2] == ["pip", "install"]]
    wanted = [word for words in pip for word in words[2:] if not word.startswith("-")]
    found = []
    if len(wanted) != 1 or not (match := re.fullmatch(r"\.(?:\[([a-z,]+)\])?", wanted[0])):
        found.append(f"RUN pip install {' '.join(wanted)}: must install this project and nothing beside it")
    else:
        extras = set((match[1] or "").split(",")) - {""}
        found += [
            f"RUN pip install: pyproject.toml has no extra {name!r}"
            for name in sorted(extras - set(PROJECT["optional-dependencies"]))
        ]
        if "cloud" not in extras:
            found.append("RUN pip install: the head starts nodes with what the extra 'cloud' brings")
    for words in runs:
        if words[0] == "swav-ray" and words[1:] != ["--version"]:
            try:
                parse(words[1:])
            except ValueError as error:
                found.append(f"RUN {' '.join(words)}: {error}")
    return found


def ignore_mistakes(text: str) -> list[str]:
    """Of `.dockerignore`: everything stays out but what is named, and that exists."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [] if lines[0] == "*" else [".dockerignore: everything must stay out that is not named"]
    return found + [
        f".dockerignore {line}: no such file" for line in lines if line[0] == "!" and not Path(ROOT / line[1:]).exists()
    ]
