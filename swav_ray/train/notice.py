"""A node's last minute: Ray is told that it is about to leave, so that runs save a checkpoint and go on without it.

Ray itself asks no cloud: on spot nodes :func:`wait_for_notice` does, and in a pod its `preStop` hook knows. What a run then
does stands in `policy.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import requests

from swav_ray.errors import InfraError, UserError, without_credentials
from swav_ray.train.session import TOKEN_HELP

LOOK_SECONDS = 1.0  # between looks at the cloud's metadata
ANSWER_SECONDS = 5.0  # for the metadata service, which is on the machine itself
GCP_SECONDS = 25.0  # Google names no time: a spot machine is stopped half a minute after it says so
CLOUDS = ("aws", "gcp")


def drain(address: str, node_id: str, seconds: float, message: str) -> None:
    """Tell the Ray cluster at ``address`` that a node will be preempted in so many seconds, as a cloud's agent does.

    Raises:
        UserError: the cluster refuses, or wants another token; InfraError: it does not answer.
    """
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    with _control_store(address) as store:
        accepted, why = store.drain_node(node_id, reason, message, deadline_ms)
    if not accepted:
        raise UserError(f"node {node_id} refuses to drain: {why}")


def pass_on(address: str, node_id: str, seconds: float, message: str) -> None:
    """:func:`drain`, each second again while the cluster does not answer and the node is not gone."""
    gone = time.monotonic() + seconds
    while True:
        left = max(0.0, gone - time.monotonic())
        try:
            return drain(address, node_id, left, message)
        except InfraError:
            if not left:
                raise
        time.sleep(LOOK_SECONDS)


def this_node(node_id: str = "") -> tuple[str, str]:
    """The address of the cluster this machine belongs to, and its node there (``node_id``, if given).

    Raises:
        UserError: no cluster, no such node, or several nodes of it on this machine; InfraError: it does not answer.
    """
    from ray._private.services import canonicalize_bootstrap_address, get_node_ip_address

    try:
        address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # RAY_ADDRESS, or what `ray start` wrote down
    except ValueError:
        given = without_credentials(os.environ.get("RAY_ADDRESS", ""))
        raise UserError(f"RAY_ADDRESS = {given}: give HOST:6379, or auto on a node of the cluster") from None
    except ConnectionError:  # of `auto`
        address = None
    if address is None:
        raise UserError("no Ray node was started on this machine; start one with `ray start`, or set RAY_ADDRESS")
    with _control_store(address) as store:
        nodes = store.get_all_node_info(timeout=ANSWER_SECONDS).items()
    living = {identity.hex(): node.node_manager_address for identity, node in nodes if node.state == node.ALIVE}
    here = get_node_ip_address(address)
    mine = [identity for identity, host in living.items() if host == here]
    if node_id and node_id not in living:
        raise UserError(
            f"--node-id {node_id}: the Ray cluster at {address} has no such living node; on {here}: {', '.join(mine) or 'none'}"
        )
    if node_id:
        return address, node_id
    if len(mine) != 1:
        raise UserError(f"the Ray cluster at {address} has {len(mine)} living nodes on {here}; choose with --node-id")
    return address, mine[0]


@contextmanager
def _control_store(address: str) -> Iterator[Any]:
    """A client of a cluster's control store, whose errors are one line."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield GcsClient(address=address)
    except AuthenticationError:
        raise UserError(f"the Ray cluster at {address} wants another token than the one given here; {TOKEN_HELP}") from None
    except RayError as error:
        raise InfraError(f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:200]}") from None
    except ValueError:
        raise UserError(f"RAY_ADDRESS = {address}: give HOST:6379, or auto on a node of the cluster") from None


def wait_for_notice(cloud: str) -> float:
    """Wait until the cloud says that it will take this machine; how many seconds it leaves.

    Raises:
        UserError: there is no metadata service of that cloud here. Once it has answered it is waited for.
    """
    look = {"aws": _aws_notice, "gcp": _gcp_notice}[cloud]
    answered = False
    while True:
        try:
            seconds = look()
        except requests.RequestException as error:
            if not answered:
                raise UserError(f"--on-notice {cloud}: no metadata service of that cloud answers here: {error}") from None
        else:
            answered = True
            if seconds is not None:
                return max(0.0, seconds)
        time.sleep(LOOK_SECONDS)


def _aws_notice() -> float | None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/") + "/latest"
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = requests.put(f"{base}/api/token", headers=wanted, timeout=ANSWER_SECONDS)
    token.raise_for_status()
    headers = {"X-aws-ec2-metadata-token": token.text}
    answer = requests.get(f"{base}/meta-data/spot/instance-action", headers=headers, timeout=ANSWER_SECONDS)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    return datetime.fromisoformat(answer.json()["time"]).timestamp() - time.time()


def _gcp_notice() -> float | None:
    """https://cloud.google.com/compute/docs/instances/create-use-spot"""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    answer = requests.get(url, headers={"Metadata-Flavor": "Google"}, timeout=ANSWER_SECONDS)
    answer.raise_for_status()
    return GCP_SECONDS if answer.text.strip() == "TRUE" else None
