"""The commands. Thin, and heavy imports only inside them, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from swav_ray import __version__
from swav_ray.errors import Stopped, StorageAwayError, UserError

app = typer.Typer(
    name="swav-ray",
    help="SwAV image features, learnt without labels on elastic Ray clusters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting on top; repeatable")]


def main() -> None:
    """Entry point: a user's mistake, or a store that is away, is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except (UserError, StorageAwayError) as error:
        print(f"swav-ray: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"swav-ray: {stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("swav-ray: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _overrides(assignments: list[str] | None) -> dict[str, Any]:
    from swav_ray.config import parse_assignment

    return dict(parse_assignment(text) for text in assignments or [])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    # Answered in its own callback, since this function only runs when a command follows.
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="print the version and exit")] = False,
) -> None:
    pass


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
    from swav_ray.config import load_config

    overrides = _overrides(settings)
    if workers is not None:
        overrides["elastic.min"], overrides["elastic.max"] = _worker_range(workers)
    if storage is not None:
        overrides["storage"] = storage
    config = load_config(recipe, overrides)
    named = name or config.name or Path(recipe).stem
    from swav_ray.train.screen import Screen
    from swav_ray.train.session import connect
    from swav_ray.train.trainer import pretrain as run
    from swav_ray.train.trainer import resolve

    config = resolve(config.model_copy(update={"name": named}))
    low, high = config.elastic.min, config.elastic.max
    count = f"{low} to {high} workers" if low < high else f"{low} worker" + ("s" if low > 1 else "")
    print(f"run {named} in {_short(config.storage)}: {config.epochs} epochs on {count}")
    connect(cpus=config.elastic.max * config.elastic.cpus_per_worker + 2)
    with Screen(config) as screen:
        figures = run(config, screen.show, screen.tell)
    place = f"{config.storage}/{named}"
    if "probe/top1" in figures:
        top1, error = figures["probe/top1"], figures["probe/top1_stderr"]
        print(f"linear probe on {figures['probe/rows']:,} held-out training images: {top1:.4f} ± {error:.4f}")
    print(f"done: {_short(place)}\nnext: swav-ray probe {_short(place)}")


def _short(place: str) -> str:
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if "://" not in place and path.is_relative_to(Path.cwd()) else place


def _worker_range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    try:
        bounds = int(low), int(high if colon else low)
    except ValueError:
        raise UserError(f"--workers {text}: write a number, or MIN:MAX as in 1:8") from None
    if not 1 <= bounds[0] <= bounds[1]:
        raise UserError(f"--workers {text}: need 1 <= MIN <= MAX")
    return bounds


class _RunByDefault(TyperGroup):
    """`swav-ray tune SPACE.yaml` is short for `swav-ray tune run SPACE.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


tune = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Find settings for your data: `swav-ray tune SPACE.yaml` is a sweep, ranked by linear-probe accuracy.",
)
app.add_typer(tune, name="tune")
SpaceFile = Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="what to vary; see search_spaces/")]
Concurrency = Annotated[int | None, typer.Option(help="trials at a time")]


@tune.command("run")
def tune_run(
    space_file: SpaceFile,
    settings: SetOption = None,
    trials: Annotated[int | None, typer.Option(help="instead of the file's budget")] = None,
    concurrency: Concurrency = None,
    dry_run: Annotated[
        int, typer.Option("--dry-run", metavar="N", help="print N sampled configurations and what it will cost, and stop")
    ] = 0,
) -> None:
    """The sweep itself; `run` may be left out. Run again, it goes on."""
    if dry_run < 0:
        raise UserError(f"--dry-run {dry_run}: give the number of configurations to print")
    from swav_ray.tune.space import load_space

    space = load_space(
        space_file, _overrides(settings), budget=None if trials is None else {"trials": trials}, concurrency=concurrency
    )
    from swav_ray.tune.sweep import Sweep, sample, sweep_folder

    if dry_run:
        from swav_ray.tune.estimate import estimate

        print(f"{_budget(space)}, {space.concurrency} at a time; the first {dry_run} would be:")
        for number, point in enumerate(sample(space, dry_run)):
            print(f"  {number}: " + ", ".join(f"{key}={value}" for key, value in point.items()))
        for line in estimate(space).lines():
            print(line)
        return
    from rich.console import Console

    from swav_ray.train.session import connect
    from swav_ray.tune.leaderboard import screen

    print(f"sweep {space.name} in {_short(sweep_folder(space))}: {_budget(space)}, {space.concurrency} at a time")
    sweep = Sweep(space)
    connect(cpus=space.concurrency * space.resources.worker_range[1] * space.resources.cpus_per_worker)
    outcome = sweep.run()
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(screen(outcome.table, space, console.width))
    place = _short(outcome.folder)
    if outcome.stopped:
        raise Stopped(f"sweep {space.name} stopped, all saved in {place}; the same command goes on")
    if outcome.best is None:
        raise UserError(f"no trial completed; see {place}/leaderboard.md for the reasons")
    Path("best.yaml").write_text(outcome.best.read_text())
    print(f"what was found: {place}/report.html\nleaderboard: {place}/leaderboard.csv\nbest configuration: best.yaml")
    print(f"next: swav-ray pretrain best.yaml, or swav-ray tune confirm {space_file}")


@tune.command("confirm")
def tune_confirm(space_file: SpaceFile, settings: SetOption = None, concurrency: Concurrency = None) -> None:
    """Train the sweep's best and its baseline in full over seeds, scored on test data no choice has seen."""
    from swav_ray.tune.space import load_space

    space = load_space(space_file, _overrides(settings), concurrency=concurrency)
    from swav_ray.train.session import connect
    from swav_ray.tune.confirm import confirm, lines
    from swav_ray.tune.sweep import Sweep

    sweep = Sweep(space)
    connect(cpus=space.concurrency * space.resources.cpus_per_worker)
    table, stopped = confirm(sweep)
    print(f"top-1 on the test data, with 95 % intervals over seeds and images ({sweep.base.data.test}):")
    for line in lines(table):
        print(line)
    if stopped:
        raise Stopped(f"confirmation of {space.name} stopped, all saved; the same command goes on")
    print(f"kept in {_short(sweep.folder.storage.uri)}/confirm.md")


