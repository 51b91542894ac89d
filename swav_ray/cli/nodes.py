"""What runs on a node of a cluster: `drain`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from swav_ray.cli.app import app
from swav_ray.errors import UserError


@app.command()
def drain(
    seconds: Annotated[float, typer.Option(help="until this node is gone; the command waits so long")] = 30.0,
    on_notice: Annotated[str, typer.Option(metavar="aws|gcp", help="wait until that cloud says it takes this spot node")] = "",
    node_id: Annotated[str, typer.Option(metavar="ID", help="where several nodes run on one machine")] = "",
) -> None:
    """Tell Ray that this node is about to leave: runs save a checkpoint and go on without it."""
    from swav_ray.train.notice import CLOUDS, pass_on, this_node, wait_for_notice
    from swav_ray.train.notice import drain as tell

    if on_notice and on_notice not in CLOUDS:
        raise UserError(f"--on-notice {on_notice}: this asks the metadata service of {' or '.join(CLOUDS)}")
    if seconds < 0:
        raise UserError(f"--seconds {seconds:g}: give the seconds until the node is gone")
    address, node = this_node(node_id)
    if on_notice:
        print(f"node {node}: waiting for a notice of {on_notice}", flush=True)
        seconds = wait_for_notice(on_notice)
        pass_on(address, node, seconds, f"a notice of {on_notice}")
    else:
        tell(address, node, seconds, "swav-ray drain")
    print(f"node {node} leaves in {seconds:.0f} s", flush=True)
    if not on_notice:
        time.sleep(seconds)  # a pod ends as soon as its preStop hook returns
