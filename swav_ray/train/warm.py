"""A rehearsal: what a first training step does once in a process (imports, compilers, caches), done before it matters."""

from __future__ import annotations

import dataclasses
import gc

from swav_ray.config import Config
from swav_ray.data.stream import Position, Stream
from swav_ray.evaluate.features import normalise
from swav_ray.swav.batch_norm import sync_batch_norm
from swav_ray.train.build import autocast, build_model, build_optimizer, weights_dtype


def rehearse(config: Config) -> None:
    """:func:`_first_step`, and a clean table after it."""
    _first_step(config)
    # A restart collects garbage to close the old group's sockets; what is imported by now need not be looked at each time.
    gc.collect()
    gc.freeze()


def _first_step(config: Config) -> None:
    """Read a few rows, crop them, and make one step on them with a model that is thrown away."""
    import ray.data  # noqa: F401
    import tensorboard.compat
    import torch.nn.parallel
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    tensorboard.compat.tf  # noqa: B018  looked for on first use, for seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = weights_dtype(config)
    stream = Stream(config)
    span = next(stream.spans_from(Position(), 1))
    block = next(stream.read(dataclasses.replace(span, last=1)))
    block = dataclasses.replace(block, ids=block.ids[:2], jpegs=block.jpegs[:2], positions=range(2))
    cropped = next(stream.crop([[block]]))
    model = build_model(config).to(device, dtype).to(memory_format=torch.channels_last)
    sync_batch_norm(model, None)
    optimizer = build_optimizer(config, model)
    mean, std = config.augment.mean, config.augment.std
    crops = [normalise(pixels, mean, std, device).to(dtype) for group in cropped.crops for pixels in group]
    with autocast(config, device):
        _, scores = model(crops)
    scores.mean().backward()
    optimizer.step()
