"""What boxes, masks and maps are worth: COCO's average precision through pycocotools, and the mean intersection over union.

Shapes: N boxes of an image, H and W pixels, I images, C classes with the background, which is class 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swav_ray.errors import UserError

UNLABELLED = 255  # in a map of classes
DRAWS = 500  # of the bootstrap over images
NEEDS = "detection and segmentation need more libraries: pip install 'swav-ray[transfer]'"


class Precision:
    """COCO's average precision of boxes, and of masks where they are asked for, by torchmetrics and pycocotools.

    Raises:
        UserError: torchmetrics or pycocotools is not installed.
    """

    def __init__(self, masks: bool = False) -> None:
        try:
            import pycocotools  # noqa: F401  which torchmetrics asks for only when it is used
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError:
            raise UserError(NEEDS) from None
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self._metric = MeanAveragePrecision(iou_type=self.kinds, backend="pycocotools")  # type: ignore[arg-type]

    def add(self, found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
        """One image: `boxes` ``(N, 4)`` corners in px, `labels`, `scores` of what was found, `masks` ``(N, H, W)`` bool.

        A true box of `iscrowd` 1 is neither found nor missed: whatever lies in it counts for nothing.
        """
        self._metric.update([found], [truth])

    def result(self) -> dict[str, float]:
        """`AP` (IoU .50 to .95), `AP50`, `AP75`; the same of masks under `mask AP`, ...; 0 to 1."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = self._metric.compute()
        figures = {}
        for kind, name in zip(self.kinds, ("", "mask "), strict=False):
            prefix = f"{kind}_" if len(self.kinds) > 1 else ""
            for key, label in (("map", "AP"), ("map_50", "AP50"), ("map_75", "AP75")):
                figures[f"{name}{label}"] = float(found[prefix + key])
        return figures


class Overlap:
    """The mean over classes of the intersection over union, of all labelled pixels of all images (VOC's)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts: list[NDArray[np.float64]] = []  # of an image: (3, C) pixels in both, found, and true

    def add(self, found_HW: Tensor, truth_HW: Tensor) -> None:
        """One image's maps of classes; where the truth is `UNLABELLED` nothing counts."""
        labelled = truth_HW != UNLABELLED
        found, truth = found_HW[labelled], truth_HW[labelled]
        parts = (truth[found == truth], found, truth)
        counts = [torch.bincount(part.flatten().long(), minlength=self.num_classes) for part in parts]
        self._counts.append(torch.stack(counts).double().cpu().numpy())

    def result(self) -> dict[str, float]:
        """`mIoU`, its standard error by drawing images anew, and the share of right pixels (`pixels`); 0 to 1."""
        counts_I3C = np.stack(self._counts)
        total_3C = counts_I3C.sum(0)
        random = np.random.default_rng(0)
        images = len(counts_I3C)
        draws_DI = random.multinomial(images, np.full(images, 1 / images), size=DRAWS).astype(np.float64)
        drawn_D3C = np.tensordot(draws_DI, counts_I3C, axes=1)
        error = np.nanstd([_mean(drawn) for drawn in drawn_D3C])
        pixels = total_3C[0].sum() / max(1, total_3C[2].sum())
        return {"mIoU": _mean(total_3C), "mIoU_stderr": float(error), "pixels": float(pixels)}


def _mean(counts_3C: NDArray[np.float64]) -> float:
    """Over the classes that are found or true somewhere."""
    both, found, true = counts_3C
    union = found + true - both
    seen = union > 0
    return float((both[seen] / union[seen]).mean()) if seen.any() else float("nan")
