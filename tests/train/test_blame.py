"""Who is to blame for a failed run: a configuration never is for what machines did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from swav_ray.errors import StorageAwayError, UserError
from swav_ray.train.blame import CodeError, code_failed, code_to_blame


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("an argument"), True),
        (UserError("backbone.arch = 'nothing:here': cannot be imported"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("Connection closed by peer"), False),  # of a collective
        (StorageAwayError("s3://bucket: no answer"), False),
        (MemoryError(), False),
        (ActorDiedError(), False),
        (OutOfMemoryError("the node is low on memory"), False),
        (RayTaskError("warm_up", "Traceback", ValueError("an argument")), True),
        (RayTaskError("warm_up", "Traceback", ConnectionResetError()), False),
    ],
)
def test_the_codes_errors_are_told_from_the_machines(error: Exception, code: bool) -> None:
    assert code_failed(error) is code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerGroupError("", {0: RuntimeError("Connection closed by peer"), 1: CodeError("ValueError: an argument")}), True),
        (WorkerGroupError("", {0: RuntimeError("Connection closed by peer"), 1: ActorDiedError()}), False),
        (ControllerError(CodeError("no worker starts: ValueError: an argument")), True),
        (ControllerError(RuntimeError("no worker starts: it was not ready within 300 s")), False),
        (ActorDiedError(), False),  # the controller
    ],
)
def test_a_failed_run_is_judged_by_its_ranks_or_its_start(error: Any, code: bool) -> None:
    assert code_to_blame(error) is code
