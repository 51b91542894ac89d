"""What `ray up` reads, held to Ray's own schema and validators, to the cloud's description of a machine, and to sense."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import click

from tests.clusters.files import (
    MARKET,
    PROJECT,
    RESTART_SECONDS,
    Group,
    documents,
    gibibytes,
    schema_mistakes,
    secret_mistakes,
)
from tests.clusters.runs import commands_in, fit_mistakes, parse, range_mistakes, ray_command

RANGE = re.compile(r"^# For runs of --workers (\d+):(\d+) \(one worker a GPU\)", re.MULTILINE)
LOCAL_KEYS = {"coordinator_address", "external_head_ip"}  # of provider: local, which Ray's schema leaves out


def mistakes(text: str) -> list[str]:
    """``key: what is wrong`` for everything that is wrong with a cluster file."""
    (values,) = documents(text)
    schema = ray_schema()
    local = values.get("provider", {}).get("type") == "local"
    # Ray takes min_workers of one's own machines out before it looks.
    found = schema_mistakes({k: v for k, v in values.items() if k != "min_workers" or not local}, schema) + secret_mistakes(
        text
    )
    known = set(schema["properties"]["provider"]["properties"]) | LOCAL_KEYS
    found += [f"provider.{key}: Ray knows no such key" for key in values.get("provider", {}) if key not in known]
    if found:
        return found
    try:
        prepared = prepare(values)
    except Exception as error:  # of many kinds: Ray's own refusal
        return [f"the file: Ray refuses it: {error}"]
    found += _common(values)
    if local:
        return found + _local(values, text)
    return found + _nodes(values) + _groups(prepared, values, text)


@functools.cache
def ray_schema() -> dict[str, Any]:
    import ray.autoscaler

    return dict(json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()))


def prepare(values: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults filled in, as `ray up` does first of all."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(values))
    validate_config(prepared)
    return dict(prepared)


def _common(values: dict[str, Any]) -> list[str]:
    found = []
    if values["docker"]["image"].rpartition(":")[2] != PROJECT["version"]:
        found.append(f"docker.image: {values['docker']['image']} is not of version {PROJECT['version']} (pyproject.toml)")
    if values["idle_timeout_minutes"] * 60 <= RESTART_SECONDS:
        found.append(
            f"idle_timeout_minutes: {values['idle_timeout_minutes']} is less than a restart may take ({RESTART_SECONDS:.0f} s)"
        )
    if values.get("file_mounts") != {"~/.ray/auth_token": "~/.ray/auth_token"}:
        found.append("file_mounts: the token ~/.ray/auth_token must lie on all nodes")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        found += [f"{key}: {mistake}" for mistake in _start_mistakes(values, key)]
    return found


def _start_mistakes(values: dict[str, Any], key: str) -> list[str]:
    found, sizes = [], []
    for words in commands_in("\n".join(values[key])):
        words = words[1:] if words[0] == "nohup" else words
        if words[0] == "swav-ray":
            try:
                name, options = parse(words[1 : words.index(">")])
            except ValueError as error:
                found.append(str(error))
                continue
            if (name, options["on_notice"]) != ("drain", values["provider"]["type"]):
                found.append(f"{' '.join(words)}: not a watch for notices of {values['provider']['type']}")
        elif words[:2] == ["ray", "start"]:
            try:
                sizes.append(ray_command().commands["start"].make_context("start", words[2:]).params["object_store_memory"])
            except click.ClickException as error:
                found.append(error.format_message())
    shared = re.search(r"--shm-size=(\S+)", " ".join(values["docker"]["run_options"]))
    if len(sizes) != 1 and not found:
        found.append("exactly one `ray start` is needed")
    elif sizes and (shared is None or sizes[0] is None or sizes[0] / 2**30 > gibibytes(shared[1])):
        found.append(f"--object-store-memory {sizes[0]} must be given and lie within --shm-size of docker.run_options")
    return found


def _nodes(values: dict[str, Any]) -> list[str]:
    """Each kind of node is a machine that the cloud has, with what is claimed of it, and labelled as what it is."""
    provider, found = values["provider"]["type"], []
    spot_workers = False
    for name, node in values["available_node_types"].items():
        key, machine = f"available_node_types.{name}", node["node_config"]
        claimed = (node["resources"].get("CPU"), node["resources"].get("GPU"))
        if provider == "aws":
            found += [f"{key}.node_config{mistake}" for mistake in aws_mistakes(machine)]
            has, spot = (
                aws_machine(machine.get("InstanceType")),
                machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
            )
        else:
            found += [f"{key}.node_config{mistake}" for mistake in gcp_mistakes(machine)]
            has, spot = (
                gcp_machine(machine.get("machineType")),
                machine.get("scheduling", {}).get("provisioningModel") == "SPOT",
            )
        if has is None:
            found.append(f"{key}.node_config: {machine.get('InstanceType') or machine.get('machineType')} is no known machine")
        elif name == values["head_node_type"] and claimed != (0, 0):
            found.append(f"{key}.resources: the head runs drivers only; CPU and GPU must be 0")
        elif name != values["head_node_type"] and claimed != has:
            found.append(f"{key}.resources: CPU, GPU are {claimed}, of this machine {has}")
        if node.get("labels", {}).get(MARKET) != ("spot" if spot else "on-demand"):
            found.append(f"{key}.labels: {MARKET} must be {'spot' if spot else 'on-demand'}, as the machine is")
        if spot and name == values["head_node_type"]:
            found.append(f"{key}: the head must not be on spot")
        spot_workers = spot_workers or spot
    if spot_workers != ("--on-notice" in " ".join(values["worker_start_ray_commands"])):
        found.append("worker_start_ray_commands: `swav-ray drain --on-notice` belongs to spot nodes, and they need it")
    return found


def _groups(prepared: dict[str, Any], values: dict[str, Any], text: str) -> list[str]:
    groups = [
        Group(
            f"available_node_types.{name}",
            node["min_workers"],
            node["max_workers"],
            node["resources"]["CPU"],
            node["resources"]["GPU"],
        )
        for name, node in prepared["available_node_types"].items()
        if name != prepared["head_node_type"]
    ]
    found = [
        f"{group.key}: min_workers {group.least} is above max_workers {group.most}"
        for group in groups
        if group.least > group.most
    ]
    if values["max_workers"] != sum(group.most for group in groups):
        found.append(f"max_workers: {values['max_workers']}, but its kinds of nodes make {sum(group.most for group in groups)}")
    if not any(group.gpus == 0 and group.most for group in groups):
        found.append("available_node_types: no CPU nodes for data")
    return found + _range(text, groups)


def _range(text: str, groups: list[Group]) -> list[str]:
    said = RANGE.search(text)
    if said is None:
        return ["the file: no comment says for which --workers it is"]
    low, high = int(said[1]), int(said[2])
    return range_mistakes(f"--workers {low}:{high}", low, high, groups) + fit_mistakes("elastic", 1, 3, groups)


def _local(values: dict[str, Any], text: str) -> list[str]:
    machines = len(values["provider"]["worker_ips"])
    found = [
        f"{key}: {values[key]}, but provider.worker_ips lists {machines}"
        for key in ("min_workers", "max_workers")
        if values[key] != machines
    ]
    if len({values["provider"]["head_ip"], *values["provider"]["worker_ips"]}) != machines + 1:
        found.append("provider.worker_ips: a machine is named twice")
    said = RANGE.search(text)
    if said is None or int(said[2]) != machines:
        found.append(f"the file: it is said to be for {said and said[0]!r}, and there are {machines} machines")
    return found


def aws_mistakes(machine: dict[str, Any]) -> list[str]:
    """Against the description of RunInstances that Amazon's own client carries."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, _run_instances()).generate_report()
    found = [f": {line}" for line in report.splitlines()]
    image = machine.get("ImageId", "")
    if not re.match(r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/[a-z0-9.-]+/latest/ami-id$|ami-[0-9a-f]{17}$", image):
        found.append(f".ImageId: {image!r} names no image; what Ray takes by itself is too old for torch")
    if "Name" not in machine.get("IamInstanceProfile", {}):
        found.append(".IamInstanceProfile: without it Ray's workers have no rights to the bucket")
    return found


@functools.cache
def _run_instances() -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


@functools.cache
def aws_machine(kind: str | None) -> tuple[int, int] | None:
    """Processors and GPUs of an instance type."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    data = INSTANCE_TYPES.get(kind)
    if data is None:
        return None
    return data["VCpuInfo"]["DefaultVCpus"], sum(gpu["Count"] for gpu in data.get("GpuInfo", {}).get("Gpus", []))


def gcp_mistakes(machine: dict[str, Any]) -> list[str]:
    """Against the description of an instance that Google's own client carries."""
    return [f"{'.' if not said.startswith('the file') else ' '}{said}" for said in schema_mistakes(machine, _gcp_schema())]


@functools.cache
def _gcp_schema() -> dict[str, Any]:
    """Google's discovery document as a JSON schema: unknown fields refused, references in today's form."""
    from googleapiclient.discovery_cache import get_static_doc

    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]

    def strict(entry: Any) -> Any:
        if isinstance(entry, list):
            return [strict(inner) for inner in entry]
        if not isinstance(entry, dict):
            return entry
        if "$ref" in entry:
            return {"$ref": f"#/definitions/{entry['$ref']}"}
        kept = {key: strict(entry[key]) for key in ("type", "items", "enum", "additionalProperties") if key in entry}
        if isinstance(entry.get("properties"), dict):
            kept["properties"] = {name: strict(inner) for name, inner in entry["properties"].items()}
            kept.setdefault("additionalProperties", False)
        if kept.get("type") == "any":
            kept.pop("type")
        if kept.get("type") == "string" and entry.get("format") in ("int64", "uint64"):
            kept["type"] = ["string", "integer"]
        return kept

    return {"$ref": "#/definitions/Instance", "definitions": {name: strict(schema) for name, schema in schemas.items()}}


def gcp_machine(kind: str | None) -> tuple[int, int] | None:
    """Processors and GPUs of a machine type, by its name (of G2: one GPU up to 16 processors)."""
    match = re.fullmatch(r"(n2|c2|e2|g2)-standard-(4|8|12|16|32)", kind or "")
    return None if match is None else (int(match[2]), int(match[1] == "g2" and int(match[2]) <= 16))
