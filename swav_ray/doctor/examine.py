"""The doctor's round: ask, then judge. What is asked decides nothing; every judgement is a function of its answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swav_ray.config import Config
from swav_ray.config_sections import Elastic
from swav_ray.data.storage import Storage, absolute_uri
from swav_ray.doctor import clocks, data, gpus, machine, network, on_node, room, store, versions, workers
from swav_ray.doctor.check import Check, State, by_node, failure, skipped
from swav_ray.doctor.nodes import HERE, Cluster, Here, Nodes, answered, unanswered
from swav_ray.doctor.sizes import Sizes, sizes_of
from swav_ray.errors import UserError
from swav_ray.train.trackers import check_installed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Questions:
    """What the user asked about; `elastic` is that of the configuration, or what `--workers` says without one."""

    data: str | None = None
    storage: str | None = None
    config: Config | None = None
    elastic: Elastic | None = None


@dataclass(frozen=True)
class Report:
    """`where` was looked at, and every check in the order in which to mend."""

    where: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.state is not State.FAILURE for check in self.checks)

    def count(self, state: State) -> int:
        return sum(check.state is state for check in self.checks)


def examine_machine(asked: Questions, tell: Tell) -> Report:
    """This machine alone; no Ray is started."""
    checks: list[Check] = []
    tell("this machine")
    folder = os.environ.get("RAY_TMPDIR", "/tmp")
    facts = _facts(Here(), checks, {HERE: folder})
    here = facts.get(HERE, {})
    if here:
        checks.append(gpus.check_gpus(facts))
        checks += machine.check_machines(facts, head=None)
        checks.append(room.check_disks(facts, dict.fromkeys(facts, folder)))
    checks += _addresses(Here(), asked, facts, tell)
    config, sizes = asked.config, _sizes(asked.config, checks)
    count = gpus.visible(len(here["gpus"]["devices"])) if here else 0
    if asked.elastic and here:
        checks.append(workers.check_machine_workers(asked.elastic, here["cpus"], count))
    if config and here:
        each = config.elastic.gpus_per_worker
        on_gpu = float(count >= config.elastic.min) if each is None else each
        if sizes:
            checks.append(room.check_memory(config, sizes, facts, dict.fromkeys(facts, config.elastic.max), on_gpu))
    _skip_unasked(checks, asked)
    return Report("this machine", tuple(checks))


def examine_cluster(asked: Questions, tell: Tell, address: str) -> Report:
    """Every node of the connected cluster."""
    with Cluster.connected() as cluster:
        return _examine(cluster, asked, tell, address)


def turned_away(address: str) -> Report | None:
    """What there is to say of a cluster that takes no, or another, token than this process's; None of one that lets it in."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        GcsClient(address=address)
    except AuthenticationError:
        source = on_node.token()["source"]
        found = f"the cluster refuses {f'the token in {source}' if source else 'this machine, which has no token'}"
        mend = (
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to what `ray get-auth-token` says on the head"
        )
        return Report(f"the cluster at {address}", (failure("authentication", found, mend),))
    except Exception:
        return None  # connecting to it will tell more
    return None


def _examine(cluster: Cluster, asked: Questions, tell: Tell, address: str) -> Report:
    checks: list[Check] = []
    tell(f"{len(cluster.names)} nodes")
    folders = _ray_folders(cluster)
    facts = _facts(cluster, checks, folders)
    known = {name: about for name, about in cluster.about.items() if name in facts}
    if facts:
        checks.append(gpus.check_gpus(facts, {name: about.node.total.get("GPU", 0) for name, about in known.items()}))
        head = next((name for name, about in cluster.about.items() if about.head), "")
        checks += machine.check_machines(facts, head=head)
        checks.append(machine.check_ports({name: about.ports for name, about in known.items()}))
        checks.append(room.check_disks(facts, folders))
        tell("clocks")
        checks.append(clocks.check_clocks(clocks.offsets(cluster, list(facts))))
    checks += _network(cluster, list(facts), tell)
    checks += _addresses(cluster, asked, facts, tell)
    checks += [workers.check_leaving(cluster.about), workers.check_spot(cluster.about)]
    config, sizes = asked.config, _sizes(asked.config, checks)
    if facts:
        stores = {name: about.node.total.get("object_store_memory", 0.0) for name, about in known.items()}
        checks.append(room.check_object_store(facts, stores, config, sizes))
    if asked.elastic:
        from swav_ray.train.trainer import worker_resources

        resources = worker_resources(Config.model_construct(elastic=asked.elastic))
        checks.append(workers.check_workers(asked.elastic, resources, cluster.about, cluster.groups))
        if config and sizes and facts:
            held = workers.places(known, resources)
            checks.append(room.check_memory(config, sizes, facts, held, resources.get("GPU", 0.0)))
    _skip_unasked(checks, asked)
    return Report(f"{len(cluster.names)} nodes of the cluster at {address}", tuple(checks))


