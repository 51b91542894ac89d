"""A writer killed at every boundary of its writes: what is loaded afterwards is whole, and the next one is written.

A child process saves step 3 into a folder of steps 1 and 2, and dies of SIGKILL before the k-th thing it does to the
store, for every k until it survives. Dying after one thing is dying before the next.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from swav_ray.data import storage
from swav_ray.data.storage import Storage
from swav_ray.train.checkpoint import Checkpoints
from tests.gloo import PROCESSES
from tests.outage import Proxy

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # audit events, each raised before it happens


def state_of(step: int, values: int = 100) -> dict[str, Any]:
    return {"weight": torch.full((values,), float(step)), "step": step}


def about(step: int) -> dict[str, Any]:
    return {"epoch": 0, "row": step}


def save(uri: str, step: int, values: int = 100) -> None:
    checkpoints = Checkpoints(Storage(uri), keep_last=2)
    checkpoints.save_async(step, state_of(step, values), about(step))
    checkpoints.wait()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dies_locally(uri: str, when: int, in_the_middle: bool) -> None:
    count = itertools.count()

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not details[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if next(count) != when:
            return
        if not in_the_middle:
            die()
        elif event == "open":  # the kernel kills whoever writes past the limit, after it wrote up to it
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        else:
            os._exit(3)  # nothing has a middle here

    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    sys.addaudithook(watch)
    save(uri, 3)
    os._exit(0)


def _dies_on_s3(uri: str, when: int, environment: dict[str, str]) -> None:
    import s3fs

    os.environ.update(environment)
    call, count = s3fs.S3FileSystem._call_s3, itertools.count()

    async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(count) == when:
            die()
        return await call(self, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = counted
    save(uri, 3)
    os._exit(0)


def _uploads(uri: str, environment: dict[str, str], values: int) -> None:
    os.environ.update(environment)
    storage.PART_BYTES = 5 * 2**20
    save(uri, 3, values)


def exit_code(target: Any, *args: Any) -> int:
    process = PROCESSES.Process(target=target, args=args)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def loaded(uri: str) -> int:
    """The step of the newest checkpoint, after a look at its content."""
    Checkpoints._in_memory.clear()
    state, manifest = Checkpoints(Storage(uri)).latest()
    step = manifest["step"]
    assert state["step"] == step and (state["weight"] == step).all()
    assert manifest | about(step) == manifest
    return int(step)


def check(uri: str) -> int:
    """The newest is 3 or 2 and whole; the next save works and leaves nothing but what is kept."""
    step = loaded(uri)
    assert step in (2, 3)
    save(uri, 4)
    assert loaded(uri) == 4
    assert Storage(uri).list() == [f"step-{step:09d}", "step-000000004"]
    return step


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Checkpoints of steps 1 to 3."""
    folder = Storage(str(tmp_path_factory.mktemp("before")))
    checkpoints = Checkpoints(folder, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), about(step))
    return folder


def fresh(before: Storage, uri: str, *, steps: int = 2) -> str:
    """A folder of the first ``steps`` checkpoints."""
    for name in before.find():
        if int(name[5:14]) <= steps:
            Storage(uri).write(name, before.read(name))
    return uri


@pytest.mark.parametrize("in_the_middle", [False, True], ids=["between", "in the middle"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_on_a_local_disk(before: Storage, tmp_path: Path, again: bool, in_the_middle: bool) -> None:
    """``again``: a whole checkpoint of step 3 is there from an earlier life, and is replaced."""
    seen: list[int] = []
    middles = 0
    for when in itertools.count():
        uri = fresh(before, str(tmp_path / str(when)), steps=3 if again else 2)
        code = exit_code(_dies_locally, uri, when, in_the_middle)
        if code == 3:
            continue
        if code == 0:
            break
        assert code == (-signal.SIGXFSZ if in_the_middle else -signal.SIGKILL)
        middles += in_the_middle
        if in_the_middle:
            rest = next(Path(uri, "step-000000003").glob(".*"))
            assert rest.stat().st_size == 100, "it did not die in the middle"
        seen.append(check(uri))
    assert loaded(uri) == 3
    if in_the_middle:
        assert middles == 2  # the state and the manifest
    else:
        assert len(seen) > 8
    steps = [step for step, _ in itertools.groupby(seen)]
    assert steps == ([2] if in_the_middle else [3, 2, 3] if again else [2, 3])


def test_on_s3(before: Storage, s3: str) -> None:
    seen: list[int] = []
    for when in itertools.count():
        uri = fresh(before, f"{s3}/killed/{when}")
        code = exit_code(_dies_on_s3, uri, when, dict(os.environ))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        seen.append(check(uri))
    assert loaded(uri) == 3
    assert [step for step, _ in itertools.groupby(seen)] == [2, 3]
    assert len(seen) > 8


@pytest.mark.parametrize(("values", "after"), [(100_000, 200_000), (3_000_000, 2_000_000), (3_000_000, 8_000_000)])
def test_in_the_middle_of_an_upload(before: Storage, s3: str, s3_proxy: Proxy, tmp_path: Path, values: int, after: int) -> None:
    """A state in one request, and one in several parts (of 5 MB)."""
    uri = fresh(before, f"{s3}/killed/{tmp_path.name}")
    writer = PROCESSES.Process(target=_uploads, args=(uri, dict(os.environ), values))
    writer.start()
    assert writer.pid is not None
    s3_proxy.hold(after, lambda: os.kill(writer.pid, signal.SIGKILL))
    writer.join(60)
    s3_proxy.restore()
    s3_proxy.reset()
    assert writer.exitcode == -signal.SIGKILL
    assert not Storage(uri).exists("step-000000003/state.pt")
    assert check(uri) == 2
