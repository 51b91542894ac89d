"""What a detector's or a segmenter's training says on the screen: the last figures, and the best ones apart."""

from __future__ import annotations

from collections.abc import Iterator

from swav_ray.evaluate.dense_protocol import Dense, Segmentation
from swav_ray.train.backbones import load
from swav_ray.train.dense import DenseTraining, Round
from swav_ray.train.dense_rows import DenseRows, read_annotated

QUICK_ROWS = 100, 20  # pictures of `--quick`: to learn from, and to score on
STDERR = "_stderr"  # ends the name of a figure's standard error


def run_dense(
    uri: str,
    protocol: Dense,
    train: str,
    test: str,
    *,
    train_images: str | None = None,
    test_images: str | None = None,
    out: str | None = None,
    quick: bool = False,
) -> Iterator[str]:
    """Train a detector or a segmenter on the backbone of a run, an export or a file; lines of what it is worth.

    Args:
        train, test, train_images, test_images: as of `read_annotated`.
        out: folder of the weights and of `results.json`; the same call goes on from the last state saved there.
        quick: with `QUICK_ROWS` small pictures and a few steps.

    Raises:
        UserError: no such data or weights, other classes in the two sets, or a training that diverges.
    """
    loaded = load(uri)
    protocol, most = (protocol.quick(), QUICK_ROWS) if quick else (protocol, (None, None))
    learnt = read_annotated(train, train_images, protocol, "--train")
    scored = read_annotated(test, test_images, protocol, "--test").numbered_as(learnt.classes, train)
    shown = DenseRows(learnt, protocol, loaded.view, learns=True, most=most[0])
    held = DenseRows(scored, protocol, loaded.view, learns=False, most=most[1])
    training = DenseTraining(loaded.backbone, loaded.view, protocol, shown, held, out)
    yield f"{_what(protocol)}, {len(learnt.classes)} classes"
    yield f"{protocol.steps:,} steps of {protocol.batch_size} of {len(shown):,} pictures"
    if quick:
        yield "quick: some of the pictures, small, and a few steps, to see that it works"
    if shown.empty:
        yield f"  {shown.empty:,} pictures without objects were left out"
    if learnt.without_area or scored.without_area:
        yield f"  {learnt.without_area + scored.without_area:,} boxes without area were left out"
    if training.step:
        yield f"  {training.step:,} of {protocol.steps:,} steps were done before"
    for row in training.run():
        yield f"  step {row.step:>6,}/{protocol.steps:,}  loss {row.loss:.4f}  {_figures(row)}"
    history = training.history
    best = max(history, key=lambda row: next(iter(row.figures.values())))
    yield f"on {len(held) - len(held.bad):,} test pictures ({test})"
    yield f"  {'last step':<20} {_figures(history[-1])}"
    if len(history) > 1:
        yield f"  {f'best, step {best.step:,}':<20} {_figures(best)}   chosen on these very pictures"
    unusable = len(shown.bad) + len(held.bad)
    if unusable:
        yield f"  {unusable} pictures that cannot be used were left out, for one {next(iter((shown.bad | held.bad).values()))}"
    if out is not None:
        yield f"saved: {out}"


def _what(protocol: Dense) -> str:
    names = {"faster-rcnn": "Faster R-CNN", "mask-rcnn": "Mask R-CNN", "fcn": "FCN", "deeplabv3": "DeepLabV3"}
    head = names[protocol.head]
    learns = {"none": "all of the trunk learns", "all": "the trunk is frozen"}
    sides = f"crops of {protocol.crop} px" if isinstance(protocol, Segmentation) else f"{protocol.side} px"
    return f"{head} at {sides}, {learns.get(protocol.frozen, f'the trunk above {protocol.frozen} learns')}"


def _figures(row: Round) -> str:
    parts = []
    for name, value in row.figures.items():
        if not name.endswith(STDERR):
            error = row.figures.get(name + STDERR)
            parts.append(f"{name} {value:.4f}" + (f" ± {error:.4f}" if error is not None else ""))
    return "   ".join(parts)
