"""`bench`: what a step of a recipe costs on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from swav_ray.cli.app import SetOption, app, overrides_of


@app.command()
def bench(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|YAML", help="a recipe's name, or a configuration file")],
    settings: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="measured whole, and as many again by part")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="processes of this machine, a GPU each where there are so many")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON instead")] = False,
) -> None:
    """Time a training step on this machine, part by part."""
    import dataclasses
    import json

    from swav_ray.config import load_config

    config = load_config(recipe, overrides_of(settings))
    from swav_ray.train.bench import share_of
    from swav_ray.train.bench_workers import measure_on
    from swav_ray.train.trainer import resolve

    synthetic = not config.data.train
    if not synthetic:
        config = resolve(config)
    report = measure_on(share_of(config, workers), workers, steps, synthetic=synthetic)
    if as_json:
        figures = dataclasses.asdict(report)
        print(json.dumps(figures | {"images_per_second": report.images_per_second, "peak_share": report.peak_share}))
    else:
        _show(recipe, report)


def _show(recipe: str, report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    count = f"{report.workers} workers of {report.rows} rows" if report.workers > 1 else f"1 worker of {report.rows} rows"
    source = "synthetic pictures, for data.train is not set" if report.data_wait_seconds is None else "pictures of data.train"
    print(f"{recipe} on {report.device}: {count}, {report.precision}, {source}")
    rows = dict(report.parts)
    if report.data_wait_seconds is not None:
        rows = {"data wait": report.data_wait_seconds, **rows}
    if report.workers > 1:
        rows["communication, within the above"] = report.communication_seconds
    table = Table("part", "ms", "share", box=None)
    for name, seconds in rows.items():
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{seconds / report.step_seconds:.0%}")
    Console().print(table)
    print(
        f"a step takes {1e3 * report.step_seconds:.1f} ms: {report.images_per_second:,.1f} images/s, "
        f"{report.flops / report.step_seconds / 1e12:.3g} of {report.peak_flops / 1e12:.3g} TFLOP/s that a large matrix "
        f"product reaches here ({report.peak_share:.0%}), {report.peak_memory_bytes / 2**30:.2f} GiB of memory at most"
    )
