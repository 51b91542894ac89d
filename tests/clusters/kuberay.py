"""What `kubectl apply` sends to KubeRay, held to its fields, to Kubernetes' schemas, to Ray's own reading, and to sense."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import click
import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.clusters.files import (
    MARKET,
    PROJECT,
    RESTART_SECONDS,
    Group,
    documents,
    gibibytes,
    name_of,
    schema_mistakes,
    secret_mistakes,
)
from tests.clusters.image import base
from tests.clusters.runs import commands_in, parse, ray_command, run_mistakes

KUBERNETES = "1.33"  # whose schemas are taken; what we use is older
SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())


class Pod(NamedTuple):
    """One of the pod templates of a cluster."""

    key: str  # where its group stands in the file
    group: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.group["template"]["spec"])

    @property
    def container(self) -> dict[str, Any]:
        return dict(self.spec["containers"][0])

    def names(self, key: str) -> str:
        return f"{self.key}.template.spec.{key}"


def mistakes(text: str) -> list[str]:
    """``key: what is wrong`` for everything that is wrong with a file for KubeRay."""
    found = secret_mistakes(text)
    *others, ours = documents(text)
    found += schema_mistakes(ours, SCHEMA)
    for other in others:
        found += _kubernetes_mistakes(other, other.get("kind", "the file"))
    if found:
        return found
    at = "spec.rayClusterSpec" if ours["kind"] == "RayJob" else "spec"
    cluster = ours["spec"]["rayClusterSpec"] if ours["kind"] == "RayJob" else ours["spec"]
    pods = [Pod(f"{at}.headGroupSpec", cluster["headGroupSpec"])]
    pods += [Pod(f"{at}.workerGroupSpecs[{i}]", group) for i, group in enumerate(cluster["workerGroupSpecs"])]
    found += _autoscaler_options(cluster, at)
    for pod in pods:
        template = pod.group["template"]
        resource = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template.get("metadata", {})}
        found += _kubernetes_mistakes(resource | {k: v for k, v in template.items() if k != "metadata"}, f"{pod.key}.template")
    if found:
        return found
    for pod in pods:
        found += _pod_mistakes(pod, {other["metadata"]["name"] for other in others if other["kind"] == "ConfigMap"})
    found += _leaving(pods) + _cluster_mistakes(cluster, at)
    try:
        groups = _groups(cluster, at)
    except (ValueError, KeyError, AssertionError) as error:
        return [*found, f"{at}: Ray's autoscaler refuses it: {error}"]
    found += _group_mistakes(cluster, groups, at)
    if ours["kind"] == "RayJob":
        for words in commands_in(ours["spec"]["entrypoint"]):
            found += [f"spec.entrypoint: {said}" for said in run_mistakes(words, groups, _mounted(pods[0], others))]
    return found


def _kubernetes_mistakes(resource: dict[str, Any], at: str) -> list[str]:
    errors = _kubernetes(resource["kind"]).iter_errors(resource)
    return [f"{at}.{name_of(error.absolute_path)}: {error.message[:300]}" for error in errors]


@functools.cache
def _kubernetes(kind: str) -> Draft202012Validator:
    """The strict schema of a kind of v1, read once: `kubernetes_validate.validate` reads all of them each time."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    own, shared = (json.loads((folder / name).read_text()) for name in (f"{kind.lower()}-v1.json", "_definitions.json"))
    registry = Resource.from_contents(shared) @ (Resource.from_contents(own) @ Registry())
    return Draft202012Validator(own, registry=registry)


def _autoscaler_options(cluster: dict[str, Any], at: str) -> list[str]:
    """Its parts are a container's, so they are checked as those of one."""
    options = cluster.get("autoscalerOptions", {})
    parts = {key: options[key] for key in ("resources", "securityContext", "env", "envFrom", "volumeMounts") if key in options}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    return _kubernetes_mistakes(pod | {"spec": {"containers": [{"name": "autoscaler"} | parts]}}, f"{at}.autoscalerOptions")


