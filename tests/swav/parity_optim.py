"""Our LARS steps and learning rates of every recorded run."""

from __future__ import annotations

import numpy as np
import torch

from swav_ray.swav import LARS, warmup_cosine
from swav_ray.swav.feature_queue import usable_queue_length
from tests.swav.golden import EXACT, LARS_STEP, LEARNING_RATE, Comparison, Golden

STEPS = Golden("larc_sgd")
SCHEDULES = Golden("lr_schedule")
WEIGHT_DECAY = {"ref": 1e-6, "big": 1e-2}
PARAMETERS = [name.removeprefix("init_") for name in STEPS.names if name.startswith("init_")]
LARS_CASES = [f"{run}_{name}" for run in WEIGHT_DECAY for name in PARAMETERS]
SCHEDULE_NAMES = [name.removeprefix("lr_") for name in SCHEDULES.names if name.startswith("lr_")]


def run_lars(weight_decay: float, lrs: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every parameter after each step, and the momentum buffers after the last; `none_grad` never gets a gradient."""
    parameters = {name: torch.nn.Parameter(torch.from_numpy(STEPS.input(f"init_{name}").copy())) for name in PARAMETERS}
    optimizer = LARS(parameters.values(), lr=0.0, weight_decay=weight_decay)
    after: dict[str, list[np.ndarray]] = {name: [] for name in PARAMETERS}
    for step, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = float(lr)
        for name, parameter in parameters.items():
            gradient = torch.from_numpy(STEPS.input(f"grad_{name}")[step])
            parameter.grad = None if name == "none_grad" else gradient.clone()
        optimizer.step()
        for name, parameter in parameters.items():
            after[name].append(parameter.detach().numpy().copy())
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }
    return {name: np.stack(values) for name, values in after.items()}, momentum


def lars_comparisons() -> list[Comparison]:
    found = []
    for run, weight_decay in WEIGHT_DECAY.items():
        after, momentum = run_lars(weight_decay, STEPS.input(f"lrs_{run}"))
        for name, value in after.items():
            found.append(STEPS.compare(f"{run}_after_{name}", value, LARS_STEP, case=f"{run}_{name}", quantity="parameters"))
        for name, value in momentum.items():
            found.append(STEPS.compare(f"{run}_momentum_{name}", value, LARS_STEP, case=f"{run}_{name}", quantity="momentum"))
    return found


def schedule_comparisons() -> list[Comparison]:
    found = []
    for name in SCHEDULE_NAMES:
        steps, epochs, warmup_epochs, *rates = (float(value) for value in SCHEDULES.input(f"settings_{name}"))
        settings = dict(zip(("start_warmup", "base_lr", "final_lr"), rates, strict=True))
        lrs = [
            warmup_cosine(step, steps_per_epoch=int(steps), epochs=int(epochs), warmup_epochs=int(warmup_epochs), **settings)
            for step in range(int(steps * epochs))
        ]
        found.append(SCHEDULES.compare(f"lr_{name}", np.array(lrs), LEARNING_RATE, case=name, quantity="learning rate"))
    asked = SCHEDULES.recorded("queue_rounding")[:, :3]
    used = [usable_queue_length(int(length), int(batch * world)) for length, batch, world in asked]
    rounding = np.column_stack([asked, used, np.array(used) // asked[:, 2]])
    found.append(SCHEDULES.compare("queue_rounding", rounding, EXACT, case="queue_rounding", quantity="queue length"))
    return found
