"""The same rendered pictures in COCO's and in VOC's format give the same boxes and maps; a fault in either is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes import CLASSES, Scene, box_of, scenes, write_coco, write_voc
from swav_ray.data.annotated import Annotated, joined
from swav_ray.data.coco import read_coco
from swav_ray.data.voc import read_voc
from swav_ray.errors import UserError


class Drawn(NamedTuple):
    root: Path
    scenes: list[Scene]
    coco: str
    boxes: str
    maps: str


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    root, made = tmp_path_factory.mktemp("drawn"), list(scenes(12, side=48, seed=5))
    return Drawn(root, made, write_coco(root / "coco", "train", made), *write_voc(root / "voc", "train", made))


@pytest.fixture
def copied(drawn: Drawn, tmp_path: Path) -> Drawn:
    """The same in a folder of the test's own, to damage."""
    shutil.copytree(drawn.root, tmp_path / "own")
    moved = [str(tmp_path / "own" / Path(file).relative_to(drawn.root)) for file in drawn[2:]]
    return Drawn(tmp_path / "own", drawn.scenes, *moved)


def test_what_was_drawn_is_read(drawn: Drawn) -> None:
    """Boxes to the pixel, masks to the pixel, maps of classes; from both formats."""
    coco, boxes, maps = read_coco(drawn.coco, masks=True), read_voc(drawn.boxes), read_voc(drawn.maps, maps=True)
    assert coco.classes == CLASSES and set(boxes.classes) <= set(CLASSES) and maps.classes == ("1", "2", "3", "4", "5", "6")
    assert [len(each.examples) for each in (coco, boxes, maps)] == [12, 12, 12]
    for scene, ours, voc, mapped in zip(drawn.scenes, coco.examples, boxes.examples, maps.examples, strict=True):
        wanted = np.array([box_of(mask) for mask in scene.masks], dtype=np.float32)
        assert np.array_equal(ours.boxes, wanted) and np.array_equal(voc.boxes, wanted)
        assert [coco.classes[label - 1] for label in ours.labels] == [boxes.classes[label - 1] for label in voc.labels]
        assert tuple(ours.labels) == scene.labels and np.array_equal(ours.masks(), np.stack(scene.masks))
        assert np.array_equal(ours.map(), mapped.map(mapped.picture().size))
        assert np.array_equal(np.asarray(ours.picture()), np.asarray(scene.picture))


def test_classes_are_matched_by_name(drawn: Drawn) -> None:
    coco, boxes = read_coco(drawn.coco), read_voc(drawn.boxes)
    for ours, voc in zip(coco.examples, boxes.numbered_as(CLASSES, "there").examples, strict=True):
        assert np.array_equal(ours.labels, voc.labels)
    both = joined([boxes, coco])
    assert len(both.examples) == 24 and set(both.classes) == set(CLASSES)
    with pytest.raises(UserError, match=r"has the class 'cross' \(did you mean 'crosses'\?\), which there has not"):
        coco.numbered_as(("crosses", *CLASSES[1:]), "there")


def changed(file: str, change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))
    return file


def test_crowds_overlaps_and_what_has_no_area(copied: Drawn) -> None:
    square = [[0, 0, 20, 0, 20, 20, 0, 20]]
    beside = [[10, 0, 30, 0, 30, 20, 10, 20]]

    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [
            {"id": 1, "image_id": 0, "category_id": 10, "bbox": [0, 0, 20, 20], "segmentation": square},
            {
                "id": 2,
                "image_id": 0,
                "category_id": 20,
                "bbox": [10, 0, 20, 20],
                "segmentation": beside,
            },
            {
                "id": 3,
                "image_id": 0,
                "category_id": 20,
                "bbox": [0, 30, 48, 10],
                "iscrowd": 1,
                "segmentation": [[0, 30, 48, 30, 48, 40, 0, 40]],
            },
            {"id": 4, "image_id": 0, "category_id": 20, "bbox": [5, 5, 0, 3], "segmentation": square},
            {"id": 5, "image_id": 0, "category_id": 20, "bbox": [60, 5, 10, 10], "segmentation": square},
        ]

    read = read_coco(changed(copied.coco, change), masks=True)
    first = read.examples[0]
    assert read.without_area == 2 and first.crowd.tolist() == [False, False, True]
    found = first.map()
    assert found[5, 5] == 1 and found[5, 25] == 2 and found[5, 15] == 255 and found[35, 5] == 255 and found[45, 45] == 0


def test_difficult_objects_are_for_scoring_only(copied: Drawn) -> None:
    file = copied.root / "voc" / "Annotations" / "train_00000.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    assert read_voc(copied.boxes).examples[0].crowd.all()


def drop(key: str, index: int = 0) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][index].pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("annotations"), "not COCO's instances: it needs lists of images, annotations, categories"),
        (lambda content: content["annotations"].clear(), "has no annotation, so there is nothing to learn or to score"),
        (lambda content: content["images"][3].update(file_name="gone.png"), "names the picture gone.png, which is not in "),
        (drop("bbox"), "annotation 1: an entry has no bbox"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), "annotation 1: bbox = [1, 2]: give left, top, width"),
        (lambda content: content["annotations"][0].update(category_id=7), "annotation 1 is of category 7, which is not among"),
        (lambda content: content["annotations"][0].update(image_id=99), "annotation 1 is of image 99, which is not among"),
        (lambda content: content["categories"][0].update(name="disc"), "two categories have the same name"),
        (lambda content: content["images"][0].update(width="wide"), "width = 'wide': give a whole number"),
        (drop("segmentation"), "annotation 1 has no segmentation; masks are learnt from outlines: take --protocol faster-rcnn"),
    ],
)
def test_faults_of_coco(change: Callable[[dict[str, Any]], object], said: str, copied: Drawn) -> None:
    with pytest.raises(UserError) as error:
        read_coco(changed(copied.coco, change), masks=True)
    assert said in str(error.value) and str(error.value).startswith(copied.coco)


