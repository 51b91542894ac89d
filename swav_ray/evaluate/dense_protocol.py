"""How detection and segmentation are trained on a backbone: the published recipes by name, or a YAML file of one's own.

Everything counts in steps of one global batch, as the published schedules do (24k steps of VOC, 90k of COCO).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from swav_ray.config_sections import Section
from swav_ray.evaluate.protocol import Frozen, load_section

WARMUP_START = 1e-3  # of the rate at the first step; detectron2's and torchvision's
POLY = 0.9  # torchvision's power of the polynomial schedule
QUICK_STEPS, QUICK_BATCH, QUICK_SIDE = 10, 4, 224
Side = Annotated[int, Field(ge=32, le=4096)]


class Dense(Section):
    """What detection and segmentation share: how the network learns."""

    head: str = ""
    frozen: Frozen = Field("none", description="the trunk up to this layer keeps its weights and running statistics")
    batch_norm: Literal["live", "frozen"] = Field(
        "live", description="of the trunk; live: statistics of the whole batch, as synced ones are; frozen: as pretrained"
    )
    steps: int = Field(90_000, ge=1)
    batch_size: int = Field(16, ge=2)
    images_per_pass: int = Field(0, ge=0, description="a batch in passes of so many, to save memory; 0: at once")
    lr: float = Field(0.02, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["step", "poly"] = Field("step", description="poly: down to 0 by (1 - step / steps) ** 0.9")
    step_at: tuple[int, ...] = Field((), description="schedule step: the rate is multiplied after so many steps")
    step_factor: float = Field(0.1, gt=0, lt=1)
    warmup_steps: int = Field(0, ge=0, description="the rate rises from a thousandth over so many steps")
    flip: float = Field(0.5, ge=0, le=1)
    score_every: int = Field(0, ge=0, description="steps from one scoring to the next; 0: at the end")
    seed: int = Field(31, ge=0, description="of the head's first weights, the order of the images and all draws")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.schedule == "poly" and self.step_at:
            raise ValueError(f"step_at {list(self.step_at)} goes with schedule step; leave it out or set that")
        if list(self.step_at) != sorted(set(self.step_at)) or any(step < 1 for step in self.step_at):
            raise ValueError(f"step_at {list(self.step_at)} must rise, from 1 on")
        return self

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by in a step, counted from 0."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        start = WARMUP_START * (1 - warm) + warm
        if self.schedule == "poly":
            return float(start * (1 - step / self.steps) ** POLY)
        return float(start * self.step_factor ** sum(step >= at for at in self.step_at))

    def rounds(self) -> list[int]:
        """After which steps it is scored."""
        every = self.score_every or self.steps
        return [*range(every, self.steps, every), self.steps]

    def quick(self) -> Self:
        """A few steps of small images: to see that it works, not how well."""
        steps = min(self.steps, QUICK_STEPS)
        changes = {"steps": steps, "batch_size": min(self.batch_size, QUICK_BATCH), "score_every": 0, "step_at": ()}
        changes["images_per_pass"] = 0  # few and small as they are
        return self.model_copy(update={**changes, "warmup_steps": min(self.warmup_steps, steps // 2)}).sized(
            min(QUICK_SIDE, self.side)
        )

    @property
    def side(self) -> int:
        """Short side at which images are scored, px."""
        raise NotImplementedError

    def sized(self, side: int) -> Self:
        """The same with images of another size; what else is in pixels keeps its ratio to it."""
        raise NotImplementedError


class Detection(Dense):
    """Boxes, and masks in them, by torchvision's heads on a feature pyramid."""

    head: Literal["faster-rcnn", "mask-rcnn"] = "faster-rcnn"
    sizes: Annotated[tuple[Side, ...], Field(min_length=1)] = Field(
        (800,), description="short sides, px; one is drawn for each training image, and scored is at the last"
    )
    max_size: int = Field(1333, ge=32, description="longest side, px")
    anchor_sizes: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (32, 64, 128, 256, 512), description="px, a level of the pyramid each; a quarter of them for the small stem"
    )
    channels: int = Field(256, ge=8, description="of the pyramid and the mask head")
    box_head: int = Field(1024, ge=8, description="width of the box head")
    box_samples: int = Field(512, ge=8, description="proposals an image that the box head learns from")

    @property
    def side(self) -> int:
        return self.sizes[-1]

    def sized(self, side: int) -> Self:
        scale = side / self.side
        sizes = tuple(max(32, round(size * scale)) for size in self.sizes)
        return self.model_copy(update={"sizes": sizes, "max_size": max(side, round(self.max_size * scale))})


class Segmentation(Dense):
    """A class for every pixel, by torchvision's heads on a trunk whose last layers keep their resolution."""

    head: Literal["fcn", "deeplabv3"] = "fcn"
    dilated_layers: Literal[0, 1, 2] = Field(2, description="the last so many layers dilate instead of halving the resolution")
    atrous_rates: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((12, 24, 36), description="of deeplabv3")
    aux_weight: float = Field(0.5, ge=0, description="of the loss of a second classifier on layer3; 0: none")
    size: Side = Field(520, description="short side, px, at which images are scored")
    crop: Side = Field(480, description="side of the training crops, px")
    min_scale: float = Field(0.5, gt=0, description="of `size`, drawn for each training image")
    max_scale: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _scales(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale:g} is above max_scale {self.max_scale:g}; swap them")
        size = self.images_per_pass or self.batch_size
        if self.head == "deeplabv3" and 1 in (size, self.batch_size % size):
            raise ValueError(
                f"images_per_pass {self.images_per_pass}: deeplabv3 normalises over the images of a pass; of {self.batch_size} "
                "none may stay alone in one"
            )
        return self

    @property
    def side(self) -> int:
        return self.size

    def sized(self, side: int) -> Self:
        return self.model_copy(update={"size": side, "crop": max(32, round(self.crop * side / self.size))})


TASKS: dict[str, type[Dense]] = {"detection": Detection, "segmentation": Segmentation}
DEFAULTS = {"detection": "faster-rcnn", "segmentation": "fcn"}


def load_dense(task: str, name: str | None = None, overrides: dict[str, Any] | None = None) -> Dense:
    """The protocol of a name (`protocols/TASK/`) or a YAML file, with settings on top.

    Raises:
        UserError: no such name or file, or the first mistake in it: file, line, key, value.
    """
    return load_section(TASKS[task], name or DEFAULTS[task], overrides, folder=task)
