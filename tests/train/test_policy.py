"""Who takes part and when that changes, decision by decision; `test_elastic.py` shows it on real nodes."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from swav_ray.config import Config, load_config
from swav_ray.train import policy as policy_module
from swav_ray.train.blame import CodeError
from swav_ray.train.policy import ElasticPolicy
from swav_ray.train.pool import Node
from swav_ray.train.signals import Beat, Request


class Actor:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.ask = SimpleNamespace(remote=self.asked.append)


class Cluster:
    """Nodes of one place each, and a pool that starts a worker at once or when told so."""

    def __init__(self, nodes: int, *, slow_start: bool = False) -> None:
        self.nodes = {f"n{i}": Node(f"n{i}", {}, {}) for i in range(nodes)}
        self.members: list[Any] = []
        self.resources = {"CPU": 1.0}
        self.slow_start, self.ended, self.failed_starts = slow_start, list[str](), list[RuntimeError]()
        self.looks = 0

    def drain(self, name: str, deadline_ms: int = 0) -> None:
        self.nodes[name] = Node(name, {}, {}, draining=True, deadline_ms=deadline_ms)

    def warm(self) -> None:
        for member in self.members:
            member.metadata = True

    def die(self, name: str) -> None:
        self.nodes.pop(name, None)
        self.members = [member for member in self.members if member.node_id != name]

    def refresh(self) -> None:
        self.looks += 1

    def trim(self, limit: int) -> None:
        idle = [member for member in self.members if not member.busy]
        for member in idle[: max(0, len(self.members) - limit)]:
            self.members.remove(member)

    def reclaim(self) -> None:
        for member in self.members:
            member.busy = False

    def slots(self) -> dict[str, int]:
        taken = {member.node_id for member in self.members}
        return {name: 1 for name, node in self.nodes.items() if not node.draining and name not in taken}

    def start_on(self, nodes: Any, count: int) -> None:
        for name in sorted(set(nodes) & set(self.slots()))[:count]:
            warm = None if self.slow_start else True
            self.members.append(SimpleNamespace(node_id=name, metadata=warm, busy=False, actor=Actor()))

    def node_of(self, actor: Any) -> str:
        return next(member.node_id for member in self.members if member.actor is actor)

    def end(self, actor: Any) -> None:
        self.ended.append(self.node_of(actor))

    @property
    def warming(self) -> list[Any]:
        return [member for member in self.members if member.metadata is None]

    @property
    def usable(self) -> list[Any]:
        return [member for member in self.members if member.metadata and not self.nodes[member.node_id].draining]

    @property
    def doomed(self) -> list[Any]:
        return [member for member in self.members if member.busy and self.nodes[member.node_id].draining]


class Story:
    """A run told second by second: the group takes a step a second until it is asked to yield."""

    def __init__(self, cluster: Cluster, clock: Any, **elastic: Any) -> None:
        settings = {f"elastic.{key}": value for key, value in elastic.items()}
        self.config: Config = load_config("demo-digits", {"elastic.min": 1, "elastic.max": 3, **settings})
        self.events: list[tuple[str, dict[str, Any]]] = []
        log: Any = SimpleNamespace(add=lambda event, **about: self.events.append((event, about)))
        self.cluster, self.clock, self.step = cluster, clock, 0
        self.share: int | None = None
        self.policy = ElasticPolicy(self.config, cluster, log, lambda: self.share)  # type: ignore[arg-type]
        self.group: list[Any] = []
        self.beat: dict[int, Beat] = {}

    def start(self) -> int | None:
        size = self.policy.without_group() or self.policy.without_group()  # what it starts is there at the next look
        if size is not None:
            self._form(size)
        return size

    def _form(self, size: int) -> None:
        self.cluster.reclaim()
        self.group = self.cluster.usable[:size]
        for member in self.group:
            member.busy = True
            member.actor.asked.clear()

    def pass_seconds(self, seconds: float, *, steps: int = 10_000, beats: dict[int, Beat] | None = None) -> int | None:
        """The size asked for within that time, if any; the group is then formed."""
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            asked = any(Request.YIELD in member.actor.asked for member in self.group)
            self.step += not asked and beats is None
            phase = "parked" if asked else "step"
            now = {rank: Beat(self.step, steps, phase, 0.5, parked=asked) for rank in range(len(self.group))}
            size = self.policy.with_group(now | (beats or {}), [member.actor for member in self.group])
            if size is not None:
                self._form(size)
                return size
        return None


@pytest.fixture
def clock(monkeypatch) -> Any:
    fake = SimpleNamespace(now=1000.0)
    fake.monotonic, fake.time = lambda: fake.now, time.time
    monkeypatch.setattr(policy_module, "time", fake)
    return fake


def test_the_first_start_waits_for_all_that_are_coming_but_not_for_ever(clock) -> None:
    story = Story(Cluster(3, slow_start=True), clock)
    assert story.start() is None and len(story.cluster.warming) == 3
    story.cluster.members[0].metadata = True
    assert story.start() is None, "two more are coming"
    clock.now += policy_module.START_TOGETHER_SECONDS + 1
    assert story.start() == 1


def test_below_the_minimum_nothing_starts(clock) -> None:
    story = Story(Cluster(1), clock, min=2)
    assert story.start() is None
    story.cluster.nodes["n9"] = Node("n9", {}, {})
    assert story.start() == 2


def test_the_cluster_is_looked_at_once_a_second_and_at_every_poll_while_something_changes(clock) -> None:
    story = Story(Cluster(2, slow_start=True), clock, patience_seconds=0, cooldown_seconds=0)
    story.start(), story.cluster.warm(), story.start()
    before = story.cluster.looks
    story.pass_seconds(20)
    assert 19 <= story.cluster.looks - before <= 21, "polls are twice a second here"
    story.cluster.nodes["n9"] = Node("n9", {}, {})
    story.pass_seconds(1)
    before = story.cluster.looks
    story.pass_seconds(5)
    assert story.cluster.warming and story.cluster.looks - before == 10


def test_a_wait_for_nodes_is_told_now_and_then(clock) -> None:
    story = Story(Cluster(1), clock, min=3)
    for _ in range(100):
        clock.now += 1.0
        assert story.start() is None
    told = [about for event, about in story.events if event == "waiting"]
    assert told == [{"room": 1, "needed": 3, "each": {"CPU": 1.0}}] * 2


def test_workers_that_never_start_end_the_run_with_the_reason(clock) -> None:
    story = Story(Cluster(1), clock, min=2)
    story.cluster.failed_starts += [RuntimeError("once"), RuntimeError("twice")]
    assert story.start() is None
    story.cluster.failed_starts.append(CodeError("UserError: backbone.arch = 'nothing:here': cannot be imported"))
    with pytest.raises(CodeError, match=r"no worker starts: UserError: backbone\.arch"):
        story.start()


def test_a_new_node_is_warmed_while_the_group_works_and_joins_after_a_checkpoint(clock) -> None:
    story = Story(Cluster(1), clock, patience_seconds=2, cooldown_seconds=30)
    assert story.start() == 1
    story.cluster.slow_start = True
    story.pass_seconds(40)
    story.cluster.nodes["n1"] = Node("n1", {}, {})
    assert story.pass_seconds(1.5) is None and not story.cluster.warming, "it may be gone in a second"
    assert story.pass_seconds(20) is None and len(story.cluster.warming) == 1
    assert not story.group[0].actor.asked, "nobody stops for a process that is not ready"
    story.cluster.warm()
    assert story.pass_seconds(2) == 2
    assert [event for event, _ in story.events] == ["start", "grow"]


def test_a_growth_waits_for_the_cool_down(clock) -> None:
    story = Story(Cluster(1), clock, patience_seconds=0, cooldown_seconds=30)
    story.start()
    story.pass_seconds(5)
    story.cluster.nodes["n1"] = Node("n1", {}, {})
    assert story.pass_seconds(20) is None
    assert story.pass_seconds(10) == 2


def test_a_growth_at_the_end_of_a_run_does_not_pay(clock) -> None:
    story = Story(Cluster(1), clock, patience_seconds=0, cooldown_seconds=0)
    story.start()
    story.pass_seconds(20, steps=60)
    story.cluster.nodes["n1"] = Node("n1", {}, {})
    assert story.pass_seconds(5, steps=story.step + 15) is None
    assert len(story.cluster.members) == 1, "and nothing is started for it"


def test_a_drain_is_answered_at_once_with_who_stays(clock) -> None:
    story = Story(Cluster(3), clock, cooldown_seconds=1000)
    assert story.start() == 3
    story.pass_seconds(5)
    story.cluster.drain("n1")
    assert story.pass_seconds(1.5) == 2
    assert story.events[-1][0] == "drain"


@pytest.mark.parametrize(("deadline", "waits"), [(None, 120), (20, 18)])
def test_a_checkpoint_that_does_not_come_is_not_waited_for_longer_than_the_notice(clock, deadline, waits) -> None:
    story = Story(Cluster(2), clock, checkpoint_wait_seconds=120)
    story.start()
    story.pass_seconds(5)
    story.cluster.drain("n1", int((time.time() + deadline) * 1000) if deadline else 0)
    busy = {rank: Beat(10, 1000, "checkpoint", 1.0) for rank in range(2)}
    assert story.pass_seconds(waits - 1, beats=busy) is None
    assert story.pass_seconds(4, beats=busy) == 1
    assert story.events[-2][0] == "late"


def test_too_few_stay_so_all_is_saved_and_they_wait(clock) -> None:
    story = Story(Cluster(2), clock, min=2)
    story.start()
    story.pass_seconds(5)
    story.cluster.drain("n1")
    assert story.pass_seconds(10) is None
    assert all(Request.YIELD in member.actor.asked for member in story.group)
    story.cluster.nodes["n2"] = Node("n2", {}, {})
    assert story.pass_seconds(1) == 2, "a new node takes its place"


def test_after_a_loss_whoever_is_left_goes_on_at_once(clock) -> None:
    story = Story(Cluster(3), clock)
    story.start()
    story.pass_seconds(5)
    story.policy.lost("it died")
    story.cluster.die("n2")
    assert story.start() == 2
    assert [event for event, _ in story.events] == ["start", "lost", "restart"]


def test_only_allowed_sizes(clock) -> None:
    story = Story(Cluster(3), clock, sizes=(1, 2), patience_seconds=0)
    assert story.start() == 2 and len(story.cluster.members) == 2, "no third process is started for nothing"


def test_a_stuck_rank_is_told_from_those_that_wait_for_it(clock) -> None:
    story = Story(Cluster(3), clock, stuck_seconds=100)
    story.start()
    story.pass_seconds(5)
    waits = Beat(7, 1000, "step", 101.0, where="distributed.py:1 all_reduce", waiting=True)
    stuck = Beat(7, 1000, "step", 101.0, where="decode.py:55 decode")
    story.pass_seconds(0.5, beats={0: waits, 1: stuck, 2: waits})
    assert story.cluster.ended == ["n1"]
    event, about = story.events[-1]
    assert event == "stuck"
    assert about["rank"] == 1 and about["node"] == "n1" and about["step"] == 7 and about["where"] == "decode.py:55 decode"


def test_long_phases_are_not_stuck(clock) -> None:
    story = Story(Cluster(2), clock, stuck_seconds=100)
    story.start()
    story.pass_seconds(5)
    waits = Beat(7, 1000, "step", 500.0, waiting=True)
    story.pass_seconds(0.5, beats={0: Beat(7, 1000, "probe", 500.0), 1: waits})
    assert story.cluster.ended == []


def test_stopping_asks_everyone_once(clock) -> None:
    story = Story(Cluster(2), clock)
    story.start()
    story.pass_seconds(5)
    story.policy.stopping = True
    story.pass_seconds(3)
    assert [member.actor.asked for member in story.group] == [[Request.STOP]] * 2
    assert [event for event, _ in story.events].count("stop") == 1


def test_a_run_keeps_to_its_share_and_grows_with_it(clock) -> None:
    story = Story(Cluster(4), clock, max=4, patience_seconds=0, cooldown_seconds=0)
    story.share = 2
    assert story.start() == 2 and len(story.cluster.members) == 2, "no process on another run's place"
    assert story.pass_seconds(20) is None and len(story.cluster.members) == 2
    story.share = 4
    assert story.pass_seconds(2) == 4


def test_a_smaller_share_is_a_resize_with_notice_at_once_and_frees_the_places(clock) -> None:
    story = Story(Cluster(4), clock, max=4, cooldown_seconds=1000)
    assert story.start() == 4
    story.pass_seconds(5)
    story.share = 1
    assert story.pass_seconds(0.5) is None
    assert all(Request.YIELD in member.actor.asked for member in story.group), "all is saved first"
    assert story.pass_seconds(1) == 1 and story.events[-1][0] == "share"
    story.pass_seconds(0.5)
    assert [member.busy for member in story.cluster.members] == [True], "the others were ended"


def test_no_share_makes_a_group_smaller_than_the_least_but_none_starts_without_one(clock) -> None:
    story = Story(Cluster(4), clock, min=2, max=4)
    story.share = 0
    for _ in range(20):
        clock.now += 1.0
        assert story.start() is None
    assert not story.cluster.members and not story.events, "it waits for its turn, not for nodes"
    story.share = 3
    assert story.start() == 3
    story.pass_seconds(5)
    story.share = 0
    assert story.pass_seconds(2) == 2
    story.policy.lost("it died")
    story.cluster.reclaim()
    assert story.start() is None and not story.cluster.members, "its places are left to those whose turn it is"


def test_of_a_share_only_an_allowed_size_is_taken(clock) -> None:
    story = Story(Cluster(4), clock, max=4, sizes=(1, 2, 4))
    assert story.start() == 4
    story.pass_seconds(5)
    story.share = 3
    assert story.pass_seconds(2) == 2
    story.pass_seconds(0.5)
    assert len(story.cluster.members) == 2, "a third process would serve nobody"
