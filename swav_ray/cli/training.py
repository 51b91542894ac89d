"""From images to a trained backbone: `shard` and `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swav_ray.cli.app import SetOption, app, lasts, overrides_of, short
from swav_ray.errors import UserError

if TYPE_CHECKING:
    from swav_ray.config import Config


@app.command()
def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="folder of images (subfolders are classes), of tar files (WebDataset) or Parquet files; a pattern such as "
            "'s3://bucket/train-{000..127}.tar'; a .txt with an address a line, a tab and a label; or demo:digits",
        ),
    ],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3:// of the shards")],
    image: Annotated[str, typer.Option(metavar="NAME", help="Parquet column, or ending in tar files, of the images")] = "",
    label: Annotated[str, typer.Option(metavar="NAME", help="Parquet column, or key of .json in tar files, of labels")] = "",
    classes: Annotated[str, typer.Option(metavar="FILE", help="names of the classes, one a line")] = "",
    max_side: Annotated[int, typer.Option(metavar="PIXELS", help="shrink larger pictures: this changes the data")] = 0,
    quality: Annotated[int, typer.Option(metavar="1-100", help="encode all pictures anew: this changes the data")] = 0,
    check: Annotated[bool, typer.Option("--check", help="verify the checksums of the shards in DEST afterwards")] = False,
) -> None:
    """Turn images into Parquet shards. Interrupted, the same command goes on."""
    from swav_ray.data.ingest import Change
    from swav_ray.data.shards import verify
    from swav_ray.data.sources import find_chunks, prepare_digits
    from swav_ray.data.storage import Storage

    folder = Storage(dest)
    change = Change(max_side, quality)
    if source == "demo:digits":
        if any((image, label, classes, max_side, quality)):
            raise UserError("demo:digits takes no other option than --check")
        train, test = prepare_digits(folder)
        print(f"real digits: 4,000 for training in {train}, 1,000 for testing in {test}")
        folders = [Storage(train), Storage(test)]
    else:
        chunks, names = find_chunks(source, image=image, label=label, classes=classes, without=folder.uri)
        done = _write(chunks, names, folder, change)
        changed = f"; changed: {', '.join(f'{key} {value}' for key, value in done.changed.items())}" if done.changed else ""
        print(
            f"{done.num_rows:,} images in {len(done.files)} files, {len(done.classes)} classes, "
            f"{done.transcoded:,} transcoded, {len(done.skipped):,} unreadable and skipped{changed}: {folder.uri}"
        )
        for why, count in done.transcoded_why.items():
            print(f"  transcoded {count:,}: {why}")
        for entry in done.skipped[:5]:
            print(f"  skipped {entry['id']}: {entry['reason']}")
        folders = [folder]
    if check:
        wrong = [line for place in folders for line in verify(place)]
        if wrong:
            raise UserError(f"{wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
        print("all checksums hold")


def _write(chunks: Any, classes: list[str], folder: Any, change: Any) -> Any:
    """The shards, with a bar; on Ray where that is quicker."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from swav_ray.data.sharding import here, on_ray, pays_on_ray, write_shards

    run = here
    if pays_on_ray(chunks):
        from swav_ray.train.session import connect

        connect()
        run = on_ray
    total = sum(chunk.count for chunk in chunks) if all(chunk.count for chunk in chunks) else None
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("images", total=total)
        return write_shards(chunks, classes, folder, change=change, run=run, tell=lambda count: progress.advance(bar, count))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|YAML", help="a recipe's name, or a configuration file")],
    settings: SetOption = None,
    workers: Annotated[str | None, typer.Option(help="how many, or MIN:MAX for an elastic run")] = None,
    name: Annotated[str | None, typer.Option(help="of the run; the same name goes on where it stopped")] = None,
    storage: Annotated[str | None, typer.Option(help="folder or s3:// that holds runs")] = None,
) -> None:
    """Train a backbone without labels."""
    config = config_of(recipe, settings, workers, name, storage)
    lasts(config.storage)
    from swav_ray.train.screen import Screen
    from swav_ray.train.session import connect
    from swav_ray.train.trainer import pretrain as run
    from swav_ray.train.trainer import resolve

    config, named = resolve(config), config.name
    low, high = config.elastic.min, config.elastic.max
    count = f"{low} to {high} workers" if low < high else f"{low} worker" + ("s" if low > 1 else "")
    print(f"run {named} in {short(config.storage)}: {config.epochs} epochs on {count}")
    connect(cpus=config.elastic.max * config.elastic.cpus_per_worker + 2)
    with Screen(config) as screen:
        figures = run(config, screen.show, screen.tell)
    place = f"{config.storage}/{named}"
    if "probe/top1" in figures:
        top1, error = figures["probe/top1"], figures["probe/top1_stderr"]
        print(f"linear probe on {figures['probe/rows']:,} held-out training images: {top1:.4f} ± {error:.4f}")
    print(f"done: {short(place)}\nnext: swav-ray probe {short(place)}")


def config_of(recipe: str, settings: list[str] | None, workers: str | None, name: str | None, storage: str | None) -> Config:
    """The configuration that `pretrain` with these arguments trains, named."""
    from swav_ray.config import load_config

    overrides = overrides_of(settings)
    if workers is not None:
        overrides["elastic.min"], overrides["elastic.max"] = worker_range(workers)
    if storage is not None:
        overrides["storage"] = storage
    config = load_config(recipe, overrides)
    return config.model_copy(update={"name": name or config.name or Path(recipe).stem})


def worker_range(text: str) -> tuple[int, int]:
    """The bounds of `--workers`."""
    low, colon, high = text.partition(":")
    try:
        bounds = int(low), int(high if colon else low)
    except ValueError:
        raise UserError(f"--workers {text}: write a number, or MIN:MAX as in 1:8") from None
    if not 1 <= bounds[0] <= bounds[1]:
        raise UserError(f"--workers {text}: need 1 <= MIN <= MAX")
    return bounds