def _facts(nodes: Nodes, checks: list[Check], folders: Mapping[str, str]) -> dict[str, Any]:
    """What every node says of itself; who does not answer is the first failure."""
    python, wanted = versions.requirements()
    calls = {
        node: (on_node.facts, versions.names(wanted), [folder for folder in (folders.get(node, ""),) if folder])
        for node in nodes.names
    }
    answers = nodes.ask_each(calls)
    silent, facts = unanswered(answers), answered(answers)
    if silent:
        checks.append(
            failure("nodes", by_node(silent), "see Ray's logs there (/tmp/ray/session_latest/logs), or take the node away")
        )
    if facts:
        checks += versions.check_versions(facts, python, wanted)
    return facts


def _ray_folders(cluster: Cluster) -> dict[str, str]:
    return {node: str(folder) for node, folder in answered(cluster.ask(on_node.ray_folder)).items()}


def _network(cluster: Cluster, names: list[str], tell: Tell) -> Iterable[Check]:
    if len(names) < 2:
        return [skipped("gloo", "one node: nobody to talk to")]
    tell(f"an all-reduce over {len(names)} nodes")
    found = [network.check_network(network.all_reduce(cluster, names))]
    with_gpus = [name for name in names if cluster.about[name].node.total.get("GPU", 0) > 0]
    if len(with_gpus) > 1:
        taken = [name for name in with_gpus if cluster.about[name].node.free.get("GPU", 0) < 1]
        if taken:
            return [*found, skipped("nccl", f"all GPUs of {', '.join(taken[:3])} are in use; ask again when one is free")]
        tell(f"NCCL over {len(with_gpus)} nodes")
        with cluster.with_gpus() as hands:
            found.append(network.check_network(network.all_reduce(hands, with_gpus, "nccl")))
    return found


def _addresses(nodes: Nodes, asked: Questions, facts: Mapping[str, Any], tell: Tell) -> Iterable[Check]:
    """The store and the data."""
    checks: list[Check] = []
    if facts and any(uri and Storage(uri).is_s3 for uri in (asked.storage, asked.data) if uri and not uri.startswith("demo:")):
        checks.append(store.check_endpoint(facts))
    if asked.storage:
        tell(f"rights in {asked.storage}")
        checks += store.check_store(asked.storage, *store.ask_rights(nodes, asked.storage))
    if asked.data and asked.data.startswith("demo:"):
        checks += data.skip("the demo's digits are prepared when a run starts")
    elif asked.data:
        tell(f"shards in {asked.data}")
        checks += data.check_data(nodes, asked.data, asked.config)
    if asked.config:
        checks += _refused(asked.config, asked.data)
    return checks


def _refused(config: Config, shards: str | None) -> Iterable[Check]:
    """For what a run of the configuration is refused at once."""
    if not shards:
        yield failure("data", "data.train is not set", "--set data.train=FOLDER, of shards made by `swav-ray shard`")
    try:
        check_installed(config)
    except UserError as error:
        found, _, mend = str(error).removeprefix("trackers: ").partition("; ")
        yield failure("trackers", found, mend)


def _sizes(config: Config | None, checks: list[Check]) -> Sizes | None:
    """What the configuration needs, and the check of its checkpoints' room; None where it cannot be reckoned."""
    if config is None:
        return None
    try:
        sizes = sizes_of(config)
    except Exception as error:
        why = f"{config.backbone.arch} cannot be reckoned without data ({type(error).__name__}: {error})"
        checks += [skipped(name, why) for name in ("checkpoints", "memory")]
        return None
    folder = absolute_uri(config.storage)
    free = None if Storage(folder).is_s3 else (on_node.room(folder) or {}).get("free")
    checks.append(room.check_checkpoint_room(config, sizes, free, config.storage))
    return sizes


def _skip_unasked(checks: list[Check], asked: Questions) -> None:
    for name, given, option in (
        ("data", asked.data or asked.config, "--data URI or --config CONFIG"),
        ("storage", asked.storage, "--storage URI or --config CONFIG"),
        ("workers", asked.elastic, "--workers MIN:MAX or --config CONFIG"),
        ("memory", asked.config, "--config CONFIG"),
    ):
        if not given:
            checks.append(skipped(name, f"not asked; give {option}"))
