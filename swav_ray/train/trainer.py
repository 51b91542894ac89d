"""A run on Ray: from a configuration to a trained model, on any number of workers.

The driver checks everything that can be checked, starts the workers through `TorchTrainer` and shows their progress; the
workers run `loop.py`. Their last word (done, or the user's mistake in one line) stands in the run's `status.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from swav_ray.config import Config
from swav_ray.data.shards import Shards
from swav_ray.data.sources import prepare_digits
from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.data.stream import Batch, Position, Stream
from swav_ray.errors import UserError
from swav_ray.train.progress import ProgressReader, post

CONFIG, STATUS = "config.yaml", "status.json"
RESTARTS = 8  # worker groups lost without notice before the run gives up


def resolve(config: Config) -> Config:
    """The configuration with absolute addresses and its data in place (the demo's digits are prepared).

    Raises:
        UserError: no data named, no shards there, or a combination that cannot work on them.
    """
    data = config.data
    storage = absolute_uri(config.storage)
    if not data.train:
        raise UserError("data.train is not set; give shards with --set data.train=FOLDER (made by `swav-ray shard`)")
    if data.train == "demo:digits":
        train, test = prepare_digits(Storage(storage) / "demo-digits-shards")
    else:
        train, test = absolute_uri(data.train), absolute_uri(data.test) if data.test else ""
    resolved = config.model_copy(update={"storage": storage, "data": data.model_copy(update={"train": train, "test": test})})
    rows = Shards(train).num_rows
    if rows < config.global_batch_size:
        raise UserError(f"global_batch_size {config.global_batch_size} is more than the {rows} images in {train}; lower it")
    if config.queue_length > rows:
        raise UserError(
            f"queue_length {config.queue_length} is more than the {rows} images in {train}, so each would be in it several "
            "times; lower it"
        )
    return resolved


def open_run(config: Config) -> Storage:
    """The run's folder, new or one of the same configuration.

    Raises:
        UserError: a run of that name exists with another configuration.
    """
    run = Storage(config.storage) / config.name
    try:
        existing = Config.model_validate(_yaml(run.read(CONFIG).decode()))
    except FileNotFoundError:
        run.write(CONFIG, config.to_yaml().encode())
        return run
    except ValueError:
        raise UserError(f"{run.uri}/{CONFIG}: not a configuration of this version; choose another --name") from None
    if existing.hash() != config.hash():
        raise UserError(
            f"run {config.name!r} exists in {config.storage} with another configuration: {_difference(existing, config)}; "
            "choose another --name"
        )
    run.write(CONFIG, config.to_yaml().encode())
    return run


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _difference(there: Config, here: Config) -> str:
    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    a, b = flat(there.model_dump(mode="json")), flat(here.model_dump(mode="json"))
    counts = flat(there.computed()) | flat(here.computed())
    parts = [f"{key} {a[key]} there, {b[key]} here" for key in a if key in counts and a[key] != b[key]]
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def pretrain(config: Config, show: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run ``config`` (of :func:`resolve`) to its end on the connected Ray cluster; a run begun before goes on.

    Args:
        show: called on this process with each figure the workers post.

    Returns:
        The run's last figures.

    Raises:
        UserError: the user's mistake that stopped it, or that workers were lost too often.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    run = open_run(config)
    run.delete(STATUS)
    elastic = config.elastic
    gpus = elastic.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= elastic.min else 0.0
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json")},
        scaling_config=ray.train.ScalingConfig(
            num_workers=elastic.max if elastic.min == elastic.max else (elastic.min, elastic.max),  # type: ignore[arg-type]
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": elastic.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=Storage(config.storage).root,
            storage_filesystem=Storage(config.storage).arrow,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    with ProgressReader(run.uri, show):
        try:
            trainer.fit()
        except Exception as error:
            status = read_status(run)
            if status is None:
                raise UserError(
                    f"run {config.name!r} stopped after {RESTARTS} restarts: {_cause(error)}; the same command goes on from "
                    "its last checkpoint"
                ) from error
    status = read_status(run)
    if status is None:
        raise UserError(f"run {config.name!r} ended without a word; the same command goes on from its last checkpoint")
    if status["state"] != "done":
        raise UserError(status["error"])
    return dict(status["figures"])


def read_status(run: Storage) -> dict[str, Any] | None:
    try:
        return dict(json.loads(run.read(STATUS)))
    except FileNotFoundError:
        return None


def _cause(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip().splitlines()
    return text[-1][:300] if text else type(error).__name__


def _worker(args: dict[str, Any]) -> None:
    """What runs on every worker, from the top at each start of the worker group."""
    import ray.train.torch

    from swav_ray.train.loop import Training
    from swav_ray.train.world import World

    config = Config.model_validate(args["config"])
    run = Storage(config.storage) / config.name
    world = World.join(ray.train.torch.get_device())
    started = time.time()

    def report(row: dict[str, Any]) -> None:
        post(run.uri, {**row, "workers": world.size, "started": started})

    try:
        training = Training(config, run, world, report)
        figures = training.run_to_end(batches(training.stream, training.position, world, config.data.crop_in))
        status = {"state": "done", "figures": figures}
    except UserError as error:  # raised by every worker alike: an end, not a failure to restart after
        status = {"state": "failed", "error": str(error)}
    if world.rank == 0:
        run.write(STATUS, json.dumps(status).encode())


def batches(stream: Stream, start: Position, world: Any, crop_in: str) -> Iterator[Batch]:
    """This worker's batches from ``start`` on, made where the configuration says."""
    if crop_in == "worker":
        return stream.local(start, world.rank, world.size)

    def legs() -> Iterator[Any]:
        import ray.cloudpickle

        source = stream.on_ray(start, world.size) if world.rank == 0 else None
        while True:
            leg = next(source, None) if source is not None else None
            iterators = ray.cloudpickle.loads(world.broadcast(ray.cloudpickle.dumps(leg)))
            if iterators is None:
                return
            yield iterators[world.rank]

    return stream.batches_of(start, legs(), world.rank, world.size)
