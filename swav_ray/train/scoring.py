"""What a finished run is worth on data it never saw, beside an untrained backbone and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import yaml

from swav_ray.config import Config
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.evaluate import Score, knn, linear_probe
from swav_ray.train.build import build_model
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.probe import features_of, load_images, pixel_features

SVM_ROWS = 10_000  # its cost grows with the square


def load_run(uri: str) -> tuple[Config, torch.nn.Module]:
    """A run's configuration and its trained backbone.

    Raises:
        UserError: no run there, or none with a complete checkpoint.
    """
    run = Storage(uri)
    try:
        config = Config.model_validate(yaml.safe_load(run.read("config.yaml")))
    except FileNotFoundError:
        raise UserError(f"{uri}: not a run (it has no config.yaml)") from None
    except ValueError:
        raise UserError(f"{uri}/config.yaml: not a configuration of this version") from None
    saved = Checkpoints(run / "checkpoints").latest()
    if saved is None:
        raise UserError(f"{uri}: has no complete checkpoint yet; train it with swav-ray pretrain")
    model = build_model(config)
    model.load_state_dict(saved[0]["model"])
    return config, model.backbone


def score_run(uri: str, kind: str, test: str | None, *, k: int = 20) -> Iterator[str]:
    """Lines that say what the run's features are worth, with standard errors.

    Args:
        kind: ``probe`` or ``knn``.
        test: shards to score on; by default the run's own test data.

    Raises:
        UserError: no test data, no labels, or no such run.
    """
    config, backbone = load_run(uri)
    place = test or config.data.test
    if not place:
        raise UserError(f"{uri}: the run names no test data; give labelled shards with --test")
    train, held = load_images(config, config.data.train), load_images(config, place)
    for name, data in ((config.data.train, train), (place, held)):
        if not len(data.labels):
            raise UserError(f"{name}: holds no labelled images, so there is nothing to score with")
    labels, test_labels = torch.from_numpy(train.labels), torch.from_numpy(held.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def score(train_features: torch.Tensor, test_features: torch.Tensor) -> Score:
        if kind == "knn":
            return knn(train_features, labels, test_features, test_labels, k=k)
        return linear_probe(train_features, labels, test_features, test_labels)

    def of(module: torch.nn.Module) -> Score:
        module = module.to(device)
        return score(features_of(config, module, train.images, device), features_of(config, module, held.images, device))

    what = f"weighted {k}-NN" if kind == "knn" else "linear probe"
    yield f"{what} on {len(test_labels):,} test images ({place}), classifier from {len(labels):,} training images"
    yield _line("this run", of(backbone))
    torch.manual_seed(config.seed)
    yield _line("untrained backbone", of(build_model(config).backbone))
    pixels, test_pixels = pixel_features(train.images), pixel_features(held.images)
    yield _line("raw 16x16 pixels", score(pixels, test_pixels))
    if kind == "probe" and len(pixels) <= SVM_ROWS:
        svm = _svm(pixels, labels, test_pixels, test_labels)
        if svm is not None:
            yield _line("RBF-SVM on pixels", svm)


def probe_on_test(config: Config, backbone: torch.nn.Module) -> Score:
    """The linear probe of a backbone on the test data, its classifier from all labelled training images."""
    train, held = load_images(config, config.data.train), load_images(config, config.data.test)
    device = next(backbone.parameters()).device
    features = [features_of(config, backbone, data.images, device) for data in (train, held)]
    return linear_probe(features[0], torch.from_numpy(train.labels), features[1], torch.from_numpy(held.labels))


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


def _line(name: str, score: Score) -> str:
    return f"  {name:<20} top-1 {score.top1:.4f} ± {score.top1_stderr:.4f}   top-5 {score.top5:.4f}"
