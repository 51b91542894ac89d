"""What may be in a bundle: weights as safetensors or ONNX, and texts. Nothing that runs when it is opened."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from swav_ray.errors import UserError

CHUNK = 2**20
MANIFEST = "manifest.json"
MOST_FILES = 64
MOST_BYTES = 2**31 - 2**24  # of a bundle: from 2 GiB on Python's zips have a second kind of directory, that we do not read
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEXTS = {".yaml", ".yml", ".json", ".jsonl", ".md", ".txt", ".csv", ".html"}
_KINDS = _TEXTS | {".safetensors", ".onnx"}
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK", b"\x1f\x8b", b"BZh", b"\xfd7z")  # and packed ones


def plain_name(name: str) -> bool:
    """Whether a file may have that name in a bundle: no folder, nothing hidden, nothing a shell or a terminal acts on."""
    return _NAME.fullmatch(name) is not None


def check_kind(name: str) -> None:
    """Raise a UserError unless a bundle takes files of that name's kind."""
    if Path(name).suffix.lower() not in _KINDS:
        raise UserError(
            f"{name}: not of a kind a bundle takes ({', '.join(sorted(_KINDS))}); other files of weights can run code where "
            "they are opened, write them as safetensors first"
        )


def check_content(path: Path) -> None:
    """Raise a UserError unless a file is what its name says, or at least no pickle. Nothing in it is executed."""
    name = path.name
    kind = path.suffix.lower()
    with path.open("rb") as file:
        # Not of safetensors: one begins with the length of its header, which may well be that of a pickle's first bytes.
        if kind == ".onnx" and file.read(4).startswith(_PICKLES):
            raise UserError(f"{name}: a pickle or an archive under a false name")
        if kind in _TEXTS:
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                while chunk := file.read(CHUNK):
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                raise UserError(f"{name}: not a text (UTF-8), as its name says") from None
    if kind == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy"):
                pass
        except Exception as error:  # whatever a foreign file makes it raise
            raise UserError(f"{name}: not a whole safetensors file: {str(error)[:100]}") from None
