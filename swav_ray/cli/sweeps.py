"""`tune`: sweeps and their confirmation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from swav_ray.cli.app import SetOption, app, lasts, overrides_of, short
from swav_ray.errors import Stopped, UserError


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
        space_file, overrides_of(settings), budget=None if trials is None else {"trials": trials}, concurrency=concurrency
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

    from swav_ray.train.session import connect, in_job
    from swav_ray.tune.leaderboard import screen

    print(f"sweep {space.name} in {short(sweep_folder(space))}: {_budget(space)}, {space.concurrency} at a time")
    lasts(space.look({}, "storage"))
    sweep = Sweep(space)
    connect(cpus=space.concurrency * space.resources.worker_range[1] * space.resources.cpus_per_worker)
    outcome = sweep.run()
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(screen(outcome.table, space, console.width))
    place = short(outcome.folder)
    if outcome.stopped:
        raise Stopped(f"sweep {space.name} stopped, all saved in {place}; the same command goes on")
    if outcome.best is None:
        raise UserError(f"no trial completed; see {place}/leaderboard.md for the reasons")
    print(f"what was found: {place}/report.html\nleaderboard: {place}/leaderboard.csv")
    if in_job():  # whose folder goes with it
        print(f"best configuration: {place}/best.yaml")
        return
    Path("best.yaml").write_text(outcome.best.read_text())
    print("best configuration: best.yaml")
    print(f"next: swav-ray pretrain best.yaml, or swav-ray tune confirm {space_file}")


@tune.command("confirm")
def tune_confirm(space_file: SpaceFile, settings: SetOption = None, concurrency: Concurrency = None) -> None:
    """Train the sweep's best and its baseline in full over seeds, scored on test data no choice has seen."""
    from swav_ray.tune.space import load_space

    space = load_space(space_file, overrides_of(settings), concurrency=concurrency)
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
    print(f"kept in {short(sweep.folder.storage.uri)}/confirm.md")


def _budget(space: Any) -> str:
    parts = {"trials": space.trials, "hours": space.budget.hours, "GPU-hours": space.budget.gpu_hours}
    return " or ".join(f"{amount:g} {name}" for name, amount in parts.items() if amount is not None)
