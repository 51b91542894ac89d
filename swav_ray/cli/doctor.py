"""`doctor`: what this machine or cluster lacks."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from swav_ray.cli.app import SetOption, app, overrides_of
from swav_ray.cli.training import worker_range
from swav_ray.errors import UserError, without_credentials


@app.command()
def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="ask every node of the cluster at RAY_ADDRESS; also done where that is set")
    ] = False,
    data: Annotated[str | None, typer.Option(metavar="URI", help="folder or s3:// of shards to look into")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URI", help="folder or s3:// that is to hold runs")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="RECIPE|YAML", help="what is to be run: its data, storage, memory, workers")
    ] = None,
    workers: Annotated[str | None, typer.Option(help="how many are wanted, or MIN:MAX")] = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs; progress stays on stderr")] = False,
) -> None:
    """Say what this machine or cluster lacks for a run, and how to mend it; exit code 1 if a run would fail."""
    if config is None and settings:
        raise UserError("--set: changes the configuration of --config, which is not given")
    overrides = overrides_of(settings)
    wanted = worker_range(workers) if workers is not None else None
    if wanted is not None:
        overrides["elastic.min"], overrides["elastic.max"] = wanted
    address = os.environ.get("RAY_ADDRESS", "")
    if cluster and not address:
        raise UserError("--cluster: RAY_ADDRESS is not set; export RAY_ADDRESS=HOST:6379, or =auto on a node of the cluster")
    if "://" in address:
        raise UserError(f"RAY_ADDRESS = {without_credentials(address)}: give HOST:6379, or auto on a node of the cluster")
    asked = _questions(data, storage, config, overrides, wanted)
    from swav_ray.doctor import examine_cluster, examine_machine, turned_away
    from swav_ray.doctor.screen import as_json as to_json
    from swav_ray.doctor.screen import show

    def tell(what: str) -> None:
        if sys.stderr.isatty():
            print(f"looking at {what} ...", file=sys.stderr)

    if address:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray's core would say is said by the report
        from swav_ray.train.session import connect

        away = turned_away(address) if ":" in address else None
        if away is None:
            connect()
        report = away or examine_cluster(asked, tell, address)
    else:
        report = examine_machine(asked, tell)
    if as_json:
        print(to_json(report))
    else:
        from rich.console import Console

        show(report, Console())
    if not report.passed:
        raise typer.Exit(1)


def _questions(
    data: str | None, storage: str | None, recipe: str | None, overrides: dict[str, Any], workers: tuple[int, int] | None
) -> Any:
    """What is asked, checked: addresses are ones, the configuration is one."""
    from swav_ray.config import load_config
    from swav_ray.config_sections import Elastic
    from swav_ray.data.storage import Storage
    from swav_ray.doctor import Questions

    config, elastic = None, None
    if recipe is not None:
        config = load_config(recipe, overrides if storage is None else overrides | {"storage": storage})
        storage, data, elastic = config.storage, data or config.data.train or None, config.elastic
    elif workers is not None:
        low, high = workers
        elastic = Elastic(min=low, max=high)
    for uri in (storage, data):
        if uri and "@" in uri.partition("://")[2].partition("/")[0]:
            raise UserError(f"{without_credentials(uri)}: an address holds no keys; they come from the environment or a role")
        if uri and not uri.startswith("demo:"):
            Storage(uri)
    return Questions(data=data, storage=storage, config=config, elastic=elastic)
