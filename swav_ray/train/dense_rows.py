"""Annotated pictures as batches to train a detector or a segmenter on, and one by one to score it with.

The batch of a step is a function of (seed, step): the pictures of every epoch in an order of its own, one epoch after the
other; the draws of a picture are keyed (seed, epoch, id). A training that goes on sees what it would have seen. Pictures
that cannot be used are counted; the next in the epoch's order stands in for one in training, scoring leaves it out.

Shapes: H and W pixels, N objects of a picture.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from swav_ray.data.ahead import chunks, in_threads
from swav_ray.data.annotated import UNLABELLED, Annotated, BadPictureError, Example, joined
from swav_ray.data.coco import read_coco
from swav_ray.data.voc import read_voc
from swav_ray.errors import UserError
from swav_ray.evaluate.dense_protocol import Dense, Detection, Segmentation
from swav_ray.train.backbones import View
from swav_ray.train.labelled import MOST_BAD

Target = dict[str, Tensor]
_R = TypeVar("_R")


class DenseRows:
    """The pictures of a set that can be used: to learn from, those with anything in them.

    Args:
        most: so many at most, drawn by the protocol's seed.

    Raises:
        UserError: none is left to learn from; of its batches, more than `MOST_BAD` of them cannot be used.
    """

    def __init__(self, annotated: Annotated, protocol: Dense, view: View, *, learns: bool, most: int | None = None) -> None:
        self.annotated, self.protocol, self.view = annotated, protocol, view
        examples = [each for each in annotated.examples if not learns or each.maps or not each.crowd.all()]
        self.empty = len(annotated.examples) - len(examples)
        if not examples:
            raise UserError(f"{annotated.uri}: every object is a crowd or difficult, so there is nothing to learn")
        if most is not None and most < len(examples):
            chosen = np.random.default_rng(protocol.seed).permutation(len(examples))[:most]
            examples = [examples[index] for index in sorted(chosen)]
        self.examples = examples
        self.bad: dict[str, str] = {}  # why a picture cannot be used, by its address

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, start: int, stop: int) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """The batches of the steps from ``start`` to before ``stop``."""
        size, seed = self.protocol.batch_size, self.protocol.seed

        def places() -> Iterator[tuple[int, NDArray[np.int64], int]]:
            epoch, order = -1, np.empty(0, dtype=np.int64)
            for row in range(start * size, stop * size):
                if row // len(self) != epoch:
                    epoch = row // len(self)
                    order = np.random.default_rng([seed, epoch]).permutation(len(self))
                yield epoch, order, row % len(self)

        def make(place: tuple[int, NDArray[np.int64], int]) -> tuple[Tensor, Target]:
            epoch, order, first = place
            for further in range(len(self)):
                example = self.examples[order[(first + further) % len(self)]]
                draws = np.random.default_rng([seed, epoch, zlib.crc32(example.id.encode())])
                learnt = self._crop if isinstance(self.protocol, Segmentation) else self._whole
                made = self._tried(functools.partial(learnt, draws=draws), example)
                if made is not None:
                    return made
            raise AssertionError

        for rows in chunks(in_threads(make, places(), threads=os.cpu_count() or 1), size):
            yield [image for image, _ in rows], [target for _, target in rows]

    def scored(self) -> Iterator[tuple[Tensor, Target]]:
        """Every picture that can be used as the network wants it, and what is true of it at its own size."""

        def make(example: Example) -> tuple[Tensor, Target]:
            picture = example.picture()
            if isinstance(self.protocol, Segmentation):
                true = torch.from_numpy(example.map(picture.size).astype(np.int64))
                return self._normalised(np.asarray(_resized(picture, self.protocol.size))), {"map": true}
            truth = _boxes(example, slice(None)) | {"iscrowd": torch.from_numpy(example.crowd.astype(np.int64))}
            if self._masks:
                truth["masks"] = torch.from_numpy(example.masks())
            return _unit(np.asarray(picture)), truth

        made = in_threads(functools.partial(self._tried, make), self.examples, threads=os.cpu_count() or 1)
        yield from (each for each in made if each is not None)

    def _tried(self, make: Callable[[Example], _R], example: Example) -> _R | None:
        """What ``make`` makes of a picture; None, and counted, if it cannot be used."""
        place = f"{example.images.uri}/{example.name}"
        if place in self.bad:
            return None
        try:
            return make(example)
        except BadPictureError as error:
            self.bad[place] = str(error)
        if len(self.bad) > MOST_BAD * len(self):
            raise UserError(
                f"{self.bad[place]} ({len(self.bad)} of {len(self):,} pictures cannot be used; more than {MOST_BAD:.0%} are "
                "too many)"
            )
        return None

    @property
    def _masks(self) -> bool:
        return isinstance(self.protocol, Detection) and self.protocol.head == "mask-rcnn"

    def _whole(self, example: Example, draws: np.random.Generator) -> tuple[Tensor, Target]:
        """A picture in [0, 1] with its boxes, flipped or not; the network resizes both."""
        picture, target = example.picture(), _boxes(example, ~example.crowd)
        if self._masks:
            target["masks"] = torch.from_numpy(example.masks()[~example.crowd].astype(np.uint8))
        if draws.random() < self.protocol.flip:
            picture = ImageOps.mirror(picture)
            target["boxes"][:, [0, 2]] = picture.width - target["boxes"][:, [2, 0]]
            if "masks" in target:
                target["masks"] = target["masks"].flip(-1)
        return _unit(np.asarray(picture)), target

    def _crop(self, example: Example, draws: np.random.Generator) -> tuple[Tensor, Target]:
        """A square of a resized picture, normalised, and of its map; what lies outside is black and `UNLABELLED`."""
        protocol = self.protocol
        assert isinstance(protocol, Segmentation)
        picture = example.picture()
        true = Image.fromarray(example.map(picture.size))
        side = max(1, round(protocol.size * draws.uniform(protocol.min_scale, protocol.max_scale)))
        picture, true = _resized(picture, side), _resized(true, side, Image.Resampling.NEAREST)
        if draws.random() < protocol.flip:
            picture, true = ImageOps.mirror(picture), ImageOps.mirror(true)
        left, top = (int(draws.integers(0, max(0, length - protocol.crop) + 1)) for length in picture.size)
        pixels = np.zeros((protocol.crop, protocol.crop, 3), dtype=np.uint8)
        classes = np.full((protocol.crop, protocol.crop), UNLABELLED, dtype=np.int64)
        for room, source in ((pixels, picture), (classes, true)):
            part = np.asarray(source)[top : top + protocol.crop, left : left + protocol.crop]
            room[: part.shape[0], : part.shape[1]] = part
        return self._normalised(pixels), {"map": torch.from_numpy(classes)}

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.view.mean, self.view.std))
        return (_unit(pixels) - mean) / std


def read_annotated(uris: str, images: str | None, protocol: Dense, option: str) -> Annotated:
    """The sets of one or several files of annotations (commas between): COCO's `.json`, or a list in VOC's `ImageSets`.

    Args:
        images: the folders of COCO's pictures, as many; None: as COCO lies.
        option: `--train` or `--test`, for messages.

    Raises:
        UserError: not such files, or one has not what the protocol learns from.
    """
    parts = uris.split(",")
    folders = images.split(",") if images is not None else [None] * len(parts)
    if len(folders) != len(parts):
        raise UserError(f"{option}-images {images}: {len(folders)} folders for the {len(parts)} files of {option}")
    maps = isinstance(protocol, Segmentation)
    masks = maps or (isinstance(protocol, Detection) and protocol.head == "mask-rcnn")
    sets = []
    for uri, folder in zip(parts, folders, strict=True):
        if uri.endswith(".json"):
            sets.append(read_coco(uri, folder, masks=masks))
            continue
        if not uri.endswith(".txt"):
            raise UserError(f"{option} {uri}: give COCO's instances .json, or a list in VOC's ImageSets, a .txt")
        if folder is not None:
            raise UserError(f"{option}-images {folder}: goes with COCO's .json; VOC's pictures lie in JPEGImages")
        if masks and not maps:
            raise UserError(f"{option} {uri}: VOC's boxes have no outlines to learn masks from; take --protocol faster-rcnn")
        sets.append(read_voc(uri, maps=maps))
    if maps and len({bool(each.examples[0].maps) for each in sets}) > 1:
        raise UserError(f"{option} {uris}: classes of COCO have names and those of VOC's maps numbers; take one format")
    found = joined(sets)
    if maps and len(found.classes) >= UNLABELLED:
        raise UserError(f"{option} {uris}: {len(found.classes)} classes; a map of classes holds {UNLABELLED - 1} at most")
    return found


def _boxes(example: Example, chosen: Any) -> Target:
    return {"boxes": torch.from_numpy(example.boxes[chosen]), "labels": torch.from_numpy(example.labels[chosen])}


def _unit(pixels: NDArray[np.uint8]) -> Tensor:
    """``(H, W, 3)`` bytes to ``(3, H, W)`` in [0, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def _resized(image: Image.Image, side: int, filter: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """With a short side of so many pixels."""
    scale = side / min(image.size)
    return image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))), filter)
