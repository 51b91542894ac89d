"""VOC's format: a list of ids in `ImageSets/`, beside it `JPEGImages/`, `Annotations/` and `SegmentationClass/`."""

from __future__ import annotations

import os
import xml.etree.ElementTree as Xml
from dataclasses import replace

import numpy as np

from swav_ray.data.ahead import in_threads
from swav_ray.data.annotated import UNLABELLED, Annotated, Example, without_nothing
from swav_ray.data.storage import Storage, locate
from swav_ray.errors import UserError, shown

PICTURES, BOXES, MAPS = "JPEGImages", "Annotations", "SegmentationClass"
THREADS = 4 * (os.cpu_count() or 1)  # they wait for files
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(uri: str, *, maps: bool = False) -> Annotated:
    """The pictures of a list such as `VOC2012/ImageSets/Main/trainval.txt`.

    Args:
        maps: their maps of classes instead of their boxes; classes are then named by their numbers.

    Raises:
        UserError: no such list, a picture, its boxes or its map that are not there, or nothing to learn in any of them.
    """
    root, ids = _ids(uri)
    folder = root / PICTURES
    names = {name.rpartition(".")[0]: name for name in folder.list()}
    missing = [identifier for identifier in ids if identifier not in names]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(f"{uri}: names {missing[0]}{more}, of which there is no picture in {folder.uri}")

    def bare(identifier: str) -> Example:
        nothing = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        return Example(identifier, uri, folder, names[identifier], None, *nothing)

    if maps:
        place = root / MAPS
        examples = tuple(replace(bare(each), maps=place, map_name=f"{each}.png") for each in ids)
        highest = max(in_threads(_highest, examples, THREADS))
        if not highest:
            raise UserError(f"{place.uri}: no map has any class but the background, so there is nothing to learn or to score")
        return Annotated(uri, tuple(str(number + 1) for number in range(highest)), examples)
    objects = list(in_threads(lambda each: _objects(root / BOXES, each), ids, THREADS))
    classes = sorted({name for _, found in objects for name, _, _ in found})
    if not classes:
        raise UserError(f"{uri}: none of its pictures has an object, so there is nothing to learn or to score")
    number = {name: index + 1 for index, name in enumerate(classes)}
    examples_, empty = [], 0
    for identifier, (size, found) in zip(ids, objects, strict=True):
        corners = np.array([box for _, _, box in found], dtype=np.float32).reshape(-1, 4)
        corners[:, :2] -= 1  # VOC counts pixels from 1, and the last one is inside
        boxes, good = without_nothing(corners, size)
        empty += int((~good).sum())
        labels = np.array([number[name] for name, _, _ in found], dtype=np.int64)[good]
        crowd = np.array([difficult for _, difficult, _ in found], dtype=bool)[good]
        examples_.append(
            replace(
                bare(identifier),
                source=f"{(root / BOXES).uri}/{identifier}.xml",
                size=size,
                boxes=boxes[good],
                labels=labels,
                crowd=crowd,
            )
        )
    return Annotated(uri, tuple(classes), tuple(examples_), empty)


def _ids(uri: str) -> tuple[Storage, list[str]]:
    """The folder around `ImageSets`, and the ids of the list."""
    folder, name = locate(uri)
    around, found, _ = folder.uri.rpartition("/ImageSets")
    if not found:
        raise UserError(f"{uri}: a list of VOC lies in ImageSets/, as VOC2012/ImageSets/Main/trainval.txt")
    try:
        lines = folder.read(name).decode().split("\n")
    except FileNotFoundError:
        raise UserError(f"{uri}: no such list of pictures") from None
    except UnicodeDecodeError:
        raise UserError(f"{uri}: not a list of names, one a line") from None
    rows = [line.split() for line in lines if line.strip()]
    if any(len(row) > 1 for row in rows):
        raise UserError(f"{uri}: is the list of one class (it has two columns); take the one of all, such as train.txt")
    if not rows:
        raise UserError(f"{uri}: names no picture")
    return Storage(around or "/"), [row[0] for row in rows]


def _objects(folder: Storage, identifier: str) -> tuple[tuple[int, int], list[tuple[str, bool, list[float]]]]:
    """Width and height, and of each object its name, whether it is difficult, and its corners."""
    place = f"{folder.uri}/{identifier}.xml"
    try:
        tree = Xml.fromstring(folder.read(f"{identifier}.xml"))
    except FileNotFoundError:
        raise UserError(f"{place}: no such file of annotations") from None
    except Xml.ParseError as error:
        raise UserError(f"{place}: not XML: {error}") from None

    def text(node: Xml.Element, path: str) -> str:
        found = node.findtext(path)
        if found is None:
            raise UserError(f"{place}: has no {path}")
        return found.strip()

    def number(node: Xml.Element, path: str) -> float:
        value = text(node, path)
        try:
            return float(value)
        except ValueError:
            raise UserError(f"{place}: {path} = {shown(value)}: not a number") from None

    size = int(number(tree, "size/width")), int(number(tree, "size/height"))
    return size, [
        (
            text(each, "name"),
            each.findtext("difficult", "0").strip() == "1",
            [number(each, f"bndbox/{corner}") for corner in CORNERS],
        )
        for each in tree.iter("object")
    ]


def _highest(example: Example) -> int:
    """The highest class in its map."""
    found = example.map()
    return int(found[found != UNLABELLED].max(initial=0))
