"""Training a classifier on a backbone by a protocol: fine-tuning, and the linear protocol as published.

One process, on a GPU where there is one. The state is saved after every epoch where a folder is given, and the same call
goes on from there: order, crops and subset are functions of (seed, epoch, image id), so it ends alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from swav_ray import __version__
from swav_ray.config import Config
from swav_ray.config_sections import Augment
from swav_ray.data.multicrop import ready
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.evaluate.features import normalise
from swav_ray.evaluate.finetune import Classifier, scores_of, train_epoch
from swav_ray.evaluate.linear_probe import Score, mean_per_class
from swav_ray.evaluate.protocol import Protocol
from swav_ray.train.backbones import VIEW, View
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.labelled import Labelled, LabelledRows

RESULTS, TRUNK, HEAD = "results.json", "model.safetensors", "head.safetensors"
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
        names = train.shards.manifest.classes, test.shards.manifest.classes
        if all(names) and names[0] != names[1]:
            raise UserError(f"{test.uri}: not the classes of {train.uri}; make both with the same --classes FILE")
        if len(set(train.labels.tolist())) < 2:
            raise UserError(f"{train.uri}: a classifier needs images of at least two classes")
        self.view, self.protocol, self.train, self.test = view, protocol, train, test
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Classifier(backbone.float(), train.num_classes, protocol).to(self.device)
        self.optimizer = self.model.optimizer(protocol)
        self.history: list[Epoch] = []
        self._held: tuple[list[Tensor], Tensor] | None = None  # features of the test rows, where the trunk is frozen
        self.out = Storage(out) if out is not None else None
        if self.out is not None:
            self._resume(self.out)

    def run(self) -> Iterator[Epoch]:
        """Train the epochs that are left; each one's figures as it ends."""
        crops = crop_config(self.view, self.protocol)
        ready(crops)
        for epoch in range(len(self.history), self.protocol.epochs):
            batches = self.train.train_batches(crops, epoch, self.protocol.batch_size)
            pairs = (self._on_device(batch) for batch in batches if len(batch.labels) > 1)  # one row has no batch statistics
            loss = train_epoch(self.model, self.optimizer, pairs, self.protocol.rate(epoch))
            self.history.append(Epoch.of(epoch + 1, loss, *self._score()))
            if self.out is not None:
                self._save(self.out)
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
        """Which training this is; nothing else may go on from its state."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.backbone.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        rows = [hashlib.sha256("\n".join(part.ids).encode()).hexdigest()[:16] for part in (self.train, self.test)]
        view = self.view.model_dump(mode="json")
        return {
            "protocol": self.protocol.model_dump(mode="json"),
            "view": view,
            "rows": rows,
            "weights": digest.hexdigest()[:16],
        }

    def _resume(self, out: Storage) -> None:
        self.about = self._about()
        if out.exists("config.yaml"):
            raise UserError(f"--out {out.uri}: is a run; give a folder of its own")
        self.checkpoints = Checkpoints(out / "checkpoints", keep_last=1)
        if out.exists(RESULTS):
            try:
                found = json.loads(out.read(RESULTS))
                about, history = found["about"], [Epoch(**row) for row in found["epochs"]]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"--out {out.uri}/{RESULTS}: not one of this version; name another folder") from None
        elif (saved := self.checkpoints.latest()) is not None:
            state, manifest = saved
            about, history = manifest.get("about"), [Epoch(**row) for row in manifest.get("epochs", [])]
        else:
            return
        if about != json.loads(json.dumps(self.about)):
            raise UserError(f"--out {out.uri}: holds a training of other weights, data or settings; name another folder")
        if not out.exists(RESULTS):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.history = history

    def _save(self, out: Storage) -> None:
        """The state after an epoch; after the last one the weights, the results, and no state."""
        epochs = [asdict(row) for row in self.history]
        if len(self.history) < self.protocol.epochs:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            about = {"epoch": len(self.history), "row": 0, "about": self.about, "epochs": epochs, "version": __version__}
            self.checkpoints.save(len(self.history), state, about)
            return
        notes = {"format": "pt", "swav_ray.version": __version__, VIEW: self.view.model_dump_json()}
        if not self.model.trunk_is_frozen:
            out.write(TRUNK, safetensors.torch.save(_plain(self.model.backbone), notes))
        out.write(HEAD, safetensors.torch.save(_plain(self.model.head), {"format": "pt"}))
        results = {"about": self.about, "classes": self.train.shards.manifest.classes, "epochs": epochs, "version": __version__}
        out.write(RESULTS, json.dumps(results, indent=1).encode())
        out.delete("checkpoints")


def crop_config(view: View, protocol: Protocol) -> Config:
    """The configuration by which training images are cropped: one random resized crop, flipped or not."""
    augment = Augment(flip=protocol.flip, jitter=0, grey=0, blur=0, mean=view.mean, std=view.std)
    alone = {"crop_counts": (1,), "crops_for_assign": (0,), "crop_min_scales": (protocol.min_scale,)}
    # Copied, not validated: of a crop alone nothing could be predicted, which is no matter here.
    return view.config("", "").model_copy(update={**alone, "seed": protocol.seed, "augment": augment})


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in module.state_dict().items()}
