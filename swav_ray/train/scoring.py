"""What a backbone is worth on data it never saw, beside an untrained one and raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from swav_ray.config import Config
from swav_ray.errors import UserError
from swav_ray.evaluate import Score, knn_grid, linear_probe
from swav_ray.train.backbones import Loaded, View, load
from swav_ray.train.build import evaluation_sizes
from swav_ray.train.labelled import LabelledRows, check_pair
from swav_ray.train.probe import features_of, pixel_features, shrunk

SVM_ROWS = 10_000  # its cost grows with the square
QUICK_ROWS = 2000, 1000  # of `--quick`: to learn from, and to score on
QUICK = "quick: some of the images, to see that it works"


def score_run(
    uri: str,
    kind: str,
    test: str | None,
    *,
    train: str | None = None,
    size: int | None = None,
    k: int | Sequence[int] = 20,
    temperature: float | Sequence[float] = 0.07,
    quick: bool = False,
) -> Iterator[str]:
    """Lines that say what the features of a run, an export or a file of weights are worth, with standard errors.

    Args:
        kind: ``probe`` or ``knn``.
        test: shards to score on; by default the run's own test data.
        train: shards the classifier learns from; by default the run's own.
        size: pixels a side of the images; by default what the run trained on, 224 for weights that do not say.
        k, temperature: of ``knn``; every k is scored with every temperature.
        quick: with about :data:`QUICK_ROWS` images only.

    Raises:
        UserError: no data, no labels or those of one class, no such weights, or features that are not finite.
    """
    ks, temperatures = [k] if isinstance(k, int) else k, [temperature] if isinstance(temperature, float) else temperature
    loaded = load(uri)
    config = scored_on(uri, loaded, train, test, size)
    most = QUICK_ROWS if quick else (None, None)
    shown = LabelledRows(config.data.train, most_rows=most[0], again=False)
    held = LabelledRows(config.data.test, most_rows=most[1], again=False)
    check_pair(shown, held)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    modules = loaded.backbone.to(device), loaded.untrained().to(device)
    kinds = [partial(features_of, config, module, device=device) for module in modules]
    features, labels = _embed(config, shown, [*kinds, shrunk])
    test_features, test_labels = _embed(config, held, [*kinds, shrunk])

    def lines(name: str, train_features: torch.Tensor, test_features: torch.Tensor) -> Iterator[str]:
        rows = train_features, labels, test_features, test_labels
        try:
            scores: dict[Any, Score]
            scores = knn_grid(*rows, ks=ks, temperatures=temperatures) if kind == "knn" else {None: linear_probe(*rows)}
        except ValueError as error:  # features that are not finite
            raise UserError(f"{uri}: {error}") from None
        for at, score in scores.items():
            which = f"k {at[0]:<5} temperature {at[1]:<6g}" if at and len(scores) > 1 else ""
            yield _line(name, score, which)

    what = f"weighted {'/'.join(map(str, ks))}-NN" if kind == "knn" else "linear probe"
    yield f"{what} on {len(test_labels):,} test images ({held.uri}), classifier from {len(labels):,} training images"
    if quick:
        yield QUICK
    for name in ("this run" if loaded.run else "these weights", "untrained backbone"):
        yield from lines(name, features.pop(0), test_features.pop(0))
    pixels, test_pixels = pixel_features(features.pop(), test_features.pop())
    yield from lines("raw 16x16 pixels", pixels, test_pixels)
    if kind == "probe" and len(pixels) <= SVM_ROWS:
        svm = _svm(pixels, labels, test_pixels, test_labels)
        if svm is not None:
            yield _line("RBF-SVM on pixels", svm)
    unreadable = len(shown.bad) + len(held.bad)
    if unreadable:
        yield f"  {unreadable} unreadable images were left out"


def _embed(
    config: Config, rows: LabelledRows, kinds: Sequence[Callable[[NDArray[np.uint8]], torch.Tensor]]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each of ``kinds`` makes of all pictures ``(B, S, S, 3)``, and their labels; a batch is in memory at a time."""
    size, resize = evaluation_sizes(config)
    found: list[list[torch.Tensor]] = [[] for _ in kinds]
    labels = []
    for batch in rows.test_batches(resize, size):
        labels.append(torch.from_numpy(batch.labels))
        for parts, kind in zip(found, kinds, strict=True):
            parts.append(kind(batch.images))
    return [torch.cat(parts) for parts in found], torch.cat(labels)


def scored_on(uri: str, loaded: Loaded, train: str | None, test: str | None, size: int | None) -> Config:
    """The configuration by which images are loaded and shown to the backbone."""
    data = loaded.run.data if loaded.run else None
    learnt_from, scored_on = train or (data.train if data else ""), test or (data.test if data else "")
    if not learnt_from:
        raise UserError(f"{uri}: weights name no data; give labelled shards with --train and --test")
    if not scored_on:
        what = "the run names" if data else "weights name"
        raise UserError(f"{uri}: {what} no test data; give labelled shards with --test")
    view = loaded.view
    if size is not None:
        try:
            view = View(size=size, resize=round(size * 256 / 224), mean=view.mean, std=view.std)
        except ValidationError:
            raise UserError(f"--size {size}: give the side of an image from 8 to 3584 px") from None
    if loaded.run is None or size is not None:
        return view.config(learnt_from, scored_on)
    return loaded.run.model_copy(update={"data": loaded.run.data.model_copy(update={"train": learnt_from, "test": scored_on})})


def probe_on_test(config: Config, backbone: torch.nn.Module) -> Score:
    """The linear probe of a backbone on the test data, its classifier from all labelled training images."""
    train, held = (LabelledRows(uri, again=False) for uri in (config.data.train, config.data.test))
    check_pair(train, held)
    kind = partial(features_of, config, backbone, device=next(backbone.parameters()).device)
    ((features,), labels), ((test_features,), test_labels) = (_embed(config, rows, [kind]) for rows in (train, held))
    try:
        return linear_probe(features, labels, test_features, test_labels)
    except ValueError as error:
        raise UserError(f"run {config.name!r}: {error}") from None


def _svm(pixels: torch.Tensor, labels: torch.Tensor, test_pixels: torch.Tensor, test_labels: torch.Tensor) -> Score | None:
    """A strong classifier that needs no features; None where scikit-learn is not installed (the demo brings it)."""
    try:
        from sklearn.svm import SVC
    except ImportError:
        return None
    votes = SVC(C=10).fit(pixels.numpy(), labels.numpy()).decision_function(test_pixels.numpy())
    scores = torch.from_numpy(votes).reshape(len(test_labels), -1)
    if scores.shape[1] == 1:  # two classes: one signed distance
        scores = torch.cat([-scores, scores], dim=1)
    classes = labels.unique()
    column = torch.searchsorted(classes, test_labels).clamp_max(len(classes) - 1)
    return Score.of(scores, torch.where(classes[column] == test_labels, column, -1))  # a class never trained on is a miss


def _line(name: str, score: Score, which: str = "") -> str:
    top1, top5 = f"{score.top1:.4f} ± {score.top1_stderr:.4f}", f"{score.top5:.4f} ± {score.top5_stderr:.4f}"
    return f"  {name:<20} {which}top-1 {top1}   top-5 {top5}"
