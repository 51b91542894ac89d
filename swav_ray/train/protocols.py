"""What a protocol's training says on the screen: the last epoch's figures, and the best epoch's apart."""

from __future__ import annotations

from collections.abc import Iterator

from swav_ray.errors import UserError, did_you_mean
from swav_ray.evaluate.protocol import Protocol
from swav_ray.swav.resnet import ResNet
from swav_ray.train.backbones import View, load
from swav_ray.train.classify import Classification, Epoch
from swav_ray.train.labelled import LabelledRows
from swav_ray.train.scoring import QUICK_ROWS, scored_on

METRICS = {"top1": "top-1", "mean-per-class": "mean per class"}


def run_protocol(
    uri: str,
    protocol: Protocol,
    test: str | None = None,
    *,
    train: str | None = None,
    size: int | None = None,
    out: str | None = None,
    metric: str = "top1",
    quick: bool = False,
) -> Iterator[str]:
    """Train a classifier on the backbone of a run, an export or a file by ``protocol``; lines of what it is worth.

    Args:
        test, train, size: as of `score_run`.
        out: folder of the weights and of `results.json`; the same call goes on from the last epoch saved there.
        metric: ``top1`` or ``mean-per-class``; by which the best epoch is chosen.
        quick: with about `QUICK_ROWS` images and a tenth of the epochs.

    Raises:
        UserError: no data, no labels, no such weights, or a training that diverges.
    """
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: not known{did_you_mean(metric, METRICS)}; known are {', '.join(METRICS)}")
    loaded = load(uri)
    config = scored_on(uri, loaded, train, test, size)
    protocol, most = (protocol.quick(), QUICK_ROWS) if quick else (protocol, (None, None))
    shown = LabelledRows(config.data.train, share=protocol.labels, most_rows=most[0], seed=protocol.seed)
    held = LabelledRows(config.data.test, most_rows=most[1], seed=protocol.seed)
    training = Classification(loaded.backbone, View.of(config), protocol, shown, held, out)
    yield f"{_what(protocol)}, {protocol.epochs} epochs of {len(shown):,} training images"
    if quick:
        yield "quick: some of the images and a tenth of the epochs, to see that it works"
    done = len(training.history)
    if done:
        yield f"  {done} of {protocol.epochs} epochs were done before"
    for row in training.run():
        yield f"  epoch {row.epoch:>3}/{protocol.epochs}  loss {row.loss:.4f}  {_figures(row, metric)}"
    history = training.history
    best = max(history, key=lambda row: _figure(row, metric)[0])
    yield f"on {len(held) - len(held.bad):,} test images ({config.data.test})"
    yield f"  {'last epoch':<20} {_figures(history[-1], metric)}"
    yield f"  {f'best epoch, {best.epoch}':<20} {_figures(best, metric)}   chosen on these very images, as published"
    unreadable = len(shown.bad) + len(held.bad)
    if unreadable:
        yield f"  {unreadable} unreadable images were left out"
    if out is not None:
        odd = not isinstance(loaded.backbone, ResNet) and not training.model.trunk_is_frozen
        yield f"saved: {out}{f' (its weights are for your own {type(loaded.backbone).__name__} to load)' if odd else ''}"


def _what(protocol: Protocol) -> str:
    if protocol.frozen == "all":
        return f"linear classifier on the frozen trunk, learning rate {protocol.head_lr:g}"
    part = "trunk" if protocol.frozen == "none" else f"trunk above {protocol.frozen}"
    return f"fine-tuning, learning rate of the {part} {protocol.lr:g}, of the classifier {protocol.head_lr:g}"


def _figure(row: Epoch, metric: str) -> tuple[float, float]:
    return (row.top1, row.top1_stderr) if metric == "top1" else (row.mean_per_class, row.mean_per_class_stderr)


def _figures(row: Epoch, metric: str) -> str:
    value, error = _figure(row, metric)
    return f"{METRICS[metric]} {value:.4f} ± {error:.4f}   top-5 {row.top5:.4f} ± {row.top5_stderr:.4f}"
