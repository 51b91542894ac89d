"""Rendered pictures of shapes on grounds, with their boxes, outlines and maps: something to detect and to segment.

A shape's class is its outline alone; colour, size, turn and texture say nothing of it. `write_coco` and `write_voc` give
the same pictures in either format, `write_shapes` pictures of one shape each, without labels, to pretrain on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")
SMOOTH = 4  # times larger drawn, then shrunk
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """A picture, of each object its class from 1 and its visible mask ``(H, W)``."""

    picture: Image.Image
    labels: tuple[int, ...]
    masks: tuple[NDArray[np.bool_], ...]


def scenes(count: int, *, side: int = 96, seed: int = 0, most: int = 2, crowded: bool = False) -> Iterator[Scene]:
    """Pictures of one to ``most`` shapes; where ``crowded`` one that fills the picture."""
    for index in range(count):
        yield _scene(np.random.default_rng([seed, index]), side, most, crowded)


def _scene(random: np.random.Generator, side: int, most: int, crowded: bool) -> Scene:
    pixels = _texture(random, side, random.uniform(40, 215, 3), 40)
    labels, masks = list[int](), list[NDArray[np.bool_]]()
    for _ in range(1 if crowded else int(random.integers(1, most + 1))):
        label = int(random.integers(len(CLASSES))) + 1
        radius = side * (random.uniform(0.28, 0.45) if crowded else random.uniform(0.17, 0.27))
        centre = random.uniform(radius, side - radius, 2)
        mask = _shape(CLASSES[label - 1], centre, radius, random.uniform(0, 2 * math.pi), side)
        if any((mask & other).any() for other in masks):
            continue
        ground = pixels[mask].mean(0)
        colour = ground
        while np.abs(colour - ground).max() < 70:
            colour = random.uniform(20, 235, 3)
        pixels[mask] = _texture(random, side, colour, 25)[mask]
        labels.append(label)
        masks.append(mask)
    noisy = pixels + random.normal(0, 4, pixels.shape)
    return Scene(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), tuple(labels), tuple(masks))


def _texture(random: np.random.Generator, side: int, colour: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """``(side, side, 3)``: a colour under soft spots."""
    cells = int(random.integers(3, 12))
    spots = Image.fromarray(random.uniform(-1, 1, (cells, cells)).astype(np.float32))
    soft = np.asarray(spots.resize((side, side), Image.Resampling.BICUBIC))
    return colour + strength * soft[..., None] * random.uniform(0.5, 1, 3)


def _shape(name: str, centre: NDArray[np.float64], radius: float, turn: float, side: int) -> NDArray[np.bool_]:
    canvas = Image.new("L", (side * SMOOTH, side * SMOOTH))
    draw = ImageDraw.Draw(canvas)

    def at(angle: float, distance: float = 1.0) -> Point:
        x, y = (centre + radius * distance * np.array([math.cos(turn + angle), math.sin(turn + angle)])) * SMOOTH
        return float(x), float(y)

    def round_box(distance: float) -> list[Point]:
        low, high = (centre - radius * distance) * SMOOTH, (centre + radius * distance) * SMOOTH
        return [(float(low[0]), float(low[1])), (float(high[0]), float(high[1]))]

    if name in ("disc", "ring"):
        draw.ellipse(round_box(0.9), fill=255)
        if name == "ring":
            draw.ellipse(round_box(0.5), fill=0)
    elif name == "cross":
        arm = math.atan2(0.3, 1)
        for quarter in range(2):
            corners = (-arm, arm, math.pi - arm, math.pi + arm)
            draw.polygon([at(quarter * math.pi / 2 + angle) for angle in corners], fill=255)
    elif name == "star":
        draw.polygon([at(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)], fill=255)
    else:
        corners_ = {"square": 4, "triangle": 3}[name]
        draw.polygon([at(2 * math.pi * k / corners_) for k in range(corners_)], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) > 127


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, and the first column and line behind it."""
    columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1


def write_coco(folder: Path, name: str, drawn: list[Scene]) -> str:
    """`FOLDER/annotations/instances_NAME.json` and the pictures in `FOLDER/NAME`; the file's path."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    for number, scene in enumerate(drawn):
        file = f"{number:05d}.png"
        scene.picture.save(folder / name / file)
        images.append({"id": number, "file_name": file, "width": scene.picture.width, "height": scene.picture.height})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            left, top, right, bottom = box_of(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label * 10,  # COCO's own have gaps
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
                }
            )
    categories = [{"id": (index + 1) * 10, "name": each} for index, each in enumerate(CLASSES)]
    file = folder / "annotations" / f"instances_{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(file)


def write_voc(folder: Path, name: str, drawn: list[Scene]) -> tuple[str, str]:
    """`ImageSets/Main/NAME.txt` and `ImageSets/Segmentation/NAME.txt` of boxes and of maps; their paths."""
    for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    ids = [f"{name}_{number:05d}" for number in range(len(drawn))]
    for identifier, scene in zip(ids, drawn, strict=True):
        scene.picture.save(folder / "JPEGImages" / f"{identifier}.jpg", quality=95)
        classes, objects = np.zeros(scene.picture.size[::-1], dtype=np.uint8), ""
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            classes[mask] = label
            left, top, right, bottom = box_of(mask)
            corners = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
            objects += f"<object><name>{CLASSES[label - 1]}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        Image.fromarray(classes).save(folder / "SegmentationClass" / f"{identifier}.png")
        size = f"<size><width>{scene.picture.width}</width><height>{scene.picture.height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{identifier}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    lists = folder / "ImageSets" / "Main" / f"{name}.txt", folder / "ImageSets" / "Segmentation" / f"{name}.txt"
    for file in lists:
        file.write_text("\n".join(ids) + "\n")
    return str(lists[0]), str(lists[1])


def write_shapes(folder: Path, count: int, *, side: int = 64, seed: int = 7) -> str:
    """Pictures that one shape fills, in a folder of a class each; the folder's path."""
    for number, scene in enumerate(scenes(count, side=side, seed=seed, crowded=True)):
        place = folder / CLASSES[scene.labels[0] - 1]
        place.mkdir(parents=True, exist_ok=True)
        scene.picture.save(place / f"{number:05d}.jpg", quality=95)
    return str(folder)


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs
