"""The page people follow: its commands, its files, and its sums."""

from __future__ import annotations

import re
from typing import Any

from tests.clusters.files import CLUSTERS, PROJECT, ROOT, Group, documents, secret_mistakes
from tests.clusters.ray_up import prepare
from tests.clusters.runs import commands_in, ray_command, run_mistakes

OURS = re.compile(r"clusters/[A-Za-z.-]+")


def mistakes(text: str) -> list[str]:
    found = secret_mistakes(text)
    found += [f"{name}: no such file" for name in sorted(set(OURS.findall(text))) if not (ROOT / name.rstrip(".")).exists()]
    found += [
        f"[{target}]: no such file"
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)
        if not (CLUSTERS / target).exists()
    ]
    found += [f"clusters/{path.name}: not on the page" for path in CLUSTERS.glob("*.yaml") if path.name not in text]
    for image in re.findall(r"-t (\S+/swav-ray:\S+)", text):
        if image.rpartition(":")[2] != PROJECT["version"]:
            found.append(f"docker build {image}: is not of version {PROJECT['version']} (pyproject.toml)")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        found += _block_mistakes(block)
    return found + _range_mistakes(text) + _cost_mistakes(text)


def _block_mistakes(block: str) -> list[str]:
    """Each run is held to the cluster that was started before it in the same block."""
    from tests.clusters.kuberay import cluster_groups

    groups: list[Group] = []
    found, at = [], ""
    for words in commands_in(block):
        named = [word for word in words if OURS.fullmatch(word) and word.endswith(".yaml")]
        if named and (words[:2] == ["ray", "up"] or words[:2] == ["kubectl", "apply"]) and (ROOT / named[0]).exists():
            at = named[0]
            groups = cluster_groups((ROOT / at).read_text()) if words[0] == "kubectl" else groups_of((ROOT / at).read_text())
        if words[0] == "ray" and (said := _ray_mistake(words)):
            found.append(f"{' '.join(words[:3])}: {said}")
        if words[:3] == ["ray", "job", "submit"] and "--" in words:
            run = words[words.index("--") + 1 :]
            found += [f"after {at}: {said}" for said in run_mistakes(run, groups)]
        elif words[:2] == ["pip", "install"]:
            extra = re.fullmatch(r"\.\[(\w+)\]", words[2])
            if extra is None or extra[1] not in PROJECT["optional-dependencies"]:
                found.append(f"pip install {words[2]}: pyproject.toml has no such extra")
    return found


def _ray_mistake(words: list[str]) -> str | None:
    """Whether `ray` has this command and its options."""
    import click

    command: Any = ray_command()
    rest = [word for word in words[1:] if word]
    while isinstance(command, click.Group):
        if rest[0] not in command.commands:
            return f"ray has no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(command.name, rest)
    except click.ClickException as error:
        return error.format_message()
    return None


def groups_of(text: str) -> list[Group]:
    """The nodes that `ray up` may start beside the head; machines of one's own have one GPU each, as their file says."""
    prepared = prepare(documents(text)[0])
    if prepared["provider"]["type"] == "local":
        count = prepared["max_workers"]
        return [Group("provider.worker_ips", 1, count, 8, 1)]
    return [
        Group(name, node["min_workers"], node["max_workers"], node["resources"]["CPU"], node["resources"]["GPU"])
        for name, node in prepared["available_node_types"].items()
        if name != prepared["head_node_type"]
    ]


def _range_mistakes(text: str) -> list[str]:
    """The table of files says the same workers as the files."""
    found = []
    for name, low, high in re.findall(r"^\| \[`([\w.-]+)`\].*`--workers (\d+):(\d+)` \|$", text, re.MULTILINE):
        path = CLUSTERS / name
        if path.exists() and f"--workers {low}:{high}" not in path.read_text():
            found.append(f"{name}: the table says --workers {low}:{high}, the file does not")
    return found


def _table(text: str, first: str) -> list[list[str]]:
    """Rows of the table whose header begins with ``first``."""
    body = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert body is not None, f"no table of {first}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body[1].splitlines()]


def _cost_mistakes(text: str) -> list[str]:
    """The sums of the second table follow from the prices of the first and the machines of the files."""
    prices = {row[0].split("`")[1]: [float(cell) if cell else None for cell in row[2:]] for row in _table(text, "machine")}
    costs = re.search(r"^\| file \| nothing runs.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert costs is not None
    found = []
    for name, *said in ([cell.strip(" `") for cell in row.strip("|").split("|")] for row in costs[1].splitlines()):
        (values,) = documents((CLUSTERS / name).read_text())
        nodes = values["available_node_types"]
        each = {kind: _price(node, prices) for kind, node in nodes.items()}
        if None in each.values():
            found.append(f"{name}: a machine of it has no price on the page")
            continue
        counts = [(0, 0), (1, 1), (4, 2), (nodes["gpu"]["max_workers"], nodes["cpu"]["max_workers"])]
        for text_said, (gpus, cpus) in zip(said, counts, strict=True):
            cost = each["head"] + gpus * each["gpu"] + cpus * each["cpu"]  # type: ignore[operator]
            if abs(cost - float(text_said)) > 0.006:
                found.append(f"{name}: {gpus} GPU and {cpus} CPU nodes cost {cost:.2f} by the prices above, not {text_said}")
    return found


def _price(node: dict[str, Any], prices: dict[str, list[float | None]]) -> float | None:
    machine = node["node_config"]
    row = prices.get(machine.get("InstanceType") or machine.get("machineType"), [None, None])
    spot = "InstanceMarketOptions" in machine or "scheduling" in machine
    return row[1] if spot else row[0]