def _budget(space: Any) -> str:
    parts = {"trials": space.trials, "hours": space.budget.hours, "GPU-hours": space.budget.gpu_hours}
    return " or ".join(f"{amount:g} {name}" for name, amount in parts.items() if amount is not None)


@app.command()
def probe(
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder or s3:// of a run")],
    test: Annotated[str | None, typer.Option(help="shards to score on instead of the run's test data")] = None,
) -> None:
    """Score a run's backbone: linear classifier on its frozen features, on the test data."""
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "probe", test):
        print(line)


@app.command()
def knn(
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder or s3:// of a run")],
    test: Annotated[str | None, typer.Option(help="shards to score on instead of the run's test data")] = None,
    k: Annotated[int, typer.Option(help="neighbours")] = 20,
) -> None:
    """Score a run's backbone: weighted nearest neighbours on its frozen features, on the test data."""
    if k < 1:
        raise UserError(f"--k {k}: at least one neighbour must vote")
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "knn", test, k=k):
        print(line)


@app.command()
def share(
    source: Annotated[str | None, typer.Argument(metavar="RUN|FILE", help="folder or s3:// of a run, or one file")] = None,
    to: Annotated[str | None, typer.Option(metavar="URL", help="address of a Send server")] = None,
    downloads: Annotated[int, typer.Option(help="how often it can be had")] = 1,
    expires: Annotated[str, typer.Option(help="how long: 30m, 12h, 1d, 1w")] = "1d",
    password: Annotated[
        bool, typer.Option("--password", help="ask for one; it gates the download, the encryption stays the link's")
    ] = False,
    revoke: Annotated[str | None, typer.Option(metavar="LINK", help="delete what was shared from here")] = None,
) -> None:
    """Hand over a run's weights, configuration, card and figures, end-to-end encrypted: never data or credentials."""
    from swav_ray.share import hand_over
    from swav_ray.share import revoke as delete
    from swav_ray.share.link import read_service, seconds_of
    from swav_ray.share.screen import bar, password_of, shared_lines

    if revoke is not None:
        print(f"revoked: {delete(revoke)}")
        return
    if source is None or to is None:
        raise UserError("share: write `swav-ray share RUN|FILE --to URL`, URL being a Send server; there is no default one")
    if downloads < 1:
        raise UserError(f"--downloads {downloads}: at least 1")
    service, seconds = read_service(to), seconds_of(expires)
    secret = password_of("password for the download", twice=True) if password else None
    with bar("upload") as progress:
        shared = hand_over(source, service, downloads=downloads, seconds=seconds, password=secret, progress=progress)
    for line in shared_lines(shared, downloads, password):
        print(line)


@app.command()
def receive(
    link: Annotated[str, typer.Argument(metavar="LINK", help="in quotes; -: read from standard input, unseen by `ps`")],
    dest: Annotated[str | None, typer.Argument(metavar="DEST", help="folder to make; by default the bundle's name")] = None,
) -> None:
    """Fetch what someone shared, verify it and unpack it."""
    from swav_ray.share import receive as fetch
    from swav_ray.share.link import read_link
    from swav_ray.share.screen import bar, password_of, received_lines

    if dest is not None and "://" in dest:
        raise UserError("receive: DEST is a local folder; write `swav-ray receive LINK DEST`")
    found = read_link(sys.stdin.readline() if link == "-" else link)
    with bar("download") as progress:
        place, manifest = fetch(found, dest, ask=lambda: password_of("password of the download"), progress=progress)
    for line in received_lines(place, manifest):
        print(line)
