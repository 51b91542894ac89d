"""The runs that cluster files are for: their commands are those of our command line, and their workers fit the nodes."""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
import warnings
from pathlib import Path
from typing import Any

import typer

from swav_ray.cli import app
from swav_ray.cli.app import overrides_of
from swav_ray.cli.training import worker_range
from swav_ray.config import load_config
from swav_ray.errors import UserError
from swav_ray.tune.space import load_space
from tests.clusters.files import Group


def commands_in(script: str) -> list[list[str]]:
    """The simple commands of a piece of shell, split into words."""
    commands: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        commands.append([])
        for word in shlex.split(re.sub(r"(&&|;|\|\|?)", r" \1 ", line), comments=True):
            if re.fullmatch(r"&&?|;|\|\|?", word):
                commands.append([])
            else:
                commands[-1].append(word)
    return [command for command in commands if command]


@functools.cache
def ray_command() -> Any:
    """The command line of Ray; its import warns of what Ray itself does."""
    with warnings.catch_warnings(action="ignore"):
        from ray.scripts.scripts import cli
    return cli


@functools.cache
def _command_line() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """A command of ours and its options.

    Raises:
        ValueError: there is no such command or option.
    """
    command = _command_line()
    names = []
    while hasattr(command, "commands"):
        if names == ["tune"] and words[0] not in command.commands:
            words = ["run", *words]
        if words[0] not in command.commands:
            raise ValueError(f"swav-ray has no command {words[0]!r}")
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    try:
        return " ".join(names), dict(command.make_context(names[-1], list(words)).params)
    except typer.BadParameter.__base__ as error:  # typer's UsageError, which has no public name
        raise ValueError(error.format_message()) from None


def run_mistakes(words: list[str], groups: list[Group], files: dict[str, str] | None = None) -> list[str]:
    """What is wrong with ``swav-ray ...`` on a cluster of ``groups``; ``files`` are those its command may name."""
    if words[0] != "swav-ray":
        return [f"{words[0]!r} is not swav-ray"]
    try:
        name, options = parse(words[1:])
        if name == "pretrain":
            return _pretrain_mistakes(options, groups)
        if name == "tune run":
            return _tune_mistakes(options, groups, files or {})
    except (ValueError, UserError) as error:
        return [str(error)]
    return []


def _pretrain_mistakes(options: dict[str, Any], groups: list[Group]) -> list[str]:
    overrides = overrides_of(options["settings"])
    if options["workers"] is None:
        return ["--workers is not given"]
    overrides["elastic.min"], overrides["elastic.max"] = low, high = worker_range(options["workers"])
    if options["storage"]:
        overrides["storage"] = options["storage"]
    elastic = load_config(options["recipe"], overrides).elastic
    found = range_mistakes(f"--workers {options['workers']}", low, high, groups)
    if elastic.gpus_per_worker is None:
        found.append(
            "elastic.gpus_per_worker is not set: before the first GPU node is there, a run sees none and trains without"
        )
    return found + fit_mistakes("elastic", elastic.gpus_per_worker or 0, elastic.cpus_per_worker, groups)


def range_mistakes(what: str, low: int, high: int, groups: list[Group]) -> list[str]:
    """A run of ``low`` to ``high`` workers, one a GPU, and the nodes that may be there."""
    (gpu,) = [group for group in groups if group.gpus]
    found = []
    if high != gpu.most * gpu.gpus:
        found.append(
            f"{what}: {gpu.key} gives at most {gpu.most} nodes of {gpu.gpus:g} GPUs, so at most {gpu.most * gpu.gpus:g} workers"
        )
    if gpu.least * gpu.gpus > low:
        found.append(f"{what}: {gpu.key} always keeps {gpu.least} nodes, more than the {low} workers the run may have")
    return found


def fit_mistakes(what: str, gpus: float, cpus: float, groups: list[Group]) -> list[str]:
    """Workers of a GPU node that take all its GPUs must leave a processor for Ray Data."""
    (gpu,) = [group for group in groups if group.gpus]
    found = []
    if not 0 < gpus <= gpu.gpus or gpu.gpus % gpus:
        found.append(f"{what}.gpus_per_worker {gpus:g}: a node of {gpu.key} has {gpu.gpus:g}")
    elif cpus * gpu.gpus / gpus > gpu.cpus - 1:
        found.append(
            f"{what}.cpus_per_worker {cpus:g}: a node of {gpu.key} has {gpu.cpus:g} processors, and one must stay for data"
        )
    return found


def _tune_mistakes(options: dict[str, Any], groups: list[Group], files: dict[str, str]) -> list[str]:
    place = str(options["space_file"])
    if place not in files:
        return [f"{place}: no ConfigMap puts a file there"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(files[place])
        try:
            space = load_space(path, overrides_of(options["settings"]), budget=None, concurrency=options["concurrency"])
        except UserError as error:
            raise ValueError(str(error).replace(str(path), path.name)) from None
    (gpu,) = [group for group in groups if group.gpus]
    high = space.resources.worker_range[1]
    gpus, found = space.resources.gpus_per_worker, []
    if gpus is None:
        return ["space.yaml: resources.gpus_per_worker is not set"]
    if space.concurrency * high * gpus != gpu.most * gpu.gpus:
        found.append(
            f"space.yaml: concurrency {space.concurrency} of {high} workers each: {gpu.key} gives {gpu.most * gpu.gpus:g} GPUs"
        )
    return found + fit_mistakes("space.yaml: resources", gpus, space.resources.cpus_per_worker, groups)
