"""Elastic runs: everything that touches Ray Train's internals, and nothing else does.

`ElasticTrainer` is a `TorchTrainer` with three parts replaced: the policy (`policy.py`), the worker group (made of
processes that stay, `pool.py`) and the controller (which stops gracefully). Ray calls these internal, so the package pins
its Ray version, `tests/train/test_ray_hooks.py` watches every hook, and the trainer falls back to stock Ray with a warning
where this module cannot be imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    FinishedState,
    InitializingState,
    ReschedulingState,
    RestartingState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker, Worker
from ray.train.v2._internal.util import invoke_context_managers, time_monotonic

from swav_ray.config import Config
from swav_ray.errors import Stopped
from swav_ray.train.cluster import actor_name, cancel_reservation, end_family, run_id_of
from swav_ray.train.control import Control, stopped_by_signals
from swav_ray.train.events import EventLog
from swav_ray.train.gauges import Counters
from swav_ray.train.network import talk_over
from swav_ray.train.policy import BACKSTOP_SECONDS, ElasticPolicy
from swav_ray.train.pool import WarmPool
from swav_ray.train.shares import Share
from swav_ray.train.signals import SIGNALS, Beat, Request

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # between looks at the requests to stop or abort
TICK_SECONDS = 0.25  # between looks at the workers and the cluster
RENDEZVOUS_SECONDS = 60.0  # for all workers of a new group to find each other
FAILURES = 8  # worker groups lost in a row without a new step before the run gives up
_DROPPED = {  # callbacks that start processes or make calls a warm group has no use for
    "PlacementGroupCleanerCallback",
    "DatasetsCallback",
    "WorkingDirectorySetupCallback",
    "AcceleratorSetupCallback",
}


@dataclasses.dataclass
class BeatingStatus(WorkerStatus):
    """What a worker answers to a poll, with its heartbeat."""

    beat: Beat = dataclasses.field(default_factory=Beat)


class WarmTrainWorker(RayTrainWorker):
    """A worker process that serves in one group after another."""

    def warm_up(self, config: Config) -> Any:
        """Import and do once what training needs, before it is needed."""
        from swav_ray.train.warm import rehearse

        rehearse(config)
        return self.get_metadata()

    def poll_status(self) -> BeatingStatus:
        return BeatingStatus(**vars(super().poll_status()), beat=SIGNALS.beat())

    def ask(self, request: Request) -> None:
        SIGNALS.ask(request)

    def reset(self, seconds: float) -> bool:
        """End the training thread and forget its group; False if this process cannot serve again."""
        SIGNALS.release()
        if SIGNALS.spoilt:
            return False
        if train_context._train_context is not None:
            runner = train_context.get_train_context().execution_context.training_thread_runner
            if runner._thread is not None:
                runner._thread.join(seconds)
            if runner.is_running():
                return False
            if runner.get_error() is not None and torch.cuda.is_initialized():
                return False  # a device that was left in the middle of a collective is not trusted again
        if dist.is_initialized():
            dist.destroy_process_group()
        train_context.set_train_context(None)
        SIGNALS.clear()
        gc.collect()  # the last references to the old group's sockets, which tell its peers that it is gone
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return True


class _WarmBackend(_TorchBackend):
    """Ray's torch backend with a rendezvous of our own, which fails in a minute where a peer is lost meanwhile."""

    # A process sees its own devices only: what others see changes from group to group, and CUDA reads it but once.
    share_cuda_visible_devices = False

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        if len(worker_group) == 1:
            return
        host, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        join = (
            worker_group.execute_single_async(rank, _join, backend, host, port, rank, len(worker_group))
            for rank in range(len(worker_group))
        )
        ray.get(list(join))

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing: `WarmTrainWorker.reset` leaves the process group, in each process that still answers."""


def _join(backend: str, host: str, port: int, rank: int, size: int) -> None:
    talk_over(ray.util.get_node_ip_address())
    store = dist.TCPStore(host, port, size, rank == 0, timeout=timedelta(seconds=RENDEZVOUS_SECONDS))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=BACKSTOP_SECONDS))


class WarmTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _WarmBackend


class NoPlacementGroup:
    """Workers hold their nodes' resources themselves; they die with the controller that owns them."""

    placement_group = None

    def shutdown(self) -> None:
        pass


