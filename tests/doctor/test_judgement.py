"""Judgements over facts that no test machine has: skewed clocks, several GPUs, firewalls, small containers."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private import utils as ray_utils

from swav_ray.config import load_config
from swav_ray.config_sections import Elastic
from swav_ray.doctor import clocks, gpus, machine, room, workers
from swav_ray.doctor.check import State
from swav_ray.doctor.network import Reached, _rounds, check_network
from swav_ray.doctor.nodes import About
from swav_ray.doctor.sizes import sizes_of
from swav_ray.train.cluster import Node

GB = 10**9


def device(**more: Any) -> dict[str, Any]:
    return {"name": "A100", "driver": "570.1", "memory": 40 * GB} | more


def with_gpus(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"gpus": {"devices": list(devices), "usable": len(devices), "cuda": "12.8"} | more}


@pytest.mark.parametrize(
    ("ahead", "open_", "state"),
    [
        (0.0, 0.1, State.OK),
        (1.5, 1.0, State.OK),  # a slow answer proves nothing
        (-3.0, 0.1, State.WARNING),
        (90.0, 0.1, State.FAILURE),
    ],
)
def test_clocks(ahead: float, open_: float, state: State) -> None:
    check = clocks.check_clocks({"a": (0.0, 0.1), "b": (ahead, open_)})
    assert check.state is state
    if state is not State.OK:
        assert check.found.startswith("b: ") and "NTP" in check.mend and ("behind" if ahead < 0 else "ahead") in check.found


def test_gpus() -> None:
    def state(offered: dict[str, float] | None = None, **nodes: dict[str, Any]) -> State:
        return gpus.check_gpus(nodes, offered).state

    assert state(a=with_gpus(device())) is State.OK
    assert state(a=with_gpus(device(), cuda="")) is State.FAILURE
    assert state(a=with_gpus(device(), usable=0)) is State.FAILURE
    assert state(a=with_gpus(device()), b=with_gpus(device(name="T4"))) is State.WARNING
    assert state(a=with_gpus(device()), b=with_gpus(device(driver="535.1"))) is State.WARNING
    assert state({"a": 0}, a=with_gpus(device())) is State.WARNING
    assert state({"a": 1}, a=with_gpus(device())) is State.OK


def test_network_names_the_node_that_all_failing_pairs_share() -> None:
    late = "RuntimeError: timed out"
    errors = dict.fromkeys("abc", late)
    one = check_network(Reached("gloo", 3, errors=errors, pairs={("a", "b"): late, ("b", "c"): late}))
    assert one.state is State.FAILURE and one.found.startswith("b and the others do not reach each other")
    pair = check_network(Reached("gloo", 3, errors=errors, pairs={("a", "c"): late}))
    assert pair.found.startswith("a and c do not reach each other") and "firewall" in pair.mend
    own = check_network(Reached("gloo", 3, errors={"a": late, "c": "RuntimeError: Unable to find interface x0"}))
    assert own.found.startswith("c: RuntimeError: Unable to find interface")


def test_every_pair_is_tried_once_in_few_rounds() -> None:
    names = list("abcdefgh")
    rounds = _rounds(names)
    assert sorted(pair for round_ in rounds for pair in round_) == sorted((a, b) for a in names for b in names if a < b)
    for round_ in rounds:
        assert len({node for pair in round_ for node in pair}) == 2 * len(round_)
    assert len(rounds) <= 10


def facts(**more: Any) -> dict[str, Any]:
    room_ = {"total": 64 * GB, "free": 64 * GB}
    return {
        "environment": {},
        "cpus": 8,
        "memory": 64 * GB,
        "open_files": (1_048_576, 1_048_576),
        "shared_memory": room_,
        "container": False,
        "short_lived_ports": [32768, 60999],
        "token": {"source": ""},
        "disks": {"/tmp": room_},
        "gpus": {"devices": []},
    } | more


def test_small_shared_memory_of_a_container() -> None:
    small = {"total": 64 * 2**20, "free": 64 * 2**20}
    nodes = {"a": facts(), "b": facts(shared_memory=small, container=True)}
    check = machine.check_shared_memory(nodes, clustered=True)
    assert check.state is State.WARNING and check.found.startswith("b: /dev/shm holds 67.1 MB in this container")
    assert "--shm-size" in check.mend
    store = room.check_object_store({"b": facts(shared_memory=small)}, {"b": 10.0 * GB}, None, None)
    assert store.state is State.WARNING and "--shm-size" in store.mend


@pytest.mark.parametrize("held", [2 * GB, 8 * GB, 10 * 2**30, 32 * GB])
def test_shared_memory_that_holds_less_than_ray_takes_by_itself(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """Ray then puts its object store on disk; what a cluster's nodes really took is `object store`."""
    monkeypatch.setattr(ray_utils, "get_shared_memory_bytes", lambda: held)
    on_disk = ray_utils.resolve_object_store_memory(64 * GB) > held
    node = {"a": facts(memory=64 * GB, shared_memory={"total": held, "free": held})}
    alone = machine.check_shared_memory(node, clustered=False)
    assert (alone.state is State.WARNING) == on_disk == (held < 10 * GB)
    assert machine.check_shared_memory(node, clustered=True).state is State.OK


