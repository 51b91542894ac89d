"""Bundles that a stranger made to do harm: refused in one line, with nothing left, whatever is wrong with them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swav_ray.errors import UserError
from swav_ray.share import receive
from swav_ray.share.send import Send
from swav_ray.share.unpack import unpack
from tests.share.send_server import SendServer

GOOD = {"a.txt": b"hello", "b.json": b"{}"}


def make(
    files: dict[str, bytes],
    *,
    claimed: Callable[[dict[str, Any]], Any] = lambda manifest: manifest,
    compression: int = zipfile.ZIP_STORED,
    mode: int = 0,
    extra: tuple[tuple[str, bytes], ...] = (),
    comment: bytes = b"",
) -> bytes:
    """A bundle as ours are, but for what is asked for."""
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    manifest = claimed({"format": 1, "name": "x", "files": entries})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in (*files.items(), *extra):
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = mode << 16
            archive.writestr(info, data)
        archive.writestr("manifest.json", manifest if isinstance(manifest, bytes) else json.dumps(manifest))
        archive.comment = comment
    return out.getvalue()


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        *sections, last = path.split("/")
        place = manifest
        for section in sections:
            place = place[section]
        place[last] = value
        return manifest

    return change


class Payload:
    """A pickle that leaves a file behind if it is ever loaded."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {Path.cwd() / 'executed'}",)


def overlapping() -> bytes:
    """Two members whose bytes are the same ones of the file: it grows when it is unpacked."""
    content = b"x" * 5000
    data = bytearray(make({"a.txt": content, "b.txt": content}))
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)  # the second entry of the directory
    data[at + 42 : at + 46] = struct.pack("<I", 0)  # lies where the first does
    start = data.index(b"PK\3\4", 4)
    end = data.index(b"PK\3\4", start + 4)
    gap = end - start
    del data[start:end]
    third = data.index(b"PK\1\2", data.index(b"PK\1\2", data.index(b"PK\1\2") + 4) + 4)
    offset = struct.unpack("<I", data[third + 42 : third + 46])[0]
    data[third + 42 : third + 46] = struct.pack("<I", offset - gap)
    offset = struct.unpack("<I", data[-6:-2])[0]
    data[-6:-2] = struct.pack("<I", offset - gap)
    return bytes(data)


def zip64() -> bytes:
    """The directory's size stands once more, in a record that readers of large zips believe instead."""
    data = make(GOOD)
    *_, entries, size, offset, _ = struct.unpack("<4s4H2LH", data[-22:])
    more = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
    return data[:-22] + more + struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1) + data[-22:]


def lying_directory(claimed: int) -> bytes:
    data = bytearray(make(GOOD))
    data[-10:-6] = struct.pack("<I", claimed)
    return bytes(data)


