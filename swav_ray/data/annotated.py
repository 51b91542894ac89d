"""Pictures with boxes, masks or maps of classes, from COCO's files or VOC's, local or on `s3://`.

Shapes: N objects of a picture, H and W its pixels, C classes without the background, which is class 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swav_ray.data.decode import BadImageError, decode, one_error
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError, did_you_mean

NEEDS = "COCO's masks need another library: pip install 'swav-ray[transfer]'"
UNLABELLED = 255  # in a map of classes


class BadPictureError(UserError):
    """One picture, its map or its outlines cannot be used; others may be."""


@dataclass(frozen=True)
class Example:
    """A picture and what is known of it; nothing is read before it is asked for.

    Args:
        source: the file of annotations, for messages.
        size: width and height as that file says; None: it does not.
        boxes: ``(N, 4)`` corners in px, x before y.
        labels: ``(N,)`` from 1.
        crowd: ``(N,)`` whether it stands for many, or is too hard to count (VOC's difficult): for scoring only.
        outlines: of each object COCO's polygons or run lengths, or None.
        map_name: of the PNG of classes, where there is one.
    """

    id: str
    source: str
    images: Storage
    name: str
    size: tuple[int, int] | None
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    outlines: tuple[Any, ...] | None = None
    maps: Storage | None = None
    map_name: str = ""

    def picture(self) -> Image.Image:
        """RGB.

        Raises:
            BadPictureError: not there, unreadable, or of another size than its annotations say.
        """
        picture = _decoded(self.images, self.name)
        if self.size is not None and picture.size != self.size:
            raise BadPictureError(
                f"{self.images.uri}/{self.name}: is {picture.width} x {picture.height} where {self.source} says "
                f"{self.size[0]} x {self.size[1]}; give the pictures that were annotated"
            )
        return picture

    def masks(self) -> NDArray[np.bool_]:
        """``(N, H, W)``.

        Raises:
            BadPictureError: an object has no outline, or one that cannot be read.
        """
        assert self.size is not None
        width, height = self.size
        masks = np.zeros((len(self.labels), height, width), dtype=bool)
        for index, outline in enumerate(self.outlines or ()):
            masks[index] = _filled(outline, height, width, f"{self.source}: image {self.id}")
        return masks

    def map(self, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """``(H, W)`` classes, `UNLABELLED` where none is given. With the (width, height) of its picture that is compared.


        Where outlines of different classes overlap, and in crowds, no class is given.

        Raises:
            BadPictureError: the PNG is not there, is no map of classes, or has another size than its picture.
        """
        if self.maps is None:
            assert self.size is not None
            found = np.zeros(self.size[::-1], dtype=np.uint8)
            for mask, label, crowd in zip(self.masks(), self.labels.tolist(), self.crowd.tolist(), strict=True):
                other = mask & (found != 0) & (found != label)
                found[mask] = UNLABELLED if crowd else label
                found[other] = UNLABELLED
            return found
        place = f"{self.maps.uri}/{self.map_name}"
        image = _decoded(self.maps, self.map_name, rgb=False)
        if image.mode not in ("P", "L"):
            raise BadPictureError(
                f"{place}: holds colours ({image.mode}); a map has the number of the class in each pixel (P or L)"
            )
        if size is not None and image.size != size:
            raise BadPictureError(f"{place}: is {image.width} x {image.height}, its picture {size[0]} x {size[1]}")
        return np.asarray(image, dtype=np.uint8)


@dataclass(frozen=True)
class Annotated:
    """A set of pictures of known classes.

    Args:
        without_area: how many boxes were left out because they hold nothing.
    """

    uri: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    without_area: int = 0

    def numbered_as(self, classes: tuple[str, ...], source: str) -> Annotated:
        """The same with the labels of ``classes``.

        Raises:
            UserError: a class of these pictures is not among them.
        """
        if self.classes == classes:
            return self
        used = {int(label) for example in self.examples for label in example.labels}
        names = self.classes if any(example.maps for example in self.examples) else [self.classes[i - 1] for i in sorted(used)]
        foreign = [name for name in names if name not in classes]
        if foreign:
            raise UserError(
                f"{self.uri}: has the class {foreign[0]!r}{did_you_mean(foreign[0], classes)}, which {source} has not; "
                f"known there are {', '.join(classes)[:120]}"
            )
        if any(example.maps for example in self.examples):
            return replace(self, classes=classes)  # numbers are names there
        number = np.array([0, *(classes.index(name) + 1 if name in classes else 0 for name in self.classes)])
        return replace(
            self, classes=classes, examples=tuple(replace(each, labels=number[each.labels]) for each in self.examples)
        )


def without_nothing(boxes: NDArray[np.float32], size: tuple[int, int] | None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """``(N, 4)`` corners inside the picture, and which of them hold anything."""
    if size is not None:
        boxes = np.clip(boxes, 0, np.array([*size, *size], dtype=np.float32))
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _decoded(folder: Storage, name: str, rgb: bool = True) -> Image.Image:
    place = f"{folder.uri}/{name}"
    try:
        content = folder.read(name)
        if rgb:
            return decode(content)
        decode(content)  # which refuses what is too large
        with one_error():
            import io

            image = Image.open(io.BytesIO(content))
            image.load()
            return image
    except FileNotFoundError:
        raise BadPictureError(f"{place}: no such picture") from None
    except BadImageError as error:
        raise BadPictureError(f"{place}: cannot be read: {error}") from None


def _filled(outline: Any, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """The mask ``(H, W)`` of polygons, or of run lengths, compressed or not."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(NEEDS) from None
    try:
        if isinstance(outline, list):
            runs = mask.merge(mask.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            runs = mask.frPyObjects(outline, height, width)
        else:
            runs = outline
        found = mask.decode(runs).astype(bool)
    except Exception as error:  # whatever the C code makes of it
        raise BadPictureError(f"{where}: a segmentation that cannot be read: {' '.join(str(error).split())[:100]}") from None
    if found.shape != (height, width):
        raise BadPictureError(
            f"{where}: a segmentation of {found.shape[1]} x {found.shape[0]} px in a picture of {width} x {height}"
        )
    return np.asarray(found)


def joined(sets: list[Annotated]) -> Annotated:
    """Several sets as one, classes alike by name."""
    if len(sets) == 1:
        return sets[0]
    classes = tuple(dict.fromkeys(name for each in sets for name in each.classes))
    uri = ",".join(each.uri for each in sets)
    alike = [each.numbered_as(classes, uri) for each in sets]
    return Annotated(
        uri, classes, tuple(example for each in alike for example in each.examples), sum(s.without_area for s in sets)
    )
