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
    source: Annotated[str, typer.Argument(metavar="SRC", help="folder of images (subfolders are classes), or demo:digits")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3:// of the shards")],
    check: Annotated[bool, typer.Option("--check", help="verify the checksums of the shards in DEST afterwards")] = False,
) -> None:
    """Turn images into Parquet shards. Interrupted, the same command goes on."""
    from rich.progress import Progress

    from swav_ray.data.shards import verify, write_shards
    from swav_ray.data.sources import folder_sources, prepare_digits
    from swav_ray.data.storage import Storage

    folder = Storage(dest)
    if source == "demo:digits":
        train, test = prepare_digits(folder)
        print(f"real digits: 4,000 for training in {train}, 1,000 for testing in {test}")
        folders = [Storage(train), Storage(test)]
    else:
        sources, classes = folder_sources(source)
        with Progress(transient=True) as progress:
            task = progress.add_task("shards", total=len(sources))
            done = write_shards(sources, classes, folder, progress=lambda count: progress.update(task, completed=count))
        print(
            f"{done.num_rows:,} images in {len(done.files)} files, {len(done.classes)} classes, "
            f"{done.transcoded:,} transcoded, {len(done.skipped):,} unreadable and skipped: {folder.uri}"
        )
        for entry in done.skipped[:5]:
            print(f"  skipped {entry['id']}: {entry['reason']}")
        folders = [folder]
    if check:
        wrong = [line for place in folders for line in verify(place)]
        if wrong:
            raise UserError(f"{wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
        print("all checksums hold")


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


WeightsArgument = Annotated[
    str, typer.Argument(metavar="RUN|FILE", help="a run, an export or a file of weights; local or s3://")
]
TestOption = Annotated[str | None, typer.Option(help="shards to score on instead of the run's test data")]
TrainOption = Annotated[str | None, typer.Option(help="shards the classifier learns from instead of the run's training data")]
SizeOption = Annotated[
    int | None, typer.Option(help="of the images, px a side; else as trained, 224 for a file that does not say")
]


@app.command()
def probe(run: WeightsArgument, test: TestOption = None, train: TrainOption = None, size: SizeOption = None) -> None:
    """Score a backbone: linear classifier on its frozen features, on the test data."""
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "probe", test, train=train, size=size):
        print(line)


@app.command()
def knn(
    run: WeightsArgument,
    test: TestOption = None,
    train: TrainOption = None,
    size: SizeOption = None,
    k: Annotated[int, typer.Option(help="neighbours")] = 20,
) -> None:
    """Score a backbone: weighted nearest neighbours on its frozen features, on the test data."""
    if k < 1:
        raise UserError(f"--k {k}: at least one neighbour must vote")
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "knn", test, train=train, size=size, k=k):
        print(line)


@app.command()
def export(
    run: WeightsArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3:// of the export")],
    format: Annotated[str, typer.Option("--format", help="torchvision, timm, safetensors, onnx or detectron2")] = "safetensors",
) -> None:
    """Write a backbone as another library opens it, with a model card."""
    from swav_ray.export import export as write

    for address in write(run, dest, format):
        print(_short(address))
