"""What a backbone is worth elsewhere: `transfer` to another data set's classes, boxes or maps."""

from __future__ import annotations

from typing import Annotated

import typer

from swav_ray.cli.app import SetOption, app, overrides_of
from swav_ray.cli.evaluation import OutOption, QuickOption, WeightsArgument, follow
from swav_ray.errors import UserError, did_you_mean

CLASSIFICATION, TASKS = "classification", ("classification", "detection", "segmentation")
Images = Annotated[str | None, typer.Option(metavar="FOLDER", help="pictures of COCO's .json  [as COCO lies]")]


@app.command()
def transfer(
    run: WeightsArgument,
    test: Annotated[str | None, typer.Option(help="what is scored on; as --train")] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="shards; of detection and segmentation COCO's instances .json, or VOC's ImageSets/.../trainval.txt, "
            "several with commas"
        ),
    ] = None,
    task: Annotated[str, typer.Option(metavar="|".join(TASKS), help="what is learnt on the backbone")] = CLASSIFICATION,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="linear or finetune; faster-rcnn or mask-rcnn; fcn or deeplabv3: the first is what the task takes by itself",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="of the images, px a side; else the short side  [as the protocol]"),
    ] = None,
    train_images: Images = None,
    test_images: Images = None,
    metric: Annotated[str | None, typer.Option(help="of classification: top1 or mean-per-class  [top1]")] = None,
    assignments: SetOption = None,
    out: OutOption = None,
    quick: QuickOption = False,
) -> None:
    """Score a backbone on another data set: a classifier, a detector or a segmenter is trained on it."""
    if task not in TASKS:
        raise UserError(f"--task {task}: not known{did_you_mean(task, TASKS)}; tasks are {', '.join(TASKS)}")
    if task == CLASSIFICATION:
        if train is None or test is None:
            raise UserError("transfer: give the shards of the other data set with --train and --test")
        if train_images is not None or test_images is not None:
            raise UserError("--train-images, --test-images: go with --task detection or segmentation")
        follow(run, protocol or "linear", test, train, size, assignments, out, quick, metric or "top1")
        return
    if train is None or test is None:
        raise UserError(f"--task {task}: give --train and --test: COCO's instances .json, or a list in VOC's ImageSets")
    if metric is not None:
        raise UserError(f"--metric {metric}: goes with classification; --task {task} is scored by its own figures")
    if size is not None and not 32 <= size <= 4096:
        raise UserError(f"--size {size}: give the short side from 32 to 4096 px")
    from swav_ray.evaluate.dense_protocol import load_dense

    chosen = load_dense(task, protocol, overrides_of(assignments))
    chosen = chosen if size is None else chosen.sized(size)
    from swav_ray.train.transfer import run_dense

    images = {"train_images": train_images, "test_images": test_images}
    for line in run_dense(run, chosen, train, test, out=out, quick=quick, **images):
        print(line, flush=True)
