"""COCO's format: a JSON of images, annotations and categories, beside a folder of pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np

from swav_ray.data.annotated import Annotated, Example, without_nothing
from swav_ray.data.storage import Storage, locate
from swav_ray.errors import UserError, shown

PREFIX = "instances_"
KEYS = ("images", "annotations", "categories")


def read_coco(uri: str, images: str | None = None, *, masks: bool = False) -> Annotated:
    """The pictures of an instances JSON.

    Args:
        images: their folder; by default `../NAME` of `annotations/instances_NAME.json`, as COCO lies, or beside the JSON.
        masks: whether every object must have an outline.

    Raises:
        UserError: no such file, not COCO's, a picture that is not there, no annotation at all, or a missing outline.
    """
    folder, name = locate(uri)
    try:
        content = json.loads(folder.read(name))
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file of annotations") from None
    except IsADirectoryError:
        raise UserError(f"{uri}: is a folder; name the file of annotations in it") from None
    except ValueError as error:
        raise UserError(f"{uri}: not JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        raise UserError(f"{uri}: not COCO's instances: it needs lists of {', '.join(KEYS)}")
    if not content["annotations"]:
        raise UserError(f"{uri}: has no annotation, so there is nothing to learn or to score")
    named = content["categories"]
    categories = sorted((_number(each, "id", uri, "categories"), str(_of(each, "name", uri, "categories"))) for each in named)
    classes = tuple(name for _, name in categories)
    if len(set(classes)) < len(classes):
        raise UserError(f"{uri}: two categories have the same name")
    number = {identifier: index + 1 for index, (identifier, _) in enumerate(categories)}
    known = {_of(entry, "id", uri, "images"): entry for entry in content["images"]}
    grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        what = f"annotation {entry.get('id', '?') if isinstance(entry, dict) else shown(entry)}"
        if _of(entry, "image_id", uri, what) not in known:
            raise UserError(f"{uri}: {what} is of image {shown(entry['image_id'])}, which is not among the images")
        if _of(entry, "category_id", uri, what) not in number:
            raise UserError(f"{uri}: {what} is of category {shown(entry['category_id'])}, which is not among the categories")
        box = _of(entry, "bbox", uri, what)
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise UserError(f"{uri}: {what}: bbox = {shown(box)}: give left, top, width and height")
        if masks and not entry.get("segmentation"):
            raise UserError(f"{uri}: {what} has no segmentation; masks are learnt from outlines: take --protocol faster-rcnn")
        grouped[entry["image_id"]].append(entry)
    place = _pictures(folder, name, images, [str(_of(entry, "file_name", uri, "images")) for entry in known.values()], uri)
    examples, empty = [], 0
    for identifier, entry in known.items():
        mine = grouped[identifier]
        size = _number(entry, "width", uri, "images"), _number(entry, "height", uri, "images")
        corners = np.array([each["bbox"] for each in mine], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes, good = without_nothing(corners, size)
        empty += int((~good).sum())
        kept = [each for each, holds in zip(mine, good, strict=True) if holds]
        examples.append(
            Example(
                id=str(identifier),
                source=uri,
                images=place,
                name=str(entry["file_name"]),
                size=size,
                boxes=boxes[good],
                labels=np.array([number[each["category_id"]] for each in kept], dtype=np.int64),
                crowd=np.array([bool(each.get("iscrowd")) for each in kept], dtype=bool),
                outlines=tuple(each.get("segmentation") for each in kept) if masks else None,
            )
        )
    return Annotated(uri, classes, tuple(examples), empty)


def _of(entry: Any, key: str, uri: str, what: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{uri}: {what}: an entry has no {key}")
    return entry[key]


def _number(entry: Any, key: str, uri: str, what: str) -> int:
    value = _of(entry, key, uri, what)
    if not isinstance(value, int):
        raise UserError(f"{uri}: {what}: {key} = {shown(value)}: give a whole number")
    return value


def _pictures(folder: Storage, name: str, images: str | None, names: list[str], uri: str) -> Storage:
    """The folder that holds all pictures of those names."""
    if images is not None:
        places = [Storage(images)]
    else:
        above = Storage(folder.uri.rpartition("/")[0] or "/")
        places = [above / name.removeprefix(PREFIX).removesuffix(".json"), folder]
    missing: list[str] = []
    for place in places:
        there = place.find().keys()
        missing = [each for each in names if each not in there]
        if not missing:
            return place
        if len(missing) < len(names):
            break
    more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
    looked = " or ".join(place.uri for place in places)
    raise UserError(
        f"{uri}: names the picture {missing[0]}{more}, which is not in {looked}; give it with --train-images, --test-images"
    )
