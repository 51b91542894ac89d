"""Injected faults, each in a real process: they strike at their rank and step, once in the life of a run."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from swav_ray.data import patience
from swav_ray.data.patience import PATIENCE
from swav_ray.data.shards import Shards
from swav_ray.data.storage import Storage
from swav_ray.errors import StorageAwayError, UserError
from swav_ray.train import faults as faults_module
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.faults import KINDS, Faults, claim_in_folder, from_environment
from tests.gloo import run_ranks
from tests.train.small import small_shards

STEPS = 4
PROCESSES = multiprocessing.get_context("forkserver")


def _live(pipe: Connection, questions: Connection, faults: str, run: str, rank: int) -> None:
    """A worker that trains STEPS steps of nothing; a second thread answers where the first one is."""
    trainer = threading.main_thread()

    def answer() -> None:
        while True:
            questions.recv()
            frame, names = sys._current_frames()[trainer.ident], []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            questions.send(names)

    threading.Thread(target=answer, daemon=True).start()
    ours = Faults.from_json(faults).of_run(Storage(run))
    for step in range(STEPS):
        ours.before_step(rank, step)
        pipe.send(step)
    pipe.send("end")


class Life:
    """A process of :func:`_live`."""

    def __init__(self, faults: Faults, run: Storage, rank: int = 1) -> None:
        self.pipe, theirs = PROCESSES.Pipe(duplex=False)
        self.questions, answers = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_live, args=(theirs, answers, faults.to_json(), run.uri, rank), daemon=True)
        self.process.start()
        theirs.close()
        answers.close()

    def steps(self) -> list[Any]:
        """What it did before it ended, by itself or not."""
        done = []
        try:
            while self.pipe.poll(60):
                done.append(self.pipe.recv())
        except EOFError:
            self.process.join()
            return done
        raise AssertionError(f"no end in time after {done}")

    def next(self) -> Any:
        assert self.pipe.poll(60)
        return self.pipe.recv()

    def where(self) -> list[str]:
        """Functions its training thread is in, innermost first."""
        self.questions.send("where")
        assert self.questions.poll(60)
        return self.questions.recv()


@contextmanager
def life(faults: Faults, run: Storage, rank: int = 1) -> Iterator[Life]:
    one = Life(faults, run, rank)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def assert_lives_on(faults: Faults, run: Storage, rank: int = 1) -> None:
    """The same steps again, in another process, see no fault."""
    with life(faults, run, rank) as again:
        assert again.steps() == [*range(STEPS), "end"]
        assert again.process.exitcode == 0


def test_kill_strikes_its_rank_before_its_step_once(run: Storage) -> None:
    faults = Faults().fail_at(1, 2, "kill")
    with life(faults, run, rank=0) as other, life(faults, run, rank=1) as struck:
        assert other.steps() == [*range(STEPS), "end"]
        assert struck.steps() == [0, 1]
        assert struck.process.exitcode == -signal.SIGKILL
    assert_lives_on(faults, run)


def test_whichever_rank_comes_first_is_struck_and_no_other(run: Storage) -> None:
    faults = Faults().fail_at(None, 1, "kill")
    with life(faults, run, 0) as first, life(faults, run, 1) as second, life(faults, run, 2) as third:
        ends = sorted(len(one.steps()) for one in (first, second, third))
    assert ends == [1, STEPS + 1, STEPS + 1]
    assert_lives_on(faults, run, 0)


def test_two_equal_faults_strike_twice(run: Storage) -> None:
    faults = Faults().fail_at(1, 2, "kill").fail_at(1, 2, "kill")
    for _ in range(2):
        with life(faults, run) as struck:
            assert struck.steps() == [0, 1]
    assert_lives_on(faults, run)


def test_other_faults_for_a_run_that_had_some_do_strike(run: Storage) -> None:
    for step in (1, 2):
        with life(Faults().fail_at(1, step, "kill"), run) as struck:
            assert struck.steps() == list(range(step))


def test_hang_blocks_the_training_thread_of_a_live_process(run: Storage) -> None:
    faults = Faults().fail_at(1, 2, "hang")
    with life(faults, run) as struck:
        assert [struck.next(), struck.next()] == [0, 1]
        until(lambda: "_strike" in (names := struck.where()) and names[0] == "wait")
        assert not struck.pipe.poll(0)
        assert struck.process.is_alive()
    assert_lives_on(faults, run)


def test_freeze_stops_the_whole_process(run: Storage) -> None:
    faults = Faults().fail_at(1, 2, "freeze")
    with life(faults, run) as struck:
        assert [struck.next(), struck.next()] == [0, 1]
        until(lambda: psutil.Process(struck.process.pid).status() == psutil.STATUS_STOPPED)
        struck.questions.send("where")
        assert not struck.questions.poll(0.2)
        os.kill(struck.process.pid, signal.SIGCONT)
        assert struck.steps() == [2, 3, "end"]
    assert_lives_on(faults, run)


def test_corrupt_checkpoint_spoils_the_newest_and_kills(run: Storage) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {"weight": torch.arange(1000.0)}, {})
    faults = Faults().fail_at(1, 2, "corrupt_checkpoint")
    with life(faults, run) as struck:
        assert struck.steps() == [0, 1]
        assert struck.process.exitcode == -signal.SIGKILL
    assert checkpoints.newest()[0] == "step-000000002"
    assert checkpoints.latest()[1]["step"] == 1
    assert_lives_on(faults, run)


def test_corrupt_checkpoint_says_so_when_there_is_none(run: Storage) -> None:
    with pytest.raises(RuntimeError, match=r"corrupt_checkpoint finds none in .*; give it a later step"):
        Faults().fail_at(0, 0, "corrupt_checkpoint").of_run(run).before_step(0, 0)


def _seconds_of_steps(rank: int, faults: str, run: str) -> list[float]:
    ours, times = Faults.from_json(faults).of_run(Storage(run)), []
    for step in range(STEPS):
        start = time.monotonic()
        ours.before_step(rank, step)
        times.append(time.monotonic() - start)
    return times


def test_slow_sleeps_before_each_of_its_steps_once(run: Storage) -> None:
    faults = Faults().fail_at(1, 1, "slow", seconds=0.5, steps=2).to_json()
    fast, slow = run_ranks(2, _seconds_of_steps, faults, run.uri)
    assert [seconds >= 0.5 for seconds in slow] == [False, True, True, False]
    assert max(fast) < 0.5
    assert max(run_ranks(2, _seconds_of_steps, faults, run.uri)[1]) < 0.5


def _storage_of_rank(rank: int, faults: str, run: str) -> list[str]:
    """Addresses of operations that failed in an outage; returns when it is over."""
    os.environ[PATIENCE] = "0"
    shards = Shards(small_shards(f"{run}/rank{rank}/shards"))
    storage = Storage(run) / f"rank{rank}"
    storage.write("file", b"x")
    Faults.from_json(faults).of_run(Storage(run)).before_step(rank, 0)
    local = Path(storage.uri) / "local"
    local.write_bytes(b"x")
    operations: list[Callable[[], Any]] = [
        lambda: storage.exists("exists"),
        lambda: storage.read("file"),
        lambda: storage.list("list"),
        lambda: storage.write("write", b"y"),
        lambda: storage.put(local, "put"),
        lambda: storage.delete("delete"),
        lambda: shards.read_group(0),
    ]
    failed = []
    for operation in operations:
        try:
            operation()
        except StorageAwayError as error:
            assert isinstance(error.__cause__, ConnectionError)
            failed.append(str(error).split(": ")[0].rsplit("/", 1)[-1])
    os.environ[PATIENCE] = "60"
    storage.write("file", b"z")  # waits for its end
    return failed


def test_storage_outage_fails_every_operation_of_its_process_for_its_time(run: Storage) -> None:
    faults = Faults().fail_at(1, 0, "storage_outage", seconds=3).to_json()
    spared, struck = run_ranks(2, _storage_of_rank, faults, run.uri)
    assert spared == []
    assert struck == ["exists", "file", "list", "write", "put", "delete", "part-00000.parquet"]
    assert (run / "rank1").read("file") == b"z"
    assert run_ranks(2, _storage_of_rank, faults, run.uri)[1] == []


def _saves_of_rank(rank: int, faults: str, run: str) -> list[Any]:
    """What came of three checkpoints by rank 0, after uses of storage that are no writes of one."""
    storage, outcomes = Storage(run), list[Any]()
    if rank == 0:
        Checkpoints(storage / "checkpoints").save(0, {}, {})
    Faults.from_json(faults).of_run(storage).before_step(rank, 0)
    if rank:
        return []
    storage.write("metrics", b"x")
    assert Checkpoints(storage / "checkpoints").latest() is not None
    for step in (1, 2, 3):
        try:
            Checkpoints(storage / "checkpoints").save(step, {}, {})
            outcomes.append("saved")
        except UserError as error:
            outcomes.append(os.strerror(errno.ENOSPC) in str(error))
    assert faults_module._storage_faults == []  # what is over is asked no more
    return outcomes


@pytest.mark.parametrize("rank", [0, None])
def test_full_disk_fails_the_next_write_of_a_checkpoint(run: Storage, rank: int | None) -> None:
    faults = Faults().fail_at(rank, 0, "full_disk").to_json()
    assert run_ranks(2, _saves_of_rank, faults, run.uri)[0] == [True, "saved", "saved"]
    assert run_ranks(2, _saves_of_rank, faults, run.uri)[0] == ["saved"] * 3


def test_full_disk_fails_whatever_way_of_writing_to_s3(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_fault", None)  # and afterwards again
    run, local = Storage(s3) / "full-disk", tmp_path / "local"
    local.write_bytes(b"x")
    folder = run / "checkpoints"
    for step, write in enumerate([lambda: folder.write("a", b"x"), lambda: folder.put(local, "a")]):
        Faults().fail_at(0, step, "full_disk").of_run(run).before_step(0, step)
        assert not folder.exists("a")
        with pytest.raises(OSError, match="No space left"):
            write()
        write()
        folder.delete("a")


def _claims_of_rank(rank: int, run: str) -> list[str]:
    claim = claim_in_folder(Storage(run))
    return [name for name in map(str, range(50)) if claim(name)]


def test_a_claim_is_won_by_one_process(run: Storage) -> None:
    won = run_ranks(3, _claims_of_rank, run.uri)
    assert sorted(name for names in won for name in names) == sorted(map(str, range(50)))


def test_a_claim_on_s3_is_won_once(s3: str) -> None:
    run = Storage(s3) / "faults-of-a-run"
    first, second = claim_in_folder(run), claim_in_folder(run)
    assert [first("a"), second("a"), first("a"), second("b")] == [True, False, False, True]


def test_a_claim_on_s3_holds_against_one_that_asked_before_it(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Storage(s3) / "faults-of-another-run"
    assert claim_in_folder(run)("a")
    monkeypatch.setattr(run.fs, "exists", lambda _: False)  # what the slower of two saw
    assert not claim_in_folder(run)("a")


def test_a_claim_on_a_store_without_conditional_writes_is_won_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Storage(s3) / "faults-of-a-third-run"
    pipe_file = run.fs.pipe_file
    monkeypatch.setattr(run.fs, "pipe_file", lambda path, content, mode: pipe_file(path, content))
    assert [claim_in_folder(run)("a") for _ in range(2)] == [True, False]


def test_no_faults_need_no_run() -> None:
    Faults().before_step(0, 0)
    with pytest.raises(ValueError, match="use of_run"):
        Faults().fail_at(0, 0, "kill").before_step(0, 0)


def test_there_and_back_through_json_with_defaults() -> None:
    faults = Faults()
    for step, kind in enumerate(KINDS):
        faults = faults.fail_at(step % 2 or None, step, kind)
    assert Faults.from_json(faults.to_json()).faults == faults.faults
    assert Faults.from_json('[{"step": 3, "kind": "drain"}]').faults == Faults().fail_at(None, 3, "drain", seconds=30).faults


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in (None, "", " "):
        monkeypatch.delenv("SWAV_RAY_FAULTS", raising=False)
        if nothing is not None:
            monkeypatch.setenv("SWAV_RAY_FAULTS", nothing)
        assert from_environment().faults == ()
    monkeypatch.setenv("SWAV_RAY_FAULTS", '[{"rank": 1, "step": 30, "kind": "kill"}]')
    assert from_environment().faults == Faults().fail_at(1, 30, "kill").faults


KNOWN = ", ".join(KINDS)
ONE = '{"rank": 1, "step": 30, "kind": "kill"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", f"SWAV_RAY_FAULTS: not JSON (Expecting property name enclosed in double quotes: line 1 column 3 (char 2)); "
         f"give a list like [{ONE}]"),
        (ONE, f"SWAV_RAY_FAULTS: dict instead of a list like [{ONE}]"),
        ("[3]", f"SWAV_RAY_FAULTS[0]: 3 is no fault; one looks like {ONE}"),
        (f'[{ONE}, {{"step": 1, "kind": "kil"}}]',
         f"SWAV_RAY_FAULTS[1].kind: 'kil' is unknown (did you mean 'kill'?); known are {KNOWN}"),
        ('[{"step": 1}]', f"SWAV_RAY_FAULTS[0].kind: None is unknown; known are {KNOWN}"),
        ('[{"step": 1, "kind": ["kill"]}]',
         f"SWAV_RAY_FAULTS[0].kind: ['kill'] is unknown (did you mean 'kill'?); known are {KNOWN}"),
        ('[{"stp": 1, "kind": "kill"}]',
         "SWAV_RAY_FAULTS[0].stp: kill has no such key (did you mean 'step'?); its keys are rank, step, kind"),
        ('[{"step": 1, "kind": "drain", "steps": 3}]',
         "SWAV_RAY_FAULTS[0].steps: drain has no such key (did you mean 'step'?); its keys are rank, step, kind, seconds"),
        ('[{"kind": "kill"}]',
         "SWAV_RAY_FAULTS[0].step: None is no step; give the number of steps done before it strikes, 0, 1, ..."),
        ('[{"rank": -1, "step": 0, "kind": "kill"}]',
         "SWAV_RAY_FAULTS[0].rank: -1 is no rank; give 0, 1, ... or null for whichever rank comes first"),
        ('[{"rank": true, "step": 0, "kind": "kill"}]',
         "SWAV_RAY_FAULTS[0].rank: True is no rank; give 0, 1, ... or null for whichever rank comes first"),
        ('[{"step": 0, "kind": "slow", "seconds": NaN}]',
         "SWAV_RAY_FAULTS[0].seconds: nan is no duration; give a number above 0"),
        ('[{"step": 0, "kind": "slow", "steps": 1.5}]',
         "SWAV_RAY_FAULTS[0].steps: 1.5 is no number of steps; give 1, 2, ..."),
    ],
)  # fmt: skip
def test_a_bad_schedule_is_one_clear_line(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_RAY_FAULTS", text)
    with pytest.raises(UserError) as caught:
        from_environment()
    assert str(caught.value) == message


def test_a_deep_json_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="not JSON"):
        Faults.from_json("[" * 100_000)


def test_fail_at_checks_the_same() -> None:
    with pytest.raises(UserError) as caught:
        Faults().fail_at(0, 1, "kill").fail_at(0, 1, "slow", second=3)
    line = "fault 1.second: slow has no such key (did you mean 'seconds'?); its keys are rank, step, kind, seconds, steps"
    assert str(caught.value) == line


def test_to_json_is_what_a_user_writes() -> None:
    text = Faults().fail_at(None, 5, "slow", seconds=2).to_json()
    assert json.loads(text) == [{"rank": None, "step": 5, "kind": "slow", "seconds": 2, "steps": 1}]
