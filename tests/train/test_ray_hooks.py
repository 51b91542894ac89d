"""A canary for Ray's internals: what `train/elastic.py` replaces or calls is still what it was written against.

Red after a change of Ray's version means: read the named code again, mend `elastic.py`, then renew the fingerprint here.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
    get_or_create_autoscaling_coordinator,
)
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy.scaling_policy import ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

HOOKS: dict[str, tuple[Any, str]] = {
    # our versions stand in for these
    "WorkerGroup._start_impl": (WorkerGroup._start_impl, "56073490abe3"),
    "WorkerGroup.shutdown": (WorkerGroup.shutdown, "ca34446095a7"),
    "WorkerGroup.abort": (WorkerGroup.abort, "a32532266041"),
    "DataParallelTrainer._initialize_and_run_controller": (DataParallelTrainer._initialize_and_run_controller, "a6bfacda469f"),
    "DefaultFailurePolicy.make_decision": (DefaultFailurePolicy.make_decision, "31411378f7b8"),
    "_TorchBackend.on_start": (_TorchBackend.on_start, "63da6c7422a2"),
    "_TorchBackend.on_shutdown": (_TorchBackend.on_shutdown, "60ec212350de"),
    # ours rely on how these work
    "TrainController._step": (TrainController._step, "3afbb003d2b3"),
    "TrainController._execute_resize_decision": (TrainController._execute_resize_decision, "ab06d95d077f"),
    "TrainController._start_worker_group": (TrainController._start_worker_group, "3a7c2f6a550b"),
    "TrainController._poll_workers": (TrainController._poll_workers, "ef3060e938e9"),
    "WorkerGroup._init_train_context": (WorkerGroup._init_train_context, "9b0140a59c02"),
    "WorkerGroup._assign_worker_ranks": (WorkerGroup._assign_worker_ranks, "2a4827ade3f5"),
    "RayTrainWorker.poll_status": (RayTrainWorker.poll_status, "c599a0c02141"),
    "RayTrainWorker.init_train_context": (RayTrainWorker.init_train_context, "16b7925f1995"),
    "RayTrainWorker.run_train_fn": (RayTrainWorker.run_train_fn, "c62acb935bf4"),
    "ThreadRunner": (ThreadRunner, "fb4f3268b1f7"),
    "AutoscalingCoordinator.cancel_request": (_AutoscalingCoordinatorActor.cancel_request, "d31e4b1bc3ec"),
    "get_or_create_autoscaling_coordinator": (get_or_create_autoscaling_coordinator, "f27387fedefe"),
    "TrainRunContext": (TrainRunContext, "7fccda66ffdc"),
    "ScalingPolicy": (ScalingPolicy, "63c1f8ac0abc"),
    "_set_torch_distributed_env_vars": (_set_torch_distributed_env_vars, "cd6153d0341a"),
}


def fingerprint(thing: Any) -> str:
    """Of the source, whatever its comments and spacing, and whatever Python reads it."""
    lines = (line.split("#")[0] for line in inspect.getsource(thing).splitlines())
    return hashlib.sha256("".join("".join(line.split()) for line in lines).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", HOOKS)
def test_what_is_replaced_is_what_it_was(name: str) -> None:
    thing, known = HOOKS[name]
    assert fingerprint(thing) == known, f"ray {ray.__version__} changed {name}"


def test_the_control_store_tells_who_owns_an_actor_and_what_it_holds() -> None:
    """What `train/cluster.py` reads of it."""
    from ray.core.generated.common_pb2 import Address, Bundle
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    def fields(table: Any) -> set[str]:
        return {field.name for field in table.DESCRIPTOR.fields}

    assert {"actor_id", "job_id", "state", "address", "owner_address", "is_detached"} <= fields(ActorTableData)
    assert {"required_resources", "node_id", "placement_group_id", "class_name"} <= fields(ActorTableData)
    assert {"bundles", "state", "creator_job_id"} <= fields(PlacementGroupTableData)
    assert {"node_id", "unit_resources"} <= fields(Bundle) and "worker_id" in fields(Address)
    assert ActorTableData.DEAD and PlacementGroupTableData.CREATED


def test_without_a_hook_stock_ray_serves_and_says_so(monkeypatch, caplog) -> None:
    from ray.train.v2._internal.execution import worker_group

    from swav_ray.train import trainer

    monkeypatch.delitem(__import__("sys").modules, "swav_ray.train.elastic", raising=False)
    monkeypatch.delattr(worker_group, "WorkerGroup")
    assert trainer.elastic_trainer() is None
    assert "resizes are Ray's own, slower and without notice" in caplog.text