def test_ports() -> None:
    assert machine.check_ports({"a": (32801, 9999)}).state is State.OK
    check = machine.check_ports({"a": (32801,), "b": (10500, 20000)})
    assert check.state is State.WARNING and check.found.startswith("b: ") and "10500" in check.found
    wide = machine.check_machines({"a": facts(short_lived_ports=[1024, 65535])}, head=None)
    assert [c.name for c in wide if c.state is State.WARNING] == ["system ports"]


def test_token_states() -> None:
    def state(clustered: bool = True, **more: Any) -> State:
        return machine.check_token({"a": facts(**more)}, clustered=clustered).state

    token = {"environment": {"RAY_AUTH_MODE": "token"}, "token": {"source": "RAY_AUTH_TOKEN"}}
    assert state(**token) is State.OK
    assert state() is State.WARNING and state(clustered=False) is State.OK
    assert state(environment={"RAY_AUTH_MODE": "token"}) is State.FAILURE
    assert state(**token | {"token": {"source": "~/.ray/auth_token", "open_to_others": True}}) is State.WARNING
    assert state(environment={"RAY_AUTH_MODE": "disabled"}, token={"source": "RAY_AUTH_TOKEN"}) is State.WARNING


def test_stopping() -> None:
    assert machine.check_stop({"a": facts()}, "a").state is State.WARNING
    assert machine.check_stop({"a": facts(environment={"RAY_JOB_STOP_WAIT_TIME_S": "60"})}, "a").state is State.OK
    assert machine.check_stop({"a": facts()}, None).state is State.SKIPPED


def test_disks() -> None:
    full = {"/tmp": {"total": 100 * GB, "free": GB}}
    assert room.check_disks({"a": facts()}, {"a": "/tmp"}).state is State.OK
    check = room.check_disks({"a": facts(), "b": facts(disks=full)}, {"a": "/tmp", "b": "/tmp"})
    assert check.state is State.FAILURE and check.found.startswith("b: 1 GB of 100 GB free")
    tight = {"/tmp": {"total": 50 * GB, "free": 4 * GB}}
    assert room.check_disks({"a": facts(disks=tight)}, {"a": "/tmp"}).state is State.WARNING


def about(node_id: str, *, head: bool = False, spot: bool = False, **node: Any) -> About:
    return About(Node(node_id, {"CPU": 2.0}, {"CPU": 2.0}, **node), "10.0.0.1", head, spot)


def test_workers() -> None:
    nodes = {"a": about("a", head=True), "b": about("b", taken={"CPU": 1.0})}
    asked = Elastic(min=8, max=8)
    check = workers.check_workers(asked, {"CPU": 1}, nodes, {})
    assert check.state is State.FAILURE and "--workers 8: the cluster has places for 3" in check.found
    assert "other runs hold the rest" in check.found and "ask for 1:3" in check.mend
    assert workers.check_workers(Elastic(min=1, max=8), {"CPU": 1}, nodes, {}).state is State.WARNING
    assert workers.check_workers(Elastic(min=3, max=3), {"CPU": 1}, nodes, {}).state is State.OK
    without = workers.check_workers(Elastic(), {"CPU": 1, "GPU": 1}, nodes, {})
    assert without.state is State.FAILURE and "no node has 1 GPU" in without.found
    endless = {"w": ({"CPU": 4.0}, -1)}
    assert workers.check_workers(asked, {"CPU": 1}, nodes, endless).state is State.OK


