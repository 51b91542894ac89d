"""The sections of a configuration, each a part of a run that can be set apart from the method (`config.py`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values are checked when set, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Backbone(Section):
    """The network whose features are wanted."""

    arch: str = Field(
        "resnet50", description="resnet10|18|34|50|101|152, or package.module:factory of any nn.Module with .num_features"
    )
    base_width: int = Field(64, ge=1, description="stem channels; 128, 256, 320 are the published w2, w4, w5")
    stem: Literal["imagenet", "small"] = Field("imagenet", description="small: 3x3 stride 1, no pool, for images up to 64 px")


class Augment(Section):
    """What happens to a crop after it is cut (SWAV_FACTS 1), in this order; 0 switches a step off."""

    rotation: float = Field(0.0, ge=0, le=180, description="degrees; uniform in +-, before the crop is cut")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0)
    saturation: float = Field(0.8, ge=0)
    hue: float = Field(0.2, ge=0, le=0.5)
    grey: float = Field(0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="pixels")
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)  # 0.228 is the published value


class Data(Section):
    """Where the images are and how they are shuffled."""

    train: str = Field("", description="folder or s3:// of shards; demo:digits prepares real digits")
    test: str = Field("", description="shards that only `probe`, `knn` and `confirm` ever read")
    window_groups: int = Field(16, ge=1, description="row groups shuffled together")
    block_rows: int = Field(16, ge=1, description="rows a worker gets at a time; workers <= global_batch_size / block_rows")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="share of unreadable images above which the run stops")
    crop_in: Literal["ray", "worker"] = Field(
        "ray", description="ray: tasks of Ray Data, on any node; worker: a thread of each training process"
    )
    backend: Literal["fast", "reference"] = Field(
        "fast", description="fast: compiled kernels; reference: Pillow, several times slower; both give the same crops"
    )
    bridge_seconds: float = Field(
        20.0, ge=0, description="crop_in ray: the workers crop the first steps themselves for so long, while Ray Data starts"
    )
    log_ids: bool = Field(False, description="write each step's image ids into metrics.jsonl")


class Compute(Section):
    """How a step is carried out. But for rounding nothing here changes what it computes; a run may go on with other values."""

    compile: Literal["off", "default", "reduce-overhead"] = Field(
        "off", description="torch.compile of the backbone, a minute or more at each start; reduce-overhead: with CUDA graphs"
    )
    recompute_activations: bool = Field(
        False,
        description="keep only what enters each block and compute the rest again: less memory, a third more work",
    )
    bucket_mb: float = Field(25.0, gt=0, description="gradients exchanged at a time, while the backward pass goes on")


class Elastic(Section):
    """How many workers, and when their number changes; `--workers 4` or `--workers 1:8`."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    sizes: tuple[int, ...] = Field((), description="allowed worker counts, as [1, 2, 4, 8]; empty: all from min to max")
    max_rows_per_device: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        0,
        description="rows a worker embeds at once; more go in several passes; 0: no cap; auto: what a GPU's memory holds",
    )
    scale_lr_with_batch: bool = Field(False, description="W workers take W / max of global_batch_size and learning rate")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="null: 1 where the cluster has GPUs, else 0")
    resources: dict[str, float] = Field({}, description="custom resources of a worker, as {slot: 1}")
    accelerator_type: str | None = Field(None, description="as Ray names them: A100, H100, ...")
    patience_seconds: float = Field(2.0, ge=0, description="a new place must last so long before a worker is started there")
    cooldown_seconds: float = Field(30.0, ge=0, description="from one change of the group to the next growth")
    checkpoint_wait_seconds: float = Field(120.0, gt=0, description="longest wait for a checkpoint before a planned change")
    stuck_seconds: float = Field(300.0, gt=0, description="a rank that holds up a step for longer is ended")
    silent_seconds: float = Field(60.0, gt=0, description="a worker process that answers nothing for so long is ended")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"elastic.min {self.min} is above elastic.max {self.max}; swap them")
        if self.sizes and not any(self.min <= size <= self.max for size in self.sizes):
            raise ValueError(f"elastic.sizes {list(self.sizes)} has none from elastic.min {self.min} to elastic.max {self.max}")
        if self.max_rows_per_device in (1, 2):  # 3 rows in passes of at most 2 would be 1 and 2
            raise ValueError(
                f"elastic.max_rows_per_device {self.max_rows_per_device} could make passes of one row, which has no batch "
                "statistics; give at least 3, or 0 for no cap"
            )
        return self


class Checkpoints(Section):
    """How often state is saved, and how much of it is kept."""

    every_seconds: float = Field(60.0, gt=0, description="and at every end of an epoch")
    every_steps: int = Field(0, ge=0, description="0: by time only")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: int = Field(0, ge=0, description="epochs; the one at the end of every so many is kept for ever; 0: none")


class Probe(Section):
    """The frozen-feature linear probe on a held-out part of the training labels, during training."""

    every_epochs: int = Field(0, ge=0, description="0: only at the end")
    at_epochs: tuple[int, ...] = Field((), description="and after these, counted from 1; a sweep's rungs")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images the probe is scored on")
    max_rows: int = Field(50_000, ge=10)
    resize: int = Field(0, ge=0, description="short side before the centre crop; 0: crop size * 256 / 224")