def renamed_in_directory() -> bytes:
    data = bytearray(make(GOOD))
    at = data.rindex(b"a.txt", 0, data.rindex(b"b.json"))
    data[at : at + 5] = b"c.txt"
    return bytes(data)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a zip": (lambda: b"hello" * 100, "no zip"),
    "empty": (lambda: b"x", "no zip"),
    "truncated": (lambda: make(GOOD)[:-30], "no zip"),
    "no manifest": (lambda: make(GOOD).replace(b"manifest.json", b"manifest.txt.")[:], "not a whole zip|no manifest|not plain"),
    "zip bomb": (lambda: make({"a.txt": b"0" * 10**7}, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "bzip bomb": (lambda: make({"a.txt": b"0" * 10**7}, compression=zipfile.ZIP_BZIP2), "compressed or encrypted"),
    "overlapping": (overlapping, "claim .* bytes, the whole file has|Overlapped"),
    "thousands of members": (lambda: make({f"{n}.txt": b"" for n in range(65)}), "it has 66 members"),
    "a directory of a gigabyte": (lambda: lying_directory(2**30), "its directory is larger"),
    "a second size of the directory": (zip64, "its directory is larger"),
    "a directory of many entries": (lambda: make({f"{n}.txt": b"" for n in range(3000)}), "its directory is larger"),
    "absolute name": (lambda: make({"/tmp/evil.txt": b"x"}), "not plain"),
    "parent name": (lambda: make({"../evil.txt": b"x"}), "not plain"),
    "deep parent": (lambda: make({"a/../../evil.txt": b"x"}), "not plain"),
    "backslashes": (lambda: make({"..\\evil.txt": b"x"}), "not plain"),
    "drive": (lambda: make({"C:evil.txt": b"x"}), "not plain"),
    "hidden": (lambda: make({".bashrc.txt": b"x"}), "not plain"),
    "folder": (lambda: make({"folder/": b""}), "not plain"),
    "escape sequence": (lambda: make({"a\x1b[2J.txt": b"x"}), "not plain"),
    "symbolic link": (lambda: make({"a.txt": b"/etc/passwd"}, mode=0o120777), "a link or a device"),
    "device": (lambda: make({"a.txt": b""}, mode=0o020666), "a link or a device"),
    "twice": (lambda: make(GOOD, extra=(("a.txt", b"other"),)), "two members have one name"),
    "twice but for case": (lambda: make({"a.txt": b"1", "A.txt": b"2"}), "two members have one name"),
    "not in the manifest": (lambda: make(GOOD, extra=(("c.txt", b"x"),)), "not in both"),
    "missing": (lambda: make(GOOD, claimed=changed("files/c.txt", {"bytes": 1, "sha256": ""})), "not in both"),
    "manifest of itself": (
        lambda: make(GOOD, claimed=changed("files/manifest.json", {"bytes": 1, "sha256": ""})),
        "not in both",
    ),
    "lying size": (lambda: make(GOOD, claimed=changed("files/a.txt/bytes", 6)), "has 5 bytes, its manifest says 6"),
    "lying checksum": (lambda: make(GOOD, claimed=changed("files/a.txt/sha256", "0" * 64)), "damaged, its checksum differs"),
    "flipped bit": (lambda: make(GOOD).replace(b"hello", b"hellp", 1), "not a whole zip"),
    "two names for one": (renamed_in_directory, "not in both|not a whole zip"),
    "another format": (lambda: make(GOOD, claimed=changed("format", 2)), "this version reads 1; update"),
    "manifest no JSON": (lambda: make(GOOD, claimed=lambda _: b"{"), "manifest.json: cannot be read"),
    "manifest a list": (lambda: make(GOOD, claimed=lambda _: []), "manifest.json: cannot be read"),
    "manifest too deep": (lambda: make(GOOD, claimed=lambda _: b"[" * 10**5), "manifest.json: cannot be read"),
    "manifest too large": (lambda: make(GOOD, claimed=lambda _: b" " * (2**20 + 1)), "no manifest.json"),
    "files no mapping": (lambda: make(GOOD, claimed=changed("files", [1])), "manifest.json: cannot be read"),
    "size no number": (lambda: make(GOOD, claimed=changed("files/a.txt/bytes", "x")), "manifest.json: cannot be read"),
    "size a list": (lambda: make(GOOD, claimed=changed("files/a.txt/bytes", [])), "manifest.json: cannot be read"),
    "pickle": (lambda: make({"a.pkl": pickle.dumps(Payload())}), "not of a kind a bundle takes"),
    "torch file": (lambda: make({"a.pth": pickle.dumps(Payload())}), "not of a kind a bundle takes"),
    "program": (lambda: make({"a.py": b"import os"}), "not of a kind a bundle takes"),
    "no suffix": (lambda: make({"a": b"x"}), "not of a kind a bundle takes"),
    "pickle as safetensors": (lambda: make({"a.safetensors": pickle.dumps(Payload())}), "not a whole safetensors"),
    "pickle as onnx": (lambda: make({"a.onnx": pickle.dumps(Payload())}), "under a false name"),
    "torch zip as onnx": (lambda: make({"a.onnx": make(GOOD)}), "under a false name"),
    "pickle as text": (lambda: make({"a.yaml": pickle.dumps(Payload())}), "not a text"),
    "lying safetensors": (
        lambda: make(
            {"a.safetensors": struct.pack("<Q", 66) + b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'}
        ),
        "not a whole safetensors file",
    ),
    "truncated safetensors": (lambda: make({"a.safetensors": struct.pack("<Q", 10**9) + b"{}"}), "not a whole safetensors"),
    "comment": (lambda: make(GOOD, comment=b"x" * 50), "no zip"),
}


def test_the_good_one_is_taken(tmp_path):
    (tmp_path / "good.zip").write_bytes(make(GOOD))
    (tmp_path / "to").mkdir()
    assert list(unpack(tmp_path / "good.zip", tmp_path / "to")["files"]) == ["a.txt", "b.json"]
    assert (tmp_path / "to" / "a.txt").read_bytes() == b"hello"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_and_leaves_nothing(kind, server: SendServer, tmp_path: Path, here: Path):
    build, said = HOSTILE[kind]
    content = build()
    link, _ = Send(server.url).upload(
        io.BytesIO(content), len(content), "bundle.zip", downloads=1, seconds=60, progress=lambda more: None
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"the bundle is refused: .*({said})") as caught:
        receive(link)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert sorted(tmp_path.rglob("*")) == before and not (here / "executed").exists()