def test_files_that_are_not_there(copied: Drawn) -> None:
    for read, uri, said in (
        (read_coco, "none.json", "none.json: no such file of annotations"),
        (read_coco, str(copied.root), "is a folder; name the file of annotations in it"),
        (read_voc, str(Path(copied.boxes).with_name("none.txt")), "none.txt: no such list of pictures"),
        (read_voc, "train.txt", "a list of VOC lies in ImageSets/"),
    ):
        with pytest.raises(UserError, match=said):
            read(uri)
    Path(copied.coco).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_coco(copied.coco)
    with pytest.raises(UserError, match=r"00000.png \(and 11 more\), which is not in .*elsewhere"):
        read_coco(changed_folder(copied), str(copied.root / "elsewhere"))


def changed_folder(drawn: Drawn) -> str:
    return write_coco(drawn.root / "coco", "train", drawn.scenes)


def test_the_folder_of_coco_can_be_named(copied: Drawn) -> None:
    (copied.root / "coco" / "train").rename(copied.root / "elsewhere")
    assert read_coco(copied.coco, str(copied.root / "elsewhere")).examples[0].picture().size == (48, 48)
    beside = Path(copied.coco).rename(copied.root / "elsewhere" / "any.json")
    assert read_coco(str(beside)).examples[0].picture().size == (48, 48)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("ImageSets/Main/train.txt", "", "train.txt: names no picture"),
        ("ImageSets/Main/train.txt", "train_00000 -1\n", "is the list of one class (it has two columns)"),
        ("ImageSets/Main/train.txt", "gone\n", "names gone, of which there is no picture in "),
        ("Annotations/train_00000.xml", "<a>", "train_00000.xml: not XML"),
        ("Annotations/train_00000.xml", "<a></a>", "train_00000.xml: has no size/width"),
        ("Annotations/train_00000.xml", "<a><size><width>x</width></size></a>", "size/width = 'x': not a number"),
        ("Annotations/train_00000.xml", None, "train_00000.xml: no such file of annotations"),
    ],
)
def test_faults_of_voc(file: str, text: str | None, said: str, copied: Drawn) -> None:
    place = copied.root / "voc" / file
    place.unlink() if text is None else place.write_text(text)
    with pytest.raises(UserError) as error:
        read_voc(copied.boxes)
    assert said in str(error.value)


def test_nothing_to_learn_in_voc(copied: Drawn) -> None:
    for file in (copied.root / "voc" / "Annotations").iterdir():
        file.write_text("<a><size><width>48</width><height>48</height></size></a>")
    with pytest.raises(UserError, match="none of its pictures has an object"):
        read_voc(copied.boxes)
    for file in (copied.root / "voc" / "SegmentationClass").iterdir():
        Image.fromarray(np.full((48, 48), 255, dtype=np.uint8)).save(file)
    with pytest.raises(UserError, match="no map has any class but the background"):
        read_voc(copied.maps, maps=True)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("L", (48, 40)), "train_00000.png: is 48 x 40, its picture 48 x 48"),
        (Image.new("RGB", (48, 48)), r"holds colours \(RGB\); a map has the number of the class in each pixel"),
        (None, "train_00000.png: no such picture"),
    ],
)
def test_faults_of_maps(image: Image.Image | None, said: str, copied: Drawn) -> None:
    place = copied.root / "voc" / "SegmentationClass" / "train_00000.png"
    place.unlink() if image is None else image.save(place)
    with pytest.raises(UserError, match=said):
        first = read_voc(copied.maps, maps=True).examples[0]
        first.map(first.picture().size)


def test_a_picture_of_another_size(copied: Drawn) -> None:
    Image.new("RGB", (50, 48)).save(copied.root / "coco" / "train" / "00000.png")
    with pytest.raises(UserError, match=r"00000.png: is 50 x 48 where .*instances_train.json says 48 x 48"):
        read_coco(copied.coco).examples[0].picture()
    (copied.root / "coco" / "train" / "00000.png").write_text("no picture")
    with pytest.raises(UserError, match=r"00000.png: cannot be read: not an image"):
        read_coco(copied.coco).examples[0].picture()


def test_a_broken_outline(copied: Drawn) -> None:
    read = read_coco(changed(copied.coco, lambda content: content["annotations"][0].update(segmentation=[[1, 2]])), masks=True)
    with pytest.raises(UserError, match="image 0: a segmentation that cannot be read"):
        read.examples[0].masks()
    other = {"size": [4, 4], "counts": [16]}
    read = read_coco(changed(copied.coco, lambda content: content["annotations"][0].update(segmentation=other)), masks=True)
    with pytest.raises(UserError, match="a segmentation of 4 x 4 px in a picture of 48 x 48"):
        read.examples[0].masks()


def test_on_s3(s3: str, drawn: Drawn) -> None:
    from swav_ray.data.storage import Storage

    folder = Storage(f"{s3}/drawn")
    for file in drawn.root.rglob("*"):
        if file.is_file() and "00000" in file.name + "00000" * (file.suffix in (".json", ".txt")):
            folder.write(str(file.relative_to(drawn.root)), file.read_bytes())
    folder.write("voc/ImageSets/Main/train.txt", b"train_00000\n")
    here: Annotated = read_voc(f"{s3}/drawn/voc/ImageSets/Main/train.txt")
    assert np.array_equal(here.examples[0].boxes, read_voc(drawn.boxes).examples[0].boxes)
    assert here.examples[0].picture().size == (48, 48)
