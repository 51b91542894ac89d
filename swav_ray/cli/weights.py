"""What comes out: `report`, `export`, `share` and `receive`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from swav_ray.cli.app import app, short
from swav_ray.cli.evaluation import WeightsArgument
from swav_ray.errors import UserError


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN|SWEEP_FOLDER", help="folder or s3:// of a run or a sweep")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="local or s3://; else report.html in the run's folder")
    ] = None,
    images: Annotated[int, typer.Option(help="training images to look at for prototypes and map; 0: none")] = 2000,
) -> None:
    """Write one self-contained HTML page: of a run how it went and what it sees, of a sweep what it found."""
    if images < 0:
        raise UserError(f"--images {images}: give how many to look at, 0 for none")
    from swav_ray.data.storage import Storage, locate
    from swav_ray.tune.again import is_sweep, sweep_page

    folder, name = locate(out) if out is not None else (Storage(run), "report.html")
    if out is not None and (not name or folder.kind(name) == "directory"):
        raise UserError(f"--out {out}: a folder; name the file, as {out.rstrip('/')}/report.html")
    if not Storage(run).exists("config.yaml") and is_sweep(run):
        page = sweep_page(run)
    else:
        from swav_ray.report.run import run_page

        page = run_page(run, images, tell=lambda line: print(line, file=sys.stderr))
    folder.write(name, page.encode())
    print(short(f"{folder.uri}/{name}"))


@app.command()
def export(
    run: WeightsArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3:// of the export")],
    format: Annotated[str, typer.Option("--format", help="torchvision, timm, safetensors, onnx or detectron2")] = "safetensors",
) -> None:
    """Write a backbone as another library opens it, with a model card."""
    from swav_ray.export import export as write

    for address in write(run, dest, format):
        print(short(address))


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
