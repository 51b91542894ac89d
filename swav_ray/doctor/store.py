"""The store of runs from every node: rights, latency, credentials, and that all see the same one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.doctor import on_store
from swav_ray.doctor.check import Check, by_node, failure, ok, skipped, warning
from swav_ray.doctor.nodes import Nodes, answered, unanswered

STEPS = {
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}
SLOW_SECONDS = 1.0  # of one small request; a checkpoint takes a dozen, one after the other
STORE_SECONDS = 120.0  # for all requests of a node, one of which may run into its own time-outs
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set counts


def ask_rights(nodes: Nodes, uri: str) -> tuple[str, dict[str, Any]]:
    """Why the asker cannot write there (empty if it can), and what every node found; nothing stays behind but what cannot
    be deleted."""
    uri, token = absolute_uri(uri), uuid.uuid4().hex[:12]
    new = on_store.missing_folders(uri)
    problem = on_store.leave(uri, token)
    try:
        calls = {node: (on_store.rights, uri, token, f"node-{number}") for number, node in enumerate(nodes.names)}
        return problem, nodes.ask_each(calls, seconds=STORE_SECONDS)
    finally:
        on_store.remove(uri, token, new)


def check_store(uri: str, problem: str, answers: Mapping[str, Any]) -> list[Check]:
    """Credentials, rights and latency."""
    is_s3 = Storage(uri).is_s3
    found = answered(answers)
    silent = unanswered(answers)
    if silent:
        return [failure("storage", by_node(silent), f"see that these nodes reach {uri} and have swav-ray")]
    checks = [check_credentials({node: answer["credentials"] for node, answer in found.items()})] if is_s3 else []
    unseen = {node: f"does not see {uri} as this machine does" for node, answer in found.items() if not answer["seen"]}
    if unseen and not is_s3 and not problem:
        mend = "runs of several nodes need a store that all of them see: --storage s3://BUCKET/FOLDER, or a shared folder"
        return [*checks, failure("storage", by_node(unseen), mend)]
    if problem and not is_s3:
        return [
            *checks,
            failure("storage", f"{uri}: cannot be written: {problem}", "give a folder you may write with --storage"),
        ]
    errors = {
        node: ", ".join(f"cannot {step} ({text})" for step, text in answer["errors"].items() if step in STEPS)
        for node, answer in found.items()
    }
    errors = {node: text for node, text in errors.items() if text}
    if errors:
        steps = [step for step in STEPS if any(step in answer["errors"] for answer in found.values())]
        left = sorted(answer["left"] for answer in found.values() if answer["left"])
        remains = f"; left behind, for it cannot be deleted: {', '.join(left[:3])}" if left else ""
        return [*checks, failure("storage", f"{uri}: {by_node(errors)}{remains}", _mend(uri, is_s3, steps, found))]
    if problem:
        mend = "give this process the nodes' keys or role: it writes runs too"
        return [*checks, failure("storage", f"{uri}: the nodes write there, this process cannot: {problem}", mend)]
    if unseen:
        return [*checks, failure("storage", by_node(unseen), "set AWS_ENDPOINT_URL to the same address here and on every node")]
    slowest = {step: max(answer["seconds"][step] for answer in found.values()) for step in STEPS}
    shown = ", ".join(f"{step} {seconds * 1e3:.3g} ms" for step, seconds in slowest.items())
    if max(slowest.values()) > SLOW_SECONDS:
        slow = {
            node: f"{max(answer['seconds'].values()):.2g} s a request"
            for node, answer in found.items()
            if max(answer["seconds"].values()) > SLOW_SECONDS
        }
        return [*checks, warning("storage", f"{uri}: {by_node(slow)}", "take a store in the region of the nodes")]
    return [*checks, ok("storage", f"{uri}: {shown}{', the slowest node' if len(found) > 1 else ''}")]


def _mend(uri: str, is_s3: bool, steps: list[str], found: Mapping[str, Any]) -> str:
    texts = " ".join(text for answer in found.values() for text in answer["errors"].values())
    if not is_s3:
        return f"give the user of the nodes the right to {', '.join(steps)} there"
    if any(word in texts for word in ("EndpointConnection", "Could not connect", "ConnectTimeout", "ConnectionError")):
        return "see that AWS_ENDPOINT_URL names the store and that the nodes reach it"
    if "NoSuchBucket" in texts or "bucket does not exist" in texts:
        return f"make the bucket: aws s3 mb s3://{Storage(uri).root.split('/')[0]}"
    return f"allow {', '.join(STEPS[step] for step in steps)} on it to the keys or role of the nodes"


def check_credentials(sources: Mapping[str, str]) -> Check:
    """Names of the sources of S3 keys, never the keys."""
    mend = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where Ray is started, or give the nodes a role"
    without = {node: "no credentials" for node, source in sources.items() if not source}
    if without:
        return failure("credentials", by_node(without), mend)
    if len(set(sources.values())) > 1:
        return warning(
            "credentials", by_node({n: f"from {s}" for n, s in sources.items()}), "take them from one source everywhere"
        )
    return ok("credentials", f"from {next(iter(sources.values()))}")


def check_endpoint(nodes: Mapping[str, Mapping[str, Any]]) -> Check:
    """Whether all nodes speak to the same S3."""
    ends = {
        node: next((facts["environment"][name] for name in ENDPOINTS if name in facts["environment"]), "Amazon's own")
        for node, facts in nodes.items()
    }
    if len(set(ends.values())) > 1:
        mend = "set AWS_ENDPOINT_URL to the same address before `ray start` on every node"
        return failure("S3 endpoint", by_node(ends), mend)
    return ok("S3 endpoint", next(iter(ends.values()))) if ends else skipped("S3 endpoint", "no node answered")