def test_only_allowed_counts_of_workers_count() -> None:
    """With places for 3, and 4 the fewest that `elastic.sizes` allows, a run waits for ever."""
    asked = Elastic(min=1, max=8, sizes=(2, 4, 8))
    nodes = {"a": about("a", head=True), "b": about("b", taken={"CPU": 1.0})}
    few = workers.check_workers(asked.model_copy(update={"sizes": (4, 8)}), {"CPU": 1}, nodes, {})
    assert few.state is State.FAILURE and "--workers 1:8 in elastic.sizes [4, 8]" in few.found
    assert few.mend.startswith("change elastic.sizes, or add nodes")
    enough = workers.check_workers(asked.model_copy(update={"max": 3}), {"CPU": 1}, nodes, {})
    assert enough.state is State.OK  # of 2
    fours = asked.model_copy(update={"sizes": (4,), "gpus_per_worker": 1.0})
    assert workers.check_machine_workers(fours, 64, 3).state is State.FAILURE
    assert workers.check_machine_workers(fours, 64, 4).state is State.OK
    config = load_config("imagenet-200ep-bs256", {"elastic.min": 1, "elastic.max": 8, "elastic.sizes": [4, 8]})
    assert "64 rows x 8 crops" in room.check_memory(config, sizes_of(config), {"a": facts()}, {"a": 8}, 0.0).found


def test_a_machine_with_fewer_gpus_than_the_run_may_grow_to() -> None:
    check = workers.check_machine_workers(Elastic(min=1, max=8, gpus_per_worker=1), 64, 2)
    assert check.state is State.WARNING and "never grows to 8" in check.found and "ask for 1:2" in check.mend
    assert workers.check_machine_workers(Elastic(min=1, max=8), 64, 2) == check  # one each where there are any
    assert workers.check_machine_workers(Elastic(min=1, max=8, gpus_per_worker=0.25), 64, 2).state is State.OK
    assert workers.check_machine_workers(Elastic(min=1, max=8), 64, 0).state is State.OK


def test_a_head_on_spot() -> None:
    assert workers.check_spot({"a": about("a", head=True), "b": about("b", spot=True)}).state is State.OK
    check = workers.check_spot({"a": about("a", head=True, spot=True)})
    assert check.state is State.WARNING and "on demand" in check.mend


def test_memory_of_gpus() -> None:
    config = load_config("imagenet-200ep-bs256", {"elastic.max": 8})
    sizes = sizes_of(config)
    small = {"a": facts(**with_gpus(device(memory=16 * GB)))}
    check = room.check_memory(config, sizes, small, {"a": 1}, 1.0)
    assert check.state is State.FAILURE and "64 rows x 8 crops" in check.found
    rows = int(check.mend.partition("max_rows_per_device=")[2].split()[0])
    capped = load_config("imagenet-200ep-bs256", {"elastic.max": 8, "elastic.max_rows_per_device": rows})
    assert room.check_memory(capped, sizes, small, {"a": 1}, 1.0).state is State.OK
    found = load_config("imagenet-200ep-bs256", {"elastic.max": 8, "elastic.max_rows_per_device": "auto"})
    assert room.check_memory(found, sizes, small, {"a": 1}, 1.0).state is State.OK
    shared = {"a": facts(**with_gpus(device(memory=0)))}  # with the machine
    assert room.check_memory(config, sizes, shared, {"a": 1}, 1.0).state is State.OK
    mixed = load_config("imagenet-200ep-bs256", {"elastic.max": 8, "precision": "bf16-mixed"})
    assert 0.6 * sizes.row_bytes < sizes_of(mixed).row_bytes < 0.75 * sizes.row_bytes
    assert sizes_of(mixed).checkpoint == sizes.checkpoint


def test_sizes_are_those_of_the_real_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and buffers to the byte; a checkpoint within a twentieth; kept activations as a real pass keeps them."""
    import torch

    from swav_ray.swav import small_conv
    from swav_ray.train.build import build_model

    # Which processors use and GPUs do not: on a processor a tenth more is kept, within what the estimate adds.
    monkeypatch.setattr(small_conv, "MOST_PIXELS", 0)
    config = load_config("demo-digits")
    sizes, model = sizes_of(config), build_model(config)
    assert sizes.parameters == sum(p.nbytes for p in model.parameters())
    assert sizes.buffers == sum(b.nbytes for b in model.buffers())
    kept: dict[int, Any] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    crops = [
        torch.rand(8, 3, size, size)
        for size, count in zip(config.crop_sizes, config.crop_counts, strict=True)
        for _ in range(count)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(crops)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 8
    pixels = sum(crop[0].nbytes for crop in crops)
    assert abs(sizes.row_bytes - pixels - measured) < 0.05 * measured
