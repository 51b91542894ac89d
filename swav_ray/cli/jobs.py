"""`submit`: any command as a job of a Ray cluster elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swav_ray.cli.app import app, overrides_of
from swav_ray.errors import Stopped, UserError, did_you_mean

if TYPE_CHECKING:
    from swav_ray.jobs.parcel import Parcel


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="as `-- pretrain RECIPE --workers 1:8`")],
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="of the cluster's dashboard, http://HEAD:8265; else RAY_ADDRESS")
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="code that comes along, as of backbone.arch; without what git ignores")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="a variable to send; whoever sees the cluster's jobs can read it; repeatable"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow its output to the end")] = True,
) -> None:
    """Run a command as a job of a cluster: its YAML comes along, its output is followed. Submitted again, it goes on."""
    parcel = _pack(words)
    from swav_ray.jobs.cluster import SECRET, Cluster
    from swav_ray.jobs.watch import Watch

    for key, place in parcel.local.items():
        print(f"{key} is a folder; every node of the cluster must see it as {place}", file=sys.stderr)
    for name in filter(SECRET.search, env or []):
        print(f"{name} is sent as asked: whoever sees the cluster's jobs can read it", file=sys.stderr)
    cluster = Cluster(address)
    job = cluster.submit(parcel, working_dir=working_dir, env=env or [])
    print(f"job {job} submitted to {cluster.shown}")
    print(f"watch:  {cluster.command('logs --follow', job)}")
    print(f"stop:   {cluster.command('stop', job)}" + ("   (its state is saved first)" if parcel.name else ""))
    print("resume: the same command again" if parcel.name else "again:  the same command", flush=True)
    if not wait:
        return
    try:
        with Watch() as watch:
            ended = cluster.follow(job, watch.show)
    except KeyboardInterrupt:
        raise Stopped(f"job {job} goes on, unwatched; stop it with: {cluster.command('stop', job)}") from None
    if ended.status.value == "STOPPED":
        raise Stopped(f"job {job} was stopped; the same command goes on from its last checkpoint")
    if ended.status.value != "SUCCEEDED":
        if ended.driver_exit_code is None:  # else its own last line has said it
            raise UserError(f"job {job} failed: {' '.join((ended.message or 'no reason given').split())[-500:]}")
        raise typer.Exit(ended.driver_exit_code)


def _pack(words: list[str]) -> Parcel:
    """What travels for the command in ``words``; its mistakes are found here."""
    path, params = _parsed(words)
    from swav_ray.jobs.parcel import pack_run, pack_sweep, pack_words

    if path == ["pretrain"]:
        from swav_ray.cli.training import config_of

        return pack_run(config_of(**params))
    if path[0] == "tune":
        if params.pop("dry_run", 0):
            raise UserError("submit: --dry-run needs no cluster; run it here")
        trials = params.pop("trials", None)
        changes = {"budget": None if trials is None else {"trials": trials}, "concurrency": params["concurrency"]}
        return pack_sweep(path[1], params["space_file"], overrides_of(params["settings"]), **changes)
    parcel = pack_words(words)
    going = [
        to for key in ("dest", "out") if (to := params.get(key)) in parcel.arguments and "://" not in to and to[0] not in "/~"
    ]
    if going:
        print(
            f"{', '.join(going)} is relative, so it lies in the job's own folder and goes with it; give s3://BUCKET/FOLDER, or "
            "the full path of a folder that all nodes share",
            file=sys.stderr,
        )
    return parcel


def _parsed(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The names of the (sub)command in ``words`` and its parameters."""
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    left = list(words)
    while hasattr(command, "commands"):
        known = [name for name in command.commands if name not in ("submit", "receive")]
        if left and left[0] in known:
            path.append(left.pop(0))
        elif path == ["tune"]:
            path.append("run")
        else:
            word = left[0] if left else ""
            raise UserError(f"submit: no command {word!r}{did_you_mean(word, known)}; write `swav-ray submit -- pretrain ...`")
        command = command.commands[path[-1]]
    with command.make_context(" ".join(path), left) as context:
        return path, dict(context.params)
