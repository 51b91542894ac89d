"""A node's last minute: Ray is told that it is about to leave, so that runs save a checkpoint and go on without it.

Ray itself asks no cloud: on spot nodes :func:`wait_for_notice` does, and in a pod its `preStop` hook knows. What a run then
does stands in `policy.py`.
"""

from __future__ import annotations

import os
import time
from datetime import datetime

import requests

from swav_ray.errors import UserError

LOOK_SECONDS = 1.0  # between looks at the cloud's metadata
ANSWER_SECONDS = 5.0  # for the metadata service, which is on the machine itself
GCP_SECONDS = 25.0  # Google names no time: a spot machine is stopped half a minute after it says so
CLOUDS = ("aws", "gcp")


def drain(address: str, node_id: str, seconds: float, message: str) -> None:
    """Tell the Ray cluster at ``address`` that a node will be preempted in so many seconds, as a cloud's agent does."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, message, deadline_ms)
    if not accepted:
        raise RuntimeError(f"node {node_id} refuses to drain: {why}")


def this_node(node_id: str = "") -> tuple[str, str]:
    """The address of the cluster this machine belongs to, and its node there (``node_id``, if given).

    Raises:
        UserError: no cluster, or several nodes of it on this machine.
    """
    from ray._private.services import canonicalize_bootstrap_address, get_node_ip_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # RAY_ADDRESS, or what `ray start` wrote down
    if address is None:
        raise UserError("no Ray node was started on this machine; start one with `ray start`, or set RAY_ADDRESS")
    if node_id:
        return address, node_id
    here = get_node_ip_address(address)
    nodes = GcsClient(address=address).get_all_node_info(timeout=ANSWER_SECONDS).items()
    mine = [node_id.hex() for node_id, node in nodes if node.state == node.ALIVE and node.node_manager_address == here]
    if len(mine) != 1:
        raise UserError(f"the Ray cluster at {address} has {len(mine)} living nodes on {here}; choose with --node-id")
    return address, mine[0]


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
