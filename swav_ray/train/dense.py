"""Training a detector or a segmenter on a backbone by a protocol (`evaluate/dense_protocol.py`).

One process, on a GPU where there is one: the statistics of its batch norm are those of the whole batch, as synced ones
are. The state is saved every `SAVE_STEPS` steps, before and after every scoring, where a folder is given, and the same
call goes on from there to the same end: a step's pictures, draws and samples of proposals are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from swav_ray import __version__
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.evaluate.dense_metrics import Overlap, Precision
from swav_ray.evaluate.dense_models import detector, loss_of, optimizer_of, segmenter
from swav_ray.evaluate.dense_protocol import TASKS, Dense, Detection, Segmentation
from swav_ray.evaluate.finetune import drawn_by
from swav_ray.swav.weights import read_backbone
from swav_ray.train.backbones import VIEW, View
from swav_ray.train.dense_rows import DenseRows
from swav_ray.train.outcome import RESULTS, Outcome, digest_of

MODEL = "model.safetensors"
SAVE_STEPS = 200
MASK_THRESHOLD = 0.5  # of a pixel's score in a found mask; torchvision's and detectron2's


@dataclass(frozen=True)
class Round:
    """What the test pictures say after so many steps; the loss is the mean since the round before."""

    step: int
    loss: float
    figures: dict[str, float]


class DenseTraining:
    """One training of a detector or a segmenter.

    Args:
        backbone: is changed.
        view: whose mean and deviation the backbone wants its images normalised by.
        train, test: what is learnt from and scored on, of the same classes.
        out: local or `s3://` folder of the state, the results and the weights.

    Attributes:
        step: how many are done.
        loss: the sum of those since the last scoring.

    Raises:
        UserError: the backbone is no ResNet, a library is missing, or ``out`` holds something else.
    """

    def __init__(
        self, backbone: nn.Module, view: View, protocol: Dense, train: DenseRows, test: DenseRows, out: str | None = None
    ) -> None:
        self.view, self.protocol, self.train, self.test = view, protocol, train, test
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classes = train.annotated.classes
        self._metric()  # a missing library is told now, not after hours
        about = self._about(backbone)
        self.model = network(backbone.float(), len(self.classes), protocol, view).to(self.device)
        self.optimizer = optimizer_of(self.model, protocol)
        self.history: list[Round] = []
        self.step, self.loss = 0, 0.0
        self.outcome = Outcome(out, about, (MODEL,)) if out is not None else None
        if self.outcome is not None:
            state, self.history = self.outcome.found(Round)
            self.step = self.history[-1].step if self.history else 0
            if state is not None:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.loss = state["step"], state["loss"]

    def run(self) -> Iterator[Round]:
        """Train the steps that are left; each round's figures as it ends.

        Raises:
            UserError: too many pictures cannot be used, or the loss is not finite.
        """
        for stop in self.protocol.rounds()[len(self.history) :]:
            start = self.history[-1].step if self.history else 0
            self._learn(stop)
            self.history.append(Round(stop, self.loss / (stop - start), self._score()))
            self.loss = 0.0
            if stop < self.protocol.steps:
                self._save()
            else:
                self._finish()
            yield self.history[-1]

    def _learn(self, stop: int) -> None:
        self.model.train()
        for step, (images, targets) in enumerate(self.train.batches(self.step, stop), self.step):
            for group in self.optimizer.param_groups:
                group["lr"] = self.protocol.rate(step) * group["initial_lr"]
            self.optimizer.zero_grad()
            loss = 0.0
            rows = len(images)
            size = self.protocol.images_per_pass or rows
            with drawn_by(self.protocol.seed, step, self.device):  # proposals, image sizes and dropout
                for first in range(0, rows, size):
                    part = slice(first, first + size)
                    some = [image.to(self.device, non_blocking=True) for image in images[part]]
                    wanted = [{key: value.to(self.device) for key, value in each.items()} for each in targets[part]]
                    share = loss_of(self.model, self.protocol, some, wanted) * (len(some) / rows)
                    if not math.isfinite(share.item()):
                        raise UserError(f"the loss of step {step + 1} is {share.item()}: the training diverged; lower --set lr")
                    share.backward()
                    loss += share.item()
            self.optimizer.step()
            self.step, self.loss = step + 1, self.loss + loss
            if self.step % SAVE_STEPS == 0 or self.step == stop:  # also before a scoring, which one picture may end
                self._save()

    @torch.no_grad()
    def _score(self) -> dict[str, float]:
        self.model.eval()
        metric = self._metric()
        for image, truth in self.test.scored():
            if isinstance(metric, Precision):
                found = {key: value.cpu() for key, value in self.model([image.to(self.device)])[0].items()}
                if "masks" in found:
                    found["masks"] = found["masks"][:, 0] > MASK_THRESHOLD
                metric.add(found, truth)
            else:
                scores = self.model(image[None].to(self.device))["out"]
                whole = nn.functional.interpolate(scores, truth["map"].shape, mode="bilinear", align_corners=False)
                metric.add(whole.argmax(1)[0].cpu(), truth["map"])
        return metric.result()

    def _metric(self) -> Precision | Overlap:
        if isinstance(self.protocol, Detection):
            return Precision(masks=self.protocol.head == "mask-rcnn")
        return Overlap(len(self.classes) + 1)

    def _about(self, backbone: nn.Module) -> dict[str, Any]:
        """Which training this is."""
        return {
            "protocol": self.protocol.model_dump(mode="json"),
            "view": self.view.model_dump(mode="json"),
            "rows": [_digest(part) for part in (self.train, self.test)],
            "weights": digest_of(backbone),
        }

    def _save(self) -> None:
        if self.outcome is not None:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            self.outcome.save(state | {"step": self.step, "loss": self.loss}, self._rounds(), self.step)

    def _finish(self) -> None:
        if self.outcome is not None:
            notes = {"swav_ray.version": __version__, VIEW: self.view.model_dump_json()}
            self.outcome.finish({MODEL: (self.model, notes)}, self._rounds(), classes=list(self.classes))

    def _rounds(self) -> list[dict[str, Any]]:
        return [asdict(each) for each in self.history]


def network(backbone: nn.Module, num_classes: int, protocol: Dense, view: View) -> nn.Module:
    """The protocol's network on ``backbone``, which becomes a part of it."""
    if isinstance(protocol, Detection):
        return detector(backbone, num_classes, protocol, view.mean, view.std)
    assert isinstance(protocol, Segmentation)
    return segmenter(backbone, num_classes, protocol)