class WarmGroup(WorkerGroup):
    """A worker group of the pool's processes."""

    pool: WarmPool

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        self._assert_inactive()
        context = self._worker_group_context
        with invoke_context_managers([callback.on_worker_group_start for callback in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            members = self.pool.take(context.num_workers)
            if len(members) < context.num_workers:
                self.pool.reclaim()
                raise WorkerGroupStartupTimeoutError(num_workers=context.num_workers)
            workers = [Worker(member.actor, member.metadata, context.resources_per_worker) for member in members]
            workers = WorkerGroup._assign_worker_ranks(workers)
            self._replica_groups = []
            self._worker_rank_to_replica_group_rank = {}
            # No synchronisation actor: our workers never call Ray's barriers.
            self._worker_group_state = WorkerGroupState(time_monotonic(), NoPlacementGroup(), workers, None)  # type: ignore[arg-type]
            try:
                self._init_train_context(workers, None)  # type: ignore[arg-type]
                for callback in self._callbacks:
                    callback.after_worker_group_start(self)
                ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
            except (RayActorError, RayTaskError) as error:
                self._clear_state()
                raise WorkerGroupStartupFailedError(f"a worker was lost while the group formed: {error}") from error
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def shutdown(self) -> None:
        self._assert_active()
        with invoke_context_managers([callback.on_worker_group_shutdown for callback in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_shutdown(self)
            self.pool.reclaim()
            self._clear_state()
            for callback in self._callbacks:
                callback.after_worker_group_shutdown(self._worker_group_context)

    def abort(self) -> None:
        self.pool.close()
        self._clear_state()


class WarmPolicy(ElasticScalingPolicy):
    """`ElasticPolicy` where Ray looks for a policy; requests to the autoscaler stay Ray's."""

    def __init__(
        self, scaling_config: Any, config: Config, run_uri: str, share_key: str | None, worker_env: dict[str, Any]
    ) -> None:
        super().__init__(scaling_config)
        self._config, self._run_uri, self._share_key, self._worker_env = config, run_uri, share_key, worker_env

    def after_controller_start(self, train_run_context: Any) -> None:
        super().after_controller_start(train_run_context)
        actor_class = ray.remote(runtime_env=self._worker_env, max_restarts=0)(WarmTrainWorker)
        self.pool = WarmPool(actor_class, self.scaling_config._resources_per_worker_not_none, self._config)
        self.events = EventLog(self._run_uri, Counters(self._run_uri, self._config.global_batch_size))
        self.rules = ElasticPolicy(self._config, self.pool, self.events, Share(self._share_key))

    async def before_controller_shutdown(self) -> None:
        await super().before_controller_shutdown()
        self.pool.close()
        self.events.close()

    def before_controller_abort(self) -> None:
        super().before_controller_abort()
        self.pool.close()

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._maybe_send_resource_request()
        return self._decision(self.rules.without_group())

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        self._maybe_send_resource_request()
        statuses = worker_group_status.worker_statuses.items()
        beats = {rank: status.beat for rank, status in statuses if isinstance(status, BeatingStatus) and status.running}
        return self._decision(self.rules.with_group(beats, [worker.actor for worker in worker_group_state.workers]))

    def _decision(self, size: int | None) -> Any:
        return NoopDecision() if size is None else self._get_resize_decision(size)


class PatientFailurePolicy(DefaultFailurePolicy):
    """Goes on after any number of losses as long as steps are made between them; gives up after `FAILURES` without."""

    rules: ElasticPolicy
    _seen, _count = -1, 0

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if not self._is_retryable_error(training_failed_error):
            return FailureDecision.RAISE
        if self.rules.best_step > self._seen:
            self._seen, self._count = self.rules.best_step, 0
        self._count += 1
        lines = str(training_failed_error).strip().splitlines()
        self.rules.lost(lines[-1].split(". ")[0][:200] if lines else "")
        return FailureDecision.RETRY if self._count <= FAILURES else FailureDecision.RAISE


class ElasticController(TrainController):
    """Ray's controller over the pool's groups."""

    def __init__(self, scaling_policy: WarmPolicy, failure_policy: PatientFailurePolicy, **rest: Any) -> None:
        super().__init__(scaling_policy=scaling_policy, failure_policy=failure_policy, **rest)
        self._rules = failure_policy.rules = scaling_policy.rules
        self.worker_group_cls = type("WarmGroupOfRun", (WarmGroup,), {"pool": scaling_policy.pool})

    async def _step(self) -> Any:
        waiting = isinstance(self.get_state(), InitializingState | RestartingState | ReschedulingState)
        if waiting and self._rules.stopping:
            self._state = ShuttingDownState(next_state=FinishedState())
        previous = self.get_state()
        result = await super()._step()
        if waiting and result.next_state is previous:
            await asyncio.sleep(TICK_SECONDS)  # Ray asks again at once
        return result

    async def ask_to_stop(self) -> None:
        """End the run after its next step, with a checkpoint."""
        self._rules.stopping = True


class ElasticTrainer(TorchTrainer):
    """A `TorchTrainer` whose workers come and go.

    Args:
        config: of the run; `config.elastic` says how many workers, and when their number changes.
        run_uri: the run's folder, for its log of events.
        control: stops or aborts it from another thread.
        share_key: names its share of the workers (`shares.py`) where other runs go on beside it.
    """

    def __init__(
        self, *args: Any, config: Config, run_uri: str, control: Control, share_key: str | None = None, **kwargs: Any
    ) -> None:
        os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"  # notices are the policy's business
        os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, str(TICK_SECONDS))
        os.environ.setdefault(WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR, str(config.elastic.silent_seconds))
        super().__init__(*args, torch_config=WarmTorchConfig(), **kwargs)
        self.config, self.run_uri, self.control, self.share_key = config, run_uri, control, share_key
        object.__setattr__(self.train_run_context, "run_id", run_id_of(run_uri))  # frozen, and not to be chosen

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in _DROPPED]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        environment = get_env_vars_to_propagate()
        worker_env = WorkerGroup._get_worker_runtime_env(custom_runtime_env=self.run_config.worker_runtime_env)
        kwargs["scaling_policy"] = WarmPolicy(self.scaling_config, self.config, self.run_uri, self.share_key, dict(worker_env))
        kwargs["failure_policy"] = PatientFailurePolicy(self.run_config.failure_config)
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        env = {"env_vars": environment}
        name = actor_name(self.run_uri, "controller")
        remote = ray.remote(num_cpus=0, label_selector=here, runtime_env=env)(ElasticController)
        controller = remote.options(name=name).remote(**kwargs)
        try:
            run, asked = controller.run.remote(), False
            with stopped_by_signals(self.control):
                while not ray.wait([run], timeout=LOOK_SECONDS)[0]:
                    if self.control.aborted:
                        raise Stopped(f"run {self.config.name!r} was aborted")
                    if self.control.stopping and not asked:
                        asked = True
                        controller.ask_to_stop.remote()
            ray.get(run)
            return ray.get(controller.get_result.remote())
        finally:
            # From outside: the controller itself may be in a call that takes minutes.
            end_family(controller)
            cancel_reservation(self.run_uri)
