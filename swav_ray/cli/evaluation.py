"""What a backbone is worth: `probe`, `knn` and `finetune`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from swav_ray.cli.app import SetOption, app, overrides_of
from swav_ray.errors import UserError

WeightsArgument = Annotated[
    str, typer.Argument(metavar="RUN|FILE", help="a run, an export or a file of weights; local or s3://")
]
TestOption = Annotated[str | None, typer.Option(help="shards to score on instead of the run's test data")]
TrainOption = Annotated[str | None, typer.Option(help="shards the classifier learns from instead of the run's training data")]
SizeOption = Annotated[
    int | None, typer.Option(help="of the images, px a side; else as trained, 224 for a file that does not say")
]
OutOption = Annotated[str | None, typer.Option(metavar="DEST", help="folder or s3:// of what is learnt; a stopped one goes on")]
QuickOption = Annotated[bool, typer.Option("--quick", help="few images, few epochs: to see that it works")]
FAST = "fast"
_T = TypeVar("_T", int, float)


@app.command()
def probe(
    run: WeightsArgument,
    test: TestOption = None,
    train: TrainOption = None,
    size: SizeOption = None,
    protocol: Annotated[
        str, typer.Option(metavar="fast|linear|FILE", help="fast: exact, on features of whole images; linear: as published")
    ] = FAST,
    assignments: SetOption = None,
    out: OutOption = None,
    quick: QuickOption = False,
) -> None:
    """Score a backbone: linear classifier on its frozen features, on the test data."""
    if protocol != FAST:
        follow(run, protocol, test, train, size, assignments, out, quick)
        return
    if assignments or out is not None:
        raise UserError("probe: --set and --out go with --protocol linear; the fast probe has no settings and leaves nothing")
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "probe", test, train=train, size=size, quick=quick):
        print(line)


@app.command()
def knn(
    run: WeightsArgument,
    test: TestOption = None,
    train: TrainOption = None,
    size: SizeOption = None,
    k: Annotated[str, typer.Option(help="neighbours; several with commas: 10,20,200")] = "20",
    temperature: Annotated[str, typer.Option(help="of the votes; several with commas")] = "0.07",
    quick: QuickOption = False,
) -> None:
    """Score a backbone: weighted nearest neighbours on its frozen features, on the test data."""
    ks = _numbers("--k", k, int, "at least one neighbour must vote")
    temperatures = _numbers("--temperature", temperature, float, "a temperature is above 0")
    from swav_ray.train.scoring import score_run

    for line in score_run(run, "knn", test, train=train, size=size, k=ks, temperature=temperatures, quick=quick):
        print(line)


@app.command()
def finetune(
    run: WeightsArgument,
    test: TestOption = None,
    train: TrainOption = None,
    size: SizeOption = None,
    labels: Annotated[float | None, typer.Option(help="share of the labels; 0.01 and 0.1 are published  [0.1]")] = None,
    freeze: Annotated[
        str | None, typer.Option(metavar="none|layer1..4|all", help="the trunk up to this layer stays as it is  [none]")
    ] = None,
    protocol: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="else the published one next to --labels")] = None,
    assignments: SetOption = None,
    out: OutOption = None,
    quick: QuickOption = False,
) -> None:
    """Train the backbone and a classifier on a share of the labels: the published semi-supervised protocol."""
    if labels is not None and not 0 < labels <= 1:
        raise UserError(f"--labels {labels:g}: a share above 0, up to 1")
    from swav_ray.evaluate.protocol import nearest_protocol

    if protocol is None:
        labels = 0.1 if labels is None else labels
        protocol = nearest_protocol(labels)
    changes = [f"labels={labels}"] if labels is not None else []
    if freeze is not None:
        changes += [f"frozen={freeze}", *(["lr=0"] if freeze == "all" else [])]
    name = f"{run.rstrip('/').rpartition('/')[2].partition('.')[0] or 'weights'}-{protocol.rpartition('/')[2]}"
    dest = out or f"finetuned/{name.removesuffix('.yaml')}{'-quick' if quick else ''}"
    follow(run, protocol, test, train, size, [*changes, *(assignments or [])], dest, quick)


def follow(
    run: str,
    name: str,
    test: str | None,
    train: str | None,
    size: int | None,
    assignments: list[str] | None,
    out: str | None,
    quick: bool,
    metric: str = "top1",
) -> None:
    from swav_ray.evaluate.protocol import load_protocol

    protocol = load_protocol(name, overrides_of(assignments))
    from swav_ray.train.protocols import run_protocol

    for line in run_protocol(run, protocol, test, train=train, size=size, out=out, metric=metric, quick=quick):
        print(line, flush=True)


def _numbers(option: str, text: str, kind: Callable[[str], _T], least: str) -> list[_T]:
    """Numbers above 0 with commas between."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between, as 10,20,200") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"{option} {text}: {least}")
    return list(dict.fromkeys(numbers))
