"""Training a classifier on a backbone by a protocol: fine-tuning, and the linear protocol as published.

One process, on a GPU where there is one. The state is saved after every epoch where a folder is given, and the same call
goes on from there: order, crops, subset and dropout are functions of (seed, epoch, image id), so it ends alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.config_sections import Augment
from swav_ray.data.multicrop import ready
from swav_ray.evaluate.features import normalise
from swav_ray.evaluate.finetune import Classifier, drawn_by, scores_of, train_epoch
from swav_ray.evaluate.linear_probe import Score, mean_per_class
from swav_ray.evaluate.protocol import Protocol
from swav_ray.train.backbones import VIEW, View
from swav_ray.train.labelled import Labelled, LabelledRows, check_pair
from swav_ray.train.outcome import Outcome, digest_of

TRUNK, HEAD = "model.safetensors", "head.safetensors"
FEATURES = 1 << 16  # test rows whose features of a frozen trunk are kept from epoch to epoch


@dataclass(frozen=True)
class Epoch:
    """What the test images say after an epoch, counted from 1."""

    epoch: int
    loss: float
    top1: float
    top1_stderr: float
    top5: float
    top5_stderr: float
    mean_per_class: float
    mean_per_class_stderr: float

    @classmethod
    def of(cls, epoch: int, loss: float, scores_NC: Tensor, labels_N: Tensor) -> Epoch:
        score = Score.of(scores_NC, labels_N)
        each = mean_per_class(score.hits_N, labels_N)
        return cls(epoch, loss, score.top1, score.top1_stderr, score.top5, score.top5_stderr, *each)


class Classification:
    """One training of a classifier.

    Args:
        backbone: is changed, unless the protocol freezes all of it.
        view: how the backbone wants its images.
        train, test: what is learnt from and scored on.
        out: local or `s3://` folder of the state, the results and the weights.

    Raises:
        UserError: the two data sets have other classes, too few rows, or ``out`` holds something else.
    """

    def __init__(
        self,
        backbone: nn.Module,
        view: View,
        protocol: Protocol,
        train: LabelledRows,
        test: LabelledRows,
        out: str | None = None,
    ) -> None:
        check_pair(train, test)
        self.view, self.protocol, self.train, self.test = view, protocol, train, test
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Classifier(backbone.float(), train.num_classes, protocol).to(self.device)
        self.optimizer = self.model.optimizer(protocol)
        self.history: list[Epoch] = []
        self._held: tuple[list[Tensor], Tensor] | None = None  # features of the test rows, where the trunk is frozen
        self.outcome = Outcome(out, self._about(), self._files()) if out is not None else None
        if self.outcome is not None:
            self._resume(self.outcome)

    def run(self) -> Iterator[Epoch]:
        """Train the epochs that are left; each one's figures as it ends."""
        crops = crop_config(self.view, self.protocol)
        ready(crops)
        for epoch in range(len(self.history), self.protocol.epochs):
            batches = self.train.train_batches(crops, epoch, self.protocol.batch_size)
            pairs = (self._on_device(batch) for batch in batches if len(batch.labels) > 1)  # one row has no batch statistics
            with drawn_by(self.protocol.seed, epoch, self.device):  # dropout, where the backbone has any
                loss = train_epoch(self.model, self.optimizer, pairs, self.protocol.rate(epoch))
            self.history.append(Epoch.of(epoch + 1, loss, *self._score()))
            if self.outcome is not None:
                self._save(self.outcome)
            yield self.history[-1]

    def _on_device(self, batch: Labelled) -> tuple[Tensor, Tensor]:
        images = normalise(batch.images, self.view.mean, self.view.std, self.device)
        return images, torch.from_numpy(batch.labels).to(self.device)

    def _score(self) -> tuple[Tensor, Tensor]:
        """Scores ``(N, C)`` and labels of the test rows."""
        if self._held is not None:
            features, labels = self._held
            return scores_of(self.model.head, (part.to(self.device) for part in features)), labels
        keeps = self.model.trunk_is_frozen and len(self.test) <= FEATURES
        labels_N: list[Tensor] = []

        def images() -> Iterator[Tensor]:
            for batch in self.test.test_batches(self.view.resize, self.view.size):
                pixels, labels = self._on_device(batch)
                labels_N.append(labels.cpu())
                yield pixels

        if not keeps:
            scores = scores_of(self.model, images())
            return scores, torch.cat(labels_N)
        features = list(scores_of(self.model.backbone, images()).split(1024))
        self._held = features, torch.cat(labels_N)
        return self._score()

    # --- the folder

    def _about(self) -> dict[str, Any]:
        """Which training this is."""
        rows = [
            hashlib.sha256("\n".join(part.ids).encode() + part.labels.tobytes()).hexdigest()[:16]
            for part in (self.train, self.test)
        ]
        return {
            "protocol": self.protocol.model_dump(mode="json"),
            "view": self.view.model_dump(mode="json"),
            "rows": rows,
            "weights": digest_of(self.model.backbone),
        }

    def _files(self) -> tuple[str, ...]:
        """Of the weights it leaves."""
        return (HEAD,) if self.model.trunk_is_frozen else (HEAD, TRUNK)

    def _resume(self, outcome: Outcome) -> None:
        state, self.history = outcome.found(Epoch)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

    def _save(self, outcome: Outcome) -> None:
        """The state after an epoch; after the last one the weights and the results."""
        epochs = [asdict(row) for row in self.history]
        if len(self.history) < self.protocol.epochs:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            outcome.save(state, epochs, len(self.history))
            return
        weights: dict[str, tuple[nn.Module, dict[str, str]]] = {HEAD: (self.model.head, {})}
        if not self.model.trunk_is_frozen:
            notes = {"swav_ray.version": __version__, VIEW: self.view.model_dump_json()}
            weights[TRUNK] = self.model.backbone, notes
        outcome.finish(weights, epochs, classes=self.train.shards.manifest.classes)


def crop_config(view: View, protocol: Protocol) -> Config:
    """The configuration by which training images are cropped: one random resized crop, flipped or not."""
    augment = Augment(flip=protocol.flip, jitter=0, grey=0, blur=0, mean=view.mean, std=view.std)
    alone = {"crop_counts": (1,), "crops_for_assign": (0,), "crop_min_scales": (protocol.min_scale,)}
    # Copied, not validated: of a crop alone nothing could be predicted, which is no matter here.
    return view.config("", "").model_copy(update={**alone, "seed": protocol.seed, "augment": augment})
