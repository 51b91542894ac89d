"""Faults on purpose, for tests and for whoever wants to see a run survive.

    SWAV_RAY_FAULTS='[{"rank": 1, "step": 30, "kind": "kill"}]' swav-ray pretrain ...

The driver reads the variable and hands the faults to the workers, which ask :meth:`Faults.before_step` whether one is due.
Each strikes once in the life of a run, although steps are done again after a restart and whoever it struck is gone: before
it strikes it is claimed, where every process of the run can see it.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swav_ray.data import patience
from swav_ray.data.storage import Storage
from swav_ray.errors import UserError, did_you_mean
from swav_ray.train.notice import drain

VARIABLE = "SWAV_RAY_FAULTS"
EXAMPLE = '[{"rank": 1, "step": 30, "kind": "kill"}]'
# What each kind takes beside rank and step, with its defaults.
KINDS: dict[str, dict[str, float]] = {
    "kill": {},  # SIGKILL of the process
    "hang": {},  # the training thread blocks for ever, the process lives
    "freeze": {},  # SIGSTOP of the process: a silent rank
    "drain": {"seconds": 30.0},  # notice that its node will be gone in so many seconds; nothing takes it away
    "slow": {"seconds": 1.0, "steps": 1},  # sleeps so long before each of so many steps
    "storage_outage": {"seconds": 60.0},  # every try of its to reach storage fails for so long with a ConnectionError
    "full_disk": {},  # its next write of a checkpoint fails with ENOSPC; rank null: of whichever rank writes next
    "corrupt_checkpoint": {},  # bytes of the newest complete checkpoint change, then SIGKILL
}
Claim = Callable[[str], bool]  # whether this process is the first that asks for that name
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """``kind`` strikes ``rank`` (None: whichever comes first) when ``step`` steps are done, before the next one."""

    rank: int | None
    step: int
    kind: str
    options: dict[str, float] = field(default_factory=dict)


class Faults:
    """A schedule of faults: ``Faults().fail_at(1, 30, "kill").fail_at(None, 50, "slow", seconds=2, steps=5)``."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._run: Storage | None = None
        self._claim: Claim | None = None

    def fail_at(self, rank: int | None, step: int, kind: str, **options: float) -> Faults:
        """These faults and one more; `KINDS` lists kinds and options.

        Raises:
            UserError: an unknown kind or option, or a value out of range.
        """
        entry = {"rank": rank, "step": step, "kind": kind, **options}
        return Faults([*self.faults, _checked(f"fault {len(self.faults)}", entry)])

    def to_json(self) -> str:
        return json.dumps([{k: v for k, v in asdict(f).items() if k != "options"} | f.options for f in self.faults])

    @classmethod
    def from_json(cls, text: str) -> Faults:
        """The faults of a JSON list such as `EXAMPLE`.

        Raises:
            UserError: not such a list; says which entry and key.
        """
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{VARIABLE}: not JSON ({error}); give a list like {EXAMPLE}") from None
        if not isinstance(entries, list):
            raise UserError(f"{VARIABLE}: {type(entries).__name__} instead of a list like {EXAMPLE}")
        return cls([_checked(f"{VARIABLE}[{index}]", entry) for index, entry in enumerate(entries)])

    def of_run(self, run: Storage) -> Faults:
        """The same for the worker processes of ``run``; each claims through :func:`claim_in_folder`."""
        bound = Faults(self.faults)
        bound._run, bound._claim = run, claim_in_folder(run)
        return bound

    def before_step(self, rank: int, step: int) -> None:
        """Let what is due strike this process; ``step`` steps are done. Costs nothing where there are none."""
        for index, fault in enumerate(self.faults):
            if fault.rank in (None, rank) and 0 <= step - fault.step < fault.options.get("steps", 1):
                if self._run is None or self._claim is None:
                    raise ValueError("these faults belong to no run: use of_run()")
                # Not the index alone: whoever goes on with a run may give it other faults.
                name = f"{index}-{fault.kind}-rank{'any' if fault.rank is None else fault.rank}-step{step}"
                _strike(fault, self._run, functools.partial(self._claim, name))


