"""The pool on a real Ray: processes that serve again, and those that are told apart from them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

from swav_ray.config import Config
from swav_ray.train.blame import CodeError
from swav_ray.train.cluster import Node, cluster_nodes, cluster_slots
from swav_ray.train.pool import WarmPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Process:
    """A worker process that does nothing, in one of several ways."""

    def warm_up(self, config: Config) -> int:
        if config.name == "broken":
            raise ValueError("no such package")
        return os.getpid()

    def get_metadata(self) -> int:
        return os.getpid()

    def stop_ending(self) -> None:
        self.stuck = True

    def reset(self, seconds: float) -> bool:
        return not hasattr(self, "stuck")


def pool_of(count: int, name: str = "") -> WarmPool:
    pool = WarmPool(ray.remote(Process), {"CPU": 1, "GPU": 0}, Config(name=name, num_prototypes=20))
    pool.refresh()
    pool.start_on(pool.nodes, count)
    deadline = time.monotonic() + 60
    while pool.warming:
        assert time.monotonic() < deadline
        pool.refresh()
    return pool


@pytest.fixture
def pool() -> Any:
    made = pool_of(3)
    yield made
    made.close()


def test_processes_serve_again(pool) -> None:
    first = pool.take(2)
    pids = [member.metadata for member in first]
    assert len(set(pids)) == 2 and [m.busy for m in pool.usable] == [True, True, False]
    pool.reclaim()
    again = pool.take(3)
    assert len(again) == 3 and set(pids) < {ray.get(member.actor.get_metadata.remote()) for member in again}


def test_the_dead_the_frozen_and_the_stuck_are_told_from_those_that_serve_again(pool) -> None:
    pool.start_on(pool.nodes, 1)
    while pool.warming:
        pool.refresh()
    dead, frozen, stuck, well = pool.take(4)
    os.kill(dead.metadata, signal.SIGKILL)
    os.kill(frozen.metadata, signal.SIGSTOP)
    ray.get(stuck.actor.stop_ending.remote())
    pool.reclaim()
    assert pool.members == [well] and not well.busy
    with pytest.raises(ProcessLookupError):  # the frozen one was ended, not left behind
        for _ in range(200):
            os.kill(frozen.metadata, 0)
            time.sleep(0.05)


def test_places_are_what_is_free_on_nodes_that_stay(pool) -> None:
    node_id = next(iter(cluster_nodes()))
    pool.nodes = {
        node_id: Node(node_id, {"CPU": 5.5}, {"CPU": 0.0}),  # three of them ours, the others busy with short tasks
        "going": Node("going", {"CPU": 8}, {"CPU": 8}, draining=True),
        "small": Node("small", {"CPU": 0.5}, {"CPU": 0.5}),
    }
    assert pool.slots() == {node_id: 2}
    pool.resources = {"CPU": 1, "slot": 1}
    pool.nodes["used"] = Node("used", {"CPU": 8, "slot": 2}, {"CPU": 8, "slot": 1})
    assert pool.slots() == {"used": 1}, "somebody holds the other slot"
    assert [member.node_id for member in pool.usable] == [node_id] * 3
    pool.nodes = {node_id: Node(node_id, {"CPU": 8}, {"CPU": 3}, draining=True)}
    pool.take(1)
    assert pool.slots() == {} and pool.usable == [] and pool.doomed == []
    pool.resources = {"CPU": 1}
    pool.nodes = {"shared": Node("shared", {"CPU": 4}, {"CPU": 0.0}, taken={"CPU": 3.0})}
    assert pool.slots() == {"shared": 1}, "others' workers hold three for good, the fourth is short tasks'"


def test_who_serves_on_a_draining_node_is_doomed_and_ended(pool) -> None:
    (member,) = pool.take(1)
    pool.nodes = {name: Node(name, {}, {}, draining=True, deadline_ms=5) for name in pool.nodes}
    assert pool.doomed == [member]
    pool.reclaim()
    assert member not in pool.members


def test_a_start_that_fails_is_noted_and_its_node_left_alone() -> None:
    pool = pool_of(1, "broken")
    assert pool.members == [] and pool.slots() == {}
    (why,) = pool.failed_starts
    assert "no such package" in str(why) and isinstance(why, CodeError)


def test_surplus_processes_end_but_none_that_serves(pool) -> None:
    (serving,) = pool.take(1)
    pool.start_on(pool.nodes, 1)
    pool.trim(3)
    assert not pool.warming and len(pool.members) == 3
    pool.trim(0)
    assert pool.members == [serving]


def test_what_another_run_holds_is_no_place_and_a_start_there_is_given_up(pool) -> None:
    """Two runs see the same free places; who is later does not wait for what the other will hold for hours."""

    @ray.remote(num_cpus=0)
    class OtherRun:
        def __init__(self) -> None:
            self.workers = [ray.remote(Process).options(num_cpus=1).remote() for _ in range(2)]

        def ready(self) -> list[int]:
            return ray.get([worker.get_metadata.remote() for worker in self.workers])

    (node_id,) = cluster_nodes()
    pool.refresh()
    assert pool.slots() == {node_id: 3}
    other = OtherRun.remote()
    ray.get(other.ready.remote())
    pool.start_on(pool.nodes, 3)  # as it saw them before
    assert len(pool.warming) == 3
    pool.refresh()
    assert len(pool.members) == 4 and pool.slots() == {} and not pool.failed_starts
    assert cluster_nodes()[node_id].taken["CPU"] == 2, "its own are not taken by others"
    assert cluster_slots({"CPU": 1}) == 6, "all of this job's"
    group = ray.util.placement_group([{"CPU": 1}])
    ray.kill(other)
    ray.get(group.ready())
    while cluster_nodes()[node_id].taken != {"CPU": 1}:
        time.sleep(0.02)
    ray.util.remove_placement_group(group)
