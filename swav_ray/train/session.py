"""Joining a Ray cluster, or starting an embedded one, quietly."""

from __future__ import annotations

import logging
import os
from typing import Any

from swav_ray.data.patience import PATIENCE
from swav_ray.errors import UserError, without_credentials
from swav_ray.train.logs import logging_options

TOKEN_HELP = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (`ray get-auth-token` on its head prints the token)"
# Settings of this process that its workers on other machines need too. None is a secret by its name, and one that holds a
# user or a password in its address stays here.
CARRIED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "WANDB_BASE_URL",
    "WANDB_MODE",
    "WANDB_PROJECT",
    PATIENCE,
)


def in_job() -> bool:
    """Whether this process is the entry point of a job submitted to a Ray cluster; its folder is a temporary one."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def carried_environment() -> dict[str, str]:
    """The variables of `CARRIED` that are set here, but for those with credentials in them."""
    found = {name: os.environ.get(name, "") for name in CARRIED}
    return {name: value for name, value in found.items() if value and without_credentials(value) == value}


def connect(*, cpus: float | None = None) -> None:
    """Use the cluster this process belongs to (`RAY_ADDRESS`, as inside `ray job submit`), else start one here.

    Args:
        cpus: logical CPUs an embedded Ray must offer at least; more than the machine has is fine, workers then share.

    Raises:
        UserError: RAY_ADDRESS is set and is no address, no cluster answers there, or none that takes this process: its token,
            its versions, or this machine.
    """
    # Without byte code every Ray worker would compile torch anew on import (RAY_FACTS 5).
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    quiet = logging_options()
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        _join(os.environ["RAY_ADDRESS"], quiet)
        return
    # Ray ends a process that is idle for 1 s where there are more than processors, and one that crops takes seconds to start.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    count = max(os.cpu_count() or 1, int(cpus or 0))
    # "local": a bare init would join whatever cluster was last started on this machine.
    ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    # A job's environment came with it, and its cluster's nodes have their own.
    carried = {} if in_job() else carried_environment()
    environment: dict[str, Any] = {"runtime_env": {"env_vars": carried}} if carried else {}
    shown = f"RAY_ADDRESS = {without_credentials(address)}"
    try:
        ray.init(**quiet, **environment)
    except (ConnectionError, AuthenticationError) as error:  # Ray does not always tell these apart
        if "No node info found" in str(error.__cause__):
            raise UserError(
                f"{shown}: the cluster answers, but no node of it runs on this machine; run this on a node, or "
                "`swav-ray submit --address http://HEAD:8265 -- COMMAND`"
            ) from None
        raise UserError(
            f"{shown}: no Ray cluster answers there (unset it to run here), or it wants another token than "
            f"the one given here; {TOKEN_HELP}"
        ) from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(without_credentials(str(error)).split())[:300]
        other = reason.startswith("Version mismatch")
        mend = "use the same Python and Ray as the cluster" if other else "give HOST:6379, or auto on a node of the cluster"
        raise UserError(f"{shown}: {reason}; {mend}") from None