def _pod_mistakes(pod: Pod, config_maps: set[str]) -> list[str]:
    container, found = pod.container, []
    if container["image"].rpartition(":")[2] != PROJECT["version"]:
        found.append(
            f"{pod.names('containers[0].image')}: {container['image']} is not of version {PROJECT['version']} (pyproject.toml)"
        )
    if pod.spec.get("restartPolicy") != "Never":
        found.append(f"{pod.names('restartPolicy')}: must be Never, which the autoscaler v2 needs")
    if pod.spec.get("serviceAccountName") is None:
        found.append(f"{pod.names('serviceAccountName')}: a pod without one has no rights to the bucket")
    resources = container.get("resources", {})
    if resources.get("requests") != resources.get("limits") or "memory" not in resources.get("limits", {}):
        found.append(f"{pod.names('containers[0].resources')}: requests must be limits, or Ray counts what is not there")
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            found.append(f"{pod.names('containers[0].volumeMounts')}: no volume {mount['name']!r}")
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in config_maps:
            found.append(f"{pod.names('volumes')}: the file has no ConfigMap {volume['configMap']['name']!r}")
    arguments = [f"--{key}={value}" for key, value in pod.group.get("rayStartParams", {}).items()]
    try:
        options = ray_command().commands["start"].make_context("start", arguments).params
    except click.ClickException as error:
        return [*found, f"{pod.key}.rayStartParams: {error.format_message()}"]
    shared = [volumes.get(mount["name"], {}) for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"]
    room = gibibytes(shared[0].get("emptyDir", {}).get("sizeLimit", "0")) if shared else 0
    store = (options["object_store_memory"] or 0) / 2**30
    if not shared or shared[0].get("emptyDir", {}).get("medium") != "Memory" or not 0 < store <= room:
        found.append(
            f"{pod.key}.rayStartParams.object-store-memory: {store:.1f} GiB must be given and lie in /dev/shm ({room:.1f} GiB)"
        )
    elif found == [] and room >= gibibytes(resources["limits"]["memory"]):
        found.append(
            f"{pod.names('volumes')}: /dev/shm of {room:.1f} GiB counts as memory, and the limit leaves nothing beside it"
        )
    return found


def _leaving(pods: list[Pod]) -> list[str]:
    """Whoever leaves says so first, and all have the time for it."""
    head, *workers = pods
    found, longest = [], 0.0
    for pod in workers:
        words = pod.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["none"])
        where = pod.names("containers[0].lifecycle.preStop")
        try:
            name, options = parse(words[1:]) if words[0] == "swav-ray" else (words[0], {})
        except ValueError as error:
            found.append(f"{where}: {error}")
            continue
        if name != "drain":
            found.append(f"{where}: {name!r} tells Ray nothing; use swav-ray drain --seconds")
            continue
        longest = max(longest, options["seconds"])
        if pod.spec.get("terminationGracePeriodSeconds", 30) < options["seconds"] + 15:
            found.append(f"{pod.names('terminationGracePeriodSeconds')}: must be 15 s above preStop's {options['seconds']:g}")
    stays = head.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["none"])
    if stays[0] != "sleep" or float(stays[1]) <= longest:
        found.append(f"{head.names('containers[0].lifecycle.preStop')}: the head must outlive the workers' {longest:g} s")
    elif head.spec.get("terminationGracePeriodSeconds", 30) < float(stays[1]) + 15:
        found.append(f"{head.names('terminationGracePeriodSeconds')}: must be 15 s above preStop's {stays[1]}")
    waits = {entry["name"]: entry.get("value") for entry in head.container.get("env", [])}.get("RAY_JOB_STOP_WAIT_TIME_S")
    if waits is None or int(waits) < 60:
        found.append(
            f"{head.names('containers[0].env')}: RAY_JOB_STOP_WAIT_TIME_S must be 60, for `ray job stop` to leave a checkpoint"
        )
    return found


def _cluster_mistakes(cluster: dict[str, Any], at: str) -> list[str]:
    found, options = [], cluster.get("autoscalerOptions", {})
    if cluster.get("rayVersion") != base().ray:
        found.append(f"{at}.rayVersion: {cluster.get('rayVersion')}, but clusters/Dockerfile has {base().ray}")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append(f"{at}.authOptions.mode: must be token")
    if not cluster.get("enableInTreeAutoscaling") or options.get("version") != "v2":
        found.append(f"{at}.autoscalerOptions.version: elastic runs need the autoscaler v2, and enableInTreeAutoscaling")
    if options.get("idleTimeoutSeconds", 60) <= RESTART_SECONDS:
        found.append(
            f"{at}.autoscalerOptions.idleTimeoutSeconds: must be more than a restart may take ({RESTART_SECONDS:.0f} s)"
        )
    return found


def _groups(cluster: dict[str, Any], at: str) -> list[Group]:
    """As Ray's autoscaler reads them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    read = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "x"}, "spec": cluster})
    kinds = read["available_node_types"]
    return [
        Group(
            f"{at}.workerGroupSpecs[{i}]",
            kinds[group["groupName"]]["min_workers"],
            kinds[group["groupName"]]["max_workers"],
            kinds[group["groupName"]]["resources"]["CPU"],
            kinds[group["groupName"]]["resources"].get("GPU", 0),
        )
        for i, group in enumerate(cluster["workerGroupSpecs"])
    ]


def _group_mistakes(cluster: dict[str, Any], groups: list[Group], at: str) -> list[str]:
    found = []
    head = cluster["headGroupSpec"]
    if {key: head.get("rayStartParams", {}).get(key) for key in ("num-cpus", "num-gpus")} != {"num-cpus": "0", "num-gpus": "0"}:
        found.append(f"{at}.headGroupSpec.rayStartParams: the head runs drivers only; num-cpus and num-gpus must be 0")
    if head.get("labels", {}).get(MARKET) != "on-demand":
        found.append(f"{at}.headGroupSpec.labels: {MARKET} must be on-demand")
    for group, values in zip(groups, cluster["workerGroupSpecs"], strict=True):
        if not group.least <= values.get("replicas", 0) <= group.most:
            found.append(f"{group.key}.replicas: {values.get('replicas')} is not from {group.least} to {group.most}")
        prefers_spot = "spot" in json.dumps(values["template"]["spec"].get("affinity", {})).lower()
        if values.get("labels", {}).get(MARKET) != ("spot" if prefers_spot else "on-demand"):
            found.append(f"{group.key}.labels: {MARKET} must be {'spot' if prefers_spot else 'on-demand'}, as its nodes are")
    if sorted(bool(group.gpus) for group in groups) != [False, True]:
        found.append(f"{at}.workerGroupSpecs: one group of CPU nodes for data and one of GPU nodes are needed")
    return found


def _mounted(head: Pod, others: list[dict[str, Any]]) -> dict[str, str]:
    """The files that ConfigMaps put into the head's container."""
    maps = {other["metadata"]["name"]: other["data"] for other in others if other["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in head.spec["volumes"] if "configMap" in volume}
    return {
        f"{mount['mountPath']}/{name}": content
        for mount in head.container["volumeMounts"]
        for name, content in maps.get(volumes.get(mount["name"], ""), {}).items()
    }


def cluster_groups(text: str) -> list[Group]:
    """The groups of workers of a file that is right."""
    *_, ours = documents(text)
    return _groups(ours["spec"]["rayClusterSpec"] if ours["kind"] == "RayJob" else ours["spec"], "spec")