def _strike(fault: Fault, run: Storage, claimed: Callable[[], bool]) -> None:
    if fault.kind == "full_disk":  # claimed by the write that fails, since most ranks write none
        _break_storage(functools.partial(_full_disk, (run / "checkpoints").uri, claimed))
        return
    if not claimed():
        return
    logger.warning("%s: %s after step %d in process %d", VARIABLE, fault.kind, fault.step, os.getpid())
    seconds = fault.options.get("seconds", 0.0)
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            threading.Event().wait()
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "drain":
            _drain_here(seconds)
        case "slow":
            time.sleep(seconds)
        case "storage_outage":
            _break_storage(functools.partial(_outage, time.monotonic() + seconds))
        case "corrupt_checkpoint":
            _corrupt_newest(run)
            os.kill(os.getpid(), signal.SIGKILL)


def from_environment() -> Faults:
    """The faults of `SWAV_RAY_FAULTS`, none if it is not set; for the driver, since workers do not see its environment.

    Raises:
        UserError: it is set to something else than faults.
    """
    text = os.environ.get(VARIABLE, "")
    return Faults.from_json(text) if text.strip() else Faults()


def claim_in_folder(run: Storage) -> Claim:
    """Claims as empty files in the run's folder: they live as long as the run does, over all drivers and clusters.

    Not through :class:`Storage`, so that an outage in force does not matter.
    """

    def claim(name: str) -> bool:
        path = (run / "faults").path(name)
        try:
            if not run.is_s3:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).open("xb").close()
            elif run.fs.exists(path):  # asked first for stores that do not know conditional writes
                return False
            else:
                run.fs.pipe_file(path, b"", mode="create")
        except FileExistsError:
            return False
        return True

    return claim


def _drain_here(seconds: float) -> None:
    import ray

    context = ray.get_runtime_context()
    drain(context.gcs_address, context.get_node_id(), seconds, f"a fault of {VARIABLE}")


def _corrupt_newest(run: Storage) -> None:
    from swav_ray.train.checkpoint import Checkpoints

    folder = run / "checkpoints"
    newest = Checkpoints(folder).newest()
    if newest is None:
        raise RuntimeError(f"{VARIABLE}: corrupt_checkpoint finds none in {folder.uri}; give it a later step")
    name = newest[0]
    content = bytearray(folder.read(f"{name}/state.pt"))
    middle = slice(len(content) // 2, len(content) // 2 + 16)
    content[middle] = bytes(byte ^ 0xFF for byte in content[middle])
    folder.write(f"{name}/state.pt", bytes(content))


# Asked about every use of this process's storage: they raise, or say whether they are over.
_storage_faults: list[Callable[[str, bool], bool]] = []


def _break_storage(fault: Callable[[str, bool], bool]) -> None:
    _storage_faults.append(fault)
    patience._fault = _fail_storage


def _fail_storage(address: str, writes: bool) -> None:
    for fault in list(_storage_faults):
        if fault(address, writes):
            _storage_faults.remove(fault)


def _outage(until: float, address: str, writes: bool) -> bool:
    if time.monotonic() < until:
        raise ConnectionError(f"no connection, by {VARIABLE}")
    return True


def _full_disk(checkpoints: str, claimed: Callable[[], bool], address: str, writes: bool) -> bool:
    if not writes or not address.startswith(f"{checkpoints}/"):
        return False
    if claimed():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), address)
    return True  # somebody's write has failed


def _checked(place: str, entry: Any) -> Fault:
    """``entry`` as a fault.

    Raises:
        UserError: it is none; the message begins with ``place`` and the key.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{place}: {entry!r} is no fault; one looks like {EXAMPLE[1:-1]}")
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"{place}.kind: {kind!r} is unknown{hint}; known are {', '.join(KINDS)}")
    keys = ["rank", "step", "kind", *KINDS[kind]]
    for key in entry:
        if key not in keys:
            raise UserError(f"{place}.{key}: {kind} has no such key{did_you_mean(key, keys)}; its keys are {', '.join(keys)}")
    rank: Any = entry.get("rank")
    step: Any = entry.get("step")
    if rank is not None and not _whole(rank, 0):
        raise UserError(f"{place}.rank: {rank!r} is no rank; give 0, 1, ... or null for whichever rank comes first")
    if not _whole(step, 0):
        raise UserError(f"{place}.step: {step!r} is no step; give the number of steps done before it strikes, 0, 1, ...")
    options = {key: entry.get(key, default) for key, default in KINDS[kind].items()}
    if "seconds" in options and not _positive(options["seconds"]):
        raise UserError(f"{place}.seconds: {options['seconds']!r} is no duration; give a number above 0")
    if "steps" in options and not _whole(options["steps"], 1):
        raise UserError(f"{place}.steps: {options['steps']!r} is no number of steps; give 1, 2, ...")
    return Fault(rank, step, kind, options)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
