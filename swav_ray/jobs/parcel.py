"""What travels to the cluster: a command whose configuration stands in files of its own, all addresses absolute.

Everything is read, checked and written out here, so that a mistake is told before anything is sent, and so that files which
git ignores, or which lie elsewhere, come along.
"""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swav_ray.config import Config
from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.errors import UserError
from swav_ray.tune.space import load_space, merged
from swav_ray.yaml_files import dump, read_mapping

FOLDER = ".swav-ray"  # of our files in the job's folder; no user has one
PLACES = ("storage", "data.train", "data.test")
SIZE_LIMIT_MB = 500  # Ray's own, of what is sent
WITH_KEYS = re.compile(r"(s3)://[^/\s]*[:@]|(\w+)://[^/\s]*@")  # an address that holds a user, a key or a password


@dataclass(frozen=True)
class Parcel:
    """A command for the cluster.

    Attributes:
        arguments: of `swav-ray`, as it is run there.
        files: to write in the job's folder before, by their relative paths.
        name, folder: of the run or sweep; empty where the command makes none.
        local: settings that name a folder rather than an s3:// address, which every node must see under the same path.
    """

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    folder: str = ""
    local: dict[str, str] = field(default_factory=dict)


def pack_run(config: Config) -> Parcel:
    """`pretrain` of a whole configuration, named."""
    values = config.model_dump(mode="json")
    local = _settle(values)
    path = f"{FOLDER}/config.yaml"
    folder = (Storage(values["storage"]) / config.name).uri
    return Parcel(["pretrain", path, "--name", config.name], {path: dump(values).encode()}, config.name, folder, local)


def pack_sweep(kind: str, file: Path, overrides: dict[str, Any], **changes: Any) -> Parcel:
    """`tune KIND` of a space file with its recipe and what the command line put on top of it."""
    space = load_space(file, overrides, **changes)
    if space.study and _has_password(space.study):
        raise UserError(
            f"study: {space.shown_study()} holds a password, which the cluster would keep; leave it out, and have the "
            "database's own variable (PGPASSWORD) or file on the cluster's head, or send it with --env"
        )
    if space.study and space.study.startswith("sqlite:///") and not space.study.startswith("sqlite:////"):
        raise UserError(
            f"study: {space.shown_study()} would lie in the job's own folder and go with it; give the full path after four "
            "slashes, or leave it out for a journal in the sweep's folder"
        )
    values = merged(read_mapping(file)[0], overrides, changes)
    files: dict[str, bytes] = {}
    local: dict[str, str] = {}
    if space.recipe.endswith((".yaml", ".yml")) or "/" in space.recipe:
        recipe = read_mapping(Path(space.recipe))[0]
        local |= _settle(recipe)
        # The name belongs to the sweep's identity: the same one as without a cluster, where it can be.
        inside = not Path(space.recipe).is_absolute() and ".." not in Path(space.recipe).parts
        values["recipe"] = space.recipe if inside else f"{FOLDER}/{Path(space.recipe).name}"
        files[os.path.normpath(values["recipe"])] = dump(recipe).encode()
    given = values.setdefault("overrides", {})
    for key in PLACES:
        if given.get(key):
            local |= _made_absolute(given, key, key)
    if not given.get("storage"):  # the recipe's own, or the default, which is a folder
        storage = str(space.look({}, "storage"))
        given["storage"] = absolute_uri(storage)
        local |= {} if "://" in given["storage"] else {"storage": given["storage"]}
    path = f"{FOLDER}/sweep/space.yaml"  # not beside the recipe, which may be called so
    files[path] = dump(values).encode()
    folder = (Storage(given["storage"]) / space.name).uri
    return Parcel(["tune", kind, path], files, space.name, folder, local)


def pack_words(arguments: list[str]) -> Parcel:
    """Any other command as it stands, but for paths that exist here: YAML files come along, others are made absolute.

    Raises:
        UserError: an address holds a key, which whoever sees the cluster's jobs could read.
    """
    for word in arguments:
        if found := WITH_KEYS.search(word):
            raise UserError(
                f"submit: {arguments[0]}: {found[1] or found[2]}://*** holds a key or password, which whoever sees the "
                "cluster's jobs could read; leave it out: the nodes take theirs from the environment or their role"
            )
    words: list[str] = []
    files: dict[str, bytes] = {}
    local: dict[str, str] = {}
    for number, word in enumerate(arguments):
        if word.endswith((".yaml", ".yml")) and _is_there(word):
            values = read_mapping(Path(word))[0]
            local |= _settle(values)
            word = f"{FOLDER}/{number}-{Path(word).name}"
            files[word] = dump(values).encode()
        elif "/" in word and "://" not in word and _is_there(word):
            word = str(Path(word).absolute())
        words.append(word)
    return Parcel(words, files, local=local)


def _is_there(word: str) -> bool:
    return os.path.exists(word)  # noqa: PTH110  Path's raises where one may not enter


def write_zip(parcel: Parcel, folder: str | None, target: Path) -> Path:
    """The job's folder as Ray takes it: the files of ``folder`` that git does not ignore, and the parcel's own on top.

    Raises:
        UserError: no such folder, or it is too large.
    """
    entries = dict(parcel.files)
    if folder is not None:
        entries = _packed(Path(folder), target.with_suffix(".folder.zip")) | entries
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(entries):
            # Without times: the same content is the same package.
            archive.writestr(zipfile.ZipInfo(name), entries[name], compress_type=zipfile.ZIP_DEFLATED)
    if target.stat().st_size > SIZE_LIMIT_MB * 2**20:
        size = target.stat().st_size / 2**20
        raise UserError(
            f"--working-dir {folder}: {size:.0f} MB are more than a job can bring ({SIZE_LIMIT_MB}); list "
            "data in its .gitignore or .rayignore, and keep it on S3"
        )
    return target


def _packed(folder: Path, scratch: Path) -> dict[str, bytes]:
    from ray._private.runtime_env.packaging import create_package

    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: no such folder")
    create_package(str(folder), scratch, include_gitignore=True, excludes=[".git", ".venv"], logger=None)
    with zipfile.ZipFile(scratch) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}


def _settle(values: dict[str, Any]) -> dict[str, str]:
    """Make the addresses in a nested configuration absolute, in place; those that are folders, by dotted key."""
    local: dict[str, str] = {}
    for key in PLACES:
        *sections, leaf = key.split(".")
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(leaf):
            local |= _made_absolute(section, leaf, key)
    return local


def _made_absolute(section: dict[str, Any], leaf: str, key: str) -> dict[str, str]:
    section[leaf] = absolute_uri(section[leaf])
    return {} if "://" in section[leaf] or section[leaf].startswith("demo:") else {key: section[leaf]}


def _has_password(url: str) -> bool:
    from sqlalchemy.engine import make_url

    address = make_url(url)
    return bool(address.password) or any("pass" in key.lower() for key in address.query)