def open_dense(out: str) -> tuple[nn.Module, list[str]]:
    """The network a finished training left in ``out``, in eval mode, and the names of its classes from number 1 on.

    Raises:
        UserError: no finished training of this version there.
    """
    import safetensors.torch

    folder = Storage(out)
    try:
        results, content = json.loads(folder.read(RESULTS)), folder.read(MODEL)
        settings, view = results["about"]["protocol"], View.model_validate(results["about"]["view"])
        task = "detection" if "anchor_sizes" in settings else "segmentation"
        protocol, classes = TASKS[task].model_validate(settings), list(results["classes"])
        backbone, _ = read_backbone(content, f"{out}/{MODEL}")
        model = network(backbone, len(classes), protocol, view)
        model.load_state_dict(safetensors.torch.load(content))
    except FileNotFoundError:
        raise UserError(f"{out}: holds no finished detection or segmentation ({RESULTS}, {MODEL})") from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{out}: not one of this version: {' '.join(str(error).split())[:100]}") from None
    return model.eval(), classes


def _digest(rows: DenseRows) -> str:
    digest = hashlib.sha256()
    for each in rows.examples:
        arrays = (each.boxes, each.labels, each.crowd)
        digest.update(f"{each.id} {each.name} {each.map_name} {each.outlines} ".encode())
        digest.update(b"".join(array.tobytes() for array in arrays))
    return digest.hexdigest()[:16]
