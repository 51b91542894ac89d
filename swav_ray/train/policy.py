"""Who takes part in a run, and when that changes.

Asked several times a second. A resize with notice: workers are asked to YIELD, all ranks stop after the same step with a
checkpoint, then the group changes; new processes are warm before anyone is asked. After a loss, whoever is left goes on at
once, and replacements join later as a growth. Where several runs share a cluster each keeps to its share (`shares.py`): a
smaller one is a resize with notice, after which the surplus processes end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from swav_ray.config import Config
from swav_ray.train.events import EventLog
from swav_ray.train.pool import WarmPool
from swav_ray.train.resize import Clock, Debounce, fitting_size, growth_pays
from swav_ray.train.signals import Beat, Request

START_TOGETHER_SECONDS = 30.0  # how long the first start waits for more workers than are needed
SILENT_WAIT_SECONDS, WAITING_TOLD_EVERY_SECONDS = 10.0, 60.0  # for nodes that are not there
FAILED_STARTS = 3  # in a row, and no worker has ever started since, before the run gives up
BACKSTOP_SECONDS = 1800.0  # for phases that may be long, and of a collective; a stuck rank is found long before
LOOK_SECONDS = 0.75  # between looks at the cluster while nothing changes: each asks Ray's control store five things
SLOW_PHASES = {"idle", "start", "probe", "checkpoint"}
logger = logging.getLogger(__name__)


class ElasticPolicy:
    """Decides the size of the group; `None` means to leave things as they are.

    Args:
        config: of the run; `config.elastic` holds the rules.
        pool: the processes.
        events: told of every change.
        share: how many workers this run may have at present, beside others; None is no limit.
    """

    def __init__(
        self, config: Config, pool: WarmPool, events: EventLog, share: Callable[[], int | None] = lambda: None
    ) -> None:
        self.elastic, self.pool, self.events, self.share = config.elastic, pool, events, share
        self._least = next(size for size in range(self.elastic.max + 1) if fitting_size(size, self.elastic))
        self._limit = self.elastic.max
        self.clock = Clock()
        self.best_step = -1  # the furthest that all workers have come
        self.stopping = False  # the run is to end after its next step
        self._stop_asked = False
        self._yield: tuple[str, float] | None = None  # why the workers were asked to yield, and until when that is waited for
        self._new_places = Debounce(self.elastic.patience_seconds)
        self._resized_at = float("-inf")
        self._looked_at = float("-inf")
        self._workers = 0  # of the last group
        self._first_usable = float("inf")  # when there were first enough workers to start
        self._tell_at = float("inf")  # when to say that the cluster has too few nodes

    def without_group(self) -> int | None:
        """There is no group, or it failed: the size to start with, once there are workers for it.

        Raises:
            RuntimeError: no worker process starts; says why the last one did not.
        """
        self.clock.restarting()
        self._limit = self._right(0)
        self.pool.refresh()
        self.pool.reclaim()  # of a group that failed
        self.pool.trim(self._limit)
        usable = self._fitting(len(self.pool.usable))
        if self._workers and usable:
            return self._resize(usable)
        if len(self.pool.failed_starts) >= FAILED_STARTS and not self.pool.warming:
            last = self.pool.failed_starts[-1]
            raise type(last)(f"no worker starts: {last}")
        self._recruit(self.pool.slots())
        now = time.monotonic()
        self._tell_of_waiting(now, usable)
        self._first_usable = min(self._first_usable, now) if usable else float("inf")
        late = now - self._first_usable > START_TOGETHER_SECONDS
        return self._resize(usable) if usable and (late or not self.pool.warming) else None

    def with_group(self, beats: dict[int, Beat], actors: list[Any]) -> int | None:
        """A group is at work: the size to change it to, once all its workers wait for that.

        Args:
            beats: of the ranks that answered; a finished rank has none.
            actors: of all ranks, in rank order.
        """
        now = time.monotonic()
        self._limit = self._right(self._least)
        if self._yield is not None or self.pool.warming or now - self._looked_at >= LOOK_SECONDS:
            self.pool.refresh()
            self._looked_at = now
        self.pool.trim(self._limit)
        if len(beats) < len(actors):
            return None  # one is late, gone or finished; the next polls tell
        self._see(beats, now)
        if self._end_stuck(beats, actors):
            return None
        if self.stopping:
            if not self._stop_asked:
                self.events.add("stop", workers=len(actors), step=self.best_step)
                self._ask(actors, Request.STOP)
            self._stop_asked = True
            return None
        if self._yield is not None:
            return self._follow_yield(beats, now)
        remaining = self.clock.remaining(beats[0].steps)
        slots = self.pool.slots()
        places = self._new_places.settled(slots, now)
        there = len(self.pool.usable) + len(self.pool.warming)
        room = self._fitting(there + sum(slots[node] for node in places))
        if growth_pays(len(actors), room, remaining, self.clock.restart_seconds):
            self._recruit(places)
        target = self._fitting(len(self.pool.usable))
        rested = now - self._resized_at > self.elastic.cooldown_seconds
        if self.pool.doomed:
            self._yield = ("drain", now + self._notice())
        elif len(actors) > self._limit:
            self._yield = ("share", now + self.elastic.checkpoint_wait_seconds)
        elif rested and growth_pays(len(actors), target, remaining, self.clock.restart_seconds):
            self._yield = ("grow", now + self.elastic.checkpoint_wait_seconds)
        if self._yield is not None:
            self._ask(actors, Request.YIELD)
        return None

    def lost(self, cause: str) -> None:
        """The group failed."""
        self.events.add("lost", step=self.best_step, workers=self._workers, cause=cause)

    def _right(self, least: int) -> int:
        """The largest size that this run may have now: what its share allows, but not less than ``least``."""
        share = self.share()
        return fitting_size(self.elastic.max if share is None else max(share, least), self.elastic)

    def _fitting(self, places: int) -> int:
        return fitting_size(min(places, self._limit), self.elastic)

    def _recruit(self, nodes: Any) -> None:
        """Start, on ``nodes``, the processes that would bring the group to its largest possible size."""
        staying = [member for member in self.pool.members if not self.pool.nodes[member.node_id].draining]
        room = sum(count for node, count in self.pool.slots().items() if node in nodes)
        missing = self._fitting(len(staying) + room) - len(staying)
        if missing > 0:
            self.pool.start_on(nodes, missing)

    def _tell_of_waiting(self, now: float, usable: int) -> None:
        if usable or self.pool.warming or self._limit < self._least:
            self._tell_at = float("inf")
        elif now >= self._tell_at:
            room = len(self.pool.members) + sum(self.pool.slots().values())
            self.events.add("waiting", room=room, needed=self.elastic.min, each=self.pool.resources)
            self._tell_at = now + WAITING_TOLD_EVERY_SECONDS
        elif self._tell_at == float("inf"):
            self._tell_at = now + SILENT_WAIT_SECONDS

    def _resize(self, count: int) -> int:
        why, self._yield = (self._yield[0] if self._yield else ("restart" if self._workers else "start")), None
        self.events.add(why, workers_before=self._workers, workers=count, step=self.best_step)
        self.clock.restarting()
        self._resized_at, self._workers = time.monotonic(), count
        return count

    def _see(self, beats: dict[int, Beat], now: float) -> None:
        if any(beat.phase in ("idle", "start") for beat in beats.values()):
            return
        step = min(beat.step for beat in beats.values())
        paused = self.clock.see(step, now)
        if paused is not None:
            self.events.add("resumed", workers=len(beats), step=step, seconds_without_steps=round(paused, 2))
        self.best_step = max(self.best_step, step)

    def _end_stuck(self, beats: dict[int, Beat], actors: list[Any]) -> bool:
        """End the rank that all wait for, if it has been at one thing for too long; its peers' collectives then fail."""

        def allowed(beat: Beat) -> float:
            return BACKSTOP_SECONDS if beat.phase in SLOW_PHASES else self.elastic.stuck_seconds

        if not all(beat.seconds > allowed(beat) and not beat.parked for beat in beats.values()):
            return False
        behind = min(beat.step for beat in beats.values())
        suspects = [rank for rank, beat in beats.items() if beat.step == behind]
        # Peers wait inside a collective; whoever is elsewhere holds them up. If none is, nobody can be told apart.
        guilty = [rank for rank in suspects if not beats[rank].waiting] or suspects
        for rank in guilty:
            about = {"rank": rank, "step": beats[rank].step, "phase": beats[rank].phase, "where": beats[rank].where}
            logger.warning("a stuck rank is ended: %s", about)
            self.events.add("stuck", node=self.pool.node_of(actors[rank]), seconds=round(beats[rank].seconds, 1), **about)
            self.pool.end(actors[rank])
        return True

    def _notice(self) -> float:
        """Seconds to wait for the checkpoint of a drain: less than until the first node leaves."""
        deadlines = [self.pool.nodes[member.node_id].deadline_ms for member in self.pool.doomed]
        left = [deadline / 1000 - time.time() - 1 for deadline in deadlines if deadline]  # 0: no deadline
        return max(0.0, min([self.elastic.checkpoint_wait_seconds, *left]))

    def _ask(self, actors: list[Any], request: Request) -> None:
        for actor in actors:
            actor.ask.remote(request)

    def _follow_yield(self, beats: dict[int, Beat], now: float) -> int | None:
        assert self._yield is not None
        parked = all(beat.parked for beat in beats.values())
        if not parked and now < self._yield[1]:
            return None
        target = self._fitting(len(self.pool.usable))
        if not target:  # too few stay: all is saved, and the workers wait for the end of their nodes or for new ones
            self._recruit(self.pool.slots())
            return None
        if not parked:
            self.events.add("late", step=self.best_step, waited_for="the checkpoint before a " + self._yield[0])
        return self._resize(target)
