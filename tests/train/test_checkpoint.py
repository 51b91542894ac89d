"""A checkpoint is complete or invisible, and the training does not wait for it."""

from __future__ import annotations

import errno
import json
import logging
import threading
from typing import Any

import pytest
import torch
from torch import nn

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.swav import LARS
from swav_ray.train.checkpoint import Checkpoints, snapshot
from tests.gloo import run_ranks
from tests.train.small import small_config, small_shards, train_here


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "checkpoints"))
    return Storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def _save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((3,), float(step))}, {"epoch": 0})


def test_the_newest_is_loaded_and_old_ones_leave(folder):
    checkpoints = Checkpoints(folder, keep_last=2)
    assert checkpoints.latest() is None
    _save(checkpoints, 1, 2, 3)
    state, manifest = checkpoints.latest()
    assert manifest["step"] == 3 and state["weight"].tolist() == [3.0] * 3
    assert folder.list() == ["step-000000002", "step-000000003"]


@pytest.mark.parametrize("damage", ["no manifest", "no state", "truncated state", "manifest not JSON", "foreign format"])
def test_a_part_is_passed_over_for_the_one_before(folder, damage, caplog):
    checkpoints = Checkpoints(folder)
    _save(checkpoints, 1, 2)
    newest = folder / "step-000000002"
    if damage == "no manifest":
        newest.delete("manifest.json")
    elif damage == "no state":
        newest.delete("state.pt")
    elif damage == "truncated state":
        newest.write("state.pt", newest.read("state.pt")[:-1])
    elif damage == "manifest not JSON":
        newest.write("manifest.json", b"{")
    else:
        newest.write("manifest.json", b'{"format": 99}')
    with caplog.at_level(logging.WARNING):
        state, manifest = checkpoints.latest()
    assert manifest["step"] == 1 and state["weight"].tolist() == [1.0] * 3
    assert damage == "no manifest" or "the one before it is used" in caplog.text


def test_a_damaged_one_is_replaced_when_its_step_comes_again(folder):
    checkpoints = Checkpoints(folder)
    _save(checkpoints, 1, 2)
    (folder / "step-000000002").write("state.pt", b"junk")
    _save(checkpoints, 2)
    assert checkpoints.latest()[1]["step"] == 2


class Watched(Storage):
    """A folder that notes what is done to it, and whose writes wait while `gate` is closed."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        self.done: list[str] = []

    def read(self, name: str) -> bytes:
        self.done.append(f"read {name}")
        return super().read(name)

    def write(self, name: str, content: bytes) -> None:
        self.reached.set()
        assert self.gate.wait(30)
        self.done.append(f"write {name}")
        super().write(name, content)

    def delete(self, name: str) -> None:
        self.done.append(f"delete {name}")
        super().delete(name)


@pytest.fixture
def watched(folder: Storage) -> Watched:
    return Watched(folder.uri)


def _hand_over(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save_async(step, {"weight": torch.full((3,), float(step))}, {"epoch": 0})


def test_training_goes_on_while_the_newest_waits_for_its_turn(watched):
    checkpoints = Checkpoints(watched, keep_last=9)
    watched.gate.clear()
    _hand_over(checkpoints, 1)
    assert watched.reached.wait(30)
    _hand_over(checkpoints, 2, 3, 4)
    assert not checkpoints.settled(0) and checkpoints.failure() is None and checkpoints.latest() is None
    watched.gate.set()
    checkpoints.wait()
    assert checkpoints.settled(0)
    assert watched.list() == ["step-000000001", "step-000000004"], "2 and 3 were replaced by newer ones"
    assert checkpoints.latest()[0]["weight"].tolist() == [4.0] * 3
    _hand_over(checkpoints, 5)
    checkpoints.close()
    assert checkpoints.latest()[1]["step"] == 5


def test_what_is_saved_is_what_was_handed_over(watched):
    """The model trains on while its state is written."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = LARS(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "queue": [torch.ones(2)], "epoch": 1}
    before = pickled(state)
    checkpoints = Checkpoints(watched)
    watched.gate.clear()
    checkpoints.save_async(1, state, {})
    with torch.no_grad():
        for tensor in (*model.state_dict().values(), state["queue"][0]):
            tensor.add_(1)
    optimizer.step()
    state["epoch"] = 2
    watched.gate.set()
    checkpoints.wait()
    found = checkpoints.latest()[0]
    assert pickled(found) == before
    assert pickled(state) != before
    assert found["model"]["0.weight"].is_contiguous(memory_format=torch.channels_last)
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).load_state_dict(found["model"])


def pickled(state: object) -> list[object]:
    """All values of a state in order, comparable."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return [(key, pickled(value)) for key, value in state.items()]
    return [pickled(value) for value in state] if isinstance(state, list | tuple) else state


def test_a_snapshot_shares_nothing():
    big = torch.arange(1000.0)
    state = {
        "part": big[3:5],
        "again": big[3:5],
        "nested": [({"deep": big[:1]},)],
        "grad": big.clone().requires_grad_(),
        "n": 3,
    }
    copied = snapshot(state)
    assert pickled(copied) == pickled(state)
    assert copied["part"].untyped_storage().nbytes() == 8, "a view does not bring what it is a part of"
    assert not copied["grad"].requires_grad
    big.zero_()
    assert copied["part"].tolist() == [3.0, 4.0] and copied["nested"][0][0]["deep"].tolist() == [0.0]
    assert state["part"].tolist() == [0.0, 0.0]


def test_a_failed_write_is_told_and_a_good_one_after_it_mends_it(tmp_path):
    folder = Storage(str(tmp_path / "checkpoints"))
    checkpoints = Checkpoints(folder)
    _save(checkpoints, 1)
    (tmp_path / "checkpoints").rename(tmp_path / "aside")
    (tmp_path / "checkpoints").write_bytes(b"a file where the folder was")
    _hand_over(checkpoints, 2)
    with pytest.raises(UserError, match=r"step-000000002: checkpoint cannot be written: .*; earlier checkpoints are kept"):
        checkpoints.wait()
    assert "step-000000002: checkpoint cannot be written" in checkpoints.failure()
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "aside").rename(tmp_path / "checkpoints")
    assert checkpoints.latest()[1]["step"] == 1
    _hand_over(checkpoints, 3)
    checkpoints.wait()
    assert checkpoints.failure() is None
    assert [name for name, _ in checkpoints._good(checkpoints._names())] == ["step-000000003", "step-000000001"]


def test_the_newest_is_not_read_by_the_process_that_wrote_it(watched):
    checkpoints = Checkpoints(watched)
    _save(checkpoints, 1, 2)
    watched.done.clear()
    state, manifest = Checkpoints(watched).latest()  # of a training that starts anew in this process
    assert (state["weight"].tolist(), manifest["step"]) == ([2.0] * 3, 2)
    assert watched.done == ["read step-000000002/manifest.json"]
    name, manifest = checkpoints.newest()
    assert (name, checkpoints.newest(before=name)[0]) == ("step-000000002", "step-000000001")
    assert checkpoints.newest(before="step-000000001") is None
    content = checkpoints.state_bytes(name, manifest)
    assert len(content) == manifest["files"]["state.pt"]["bytes"]

    Checkpoints(Storage(watched.uri)).save(3, {"weight": torch.zeros(1)}, {})
    assert checkpoints.latest()[1]["step"] == 3, "names and manifests are the store's"
    watched.done.clear()
    assert checkpoints.state_bytes(name, manifest) == content
    assert watched.done == ["read step-000000002/state.pt"]


def test_memory_is_not_believed_against_the_store(watched):
    checkpoints = Checkpoints(watched)
    _save(checkpoints, 1, 2)
    content = watched.read("step-000000002/state.pt")
    watched.write("step-000000002/state.pt", content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    assert checkpoints.latest()[1]["step"] == 1


def test_two_folders_stay_in_memory(tmp_path):
    for name in "abc":
        _save(Checkpoints(Storage(str(tmp_path / name))), 1)
    kept = [uri for uri in Checkpoints._in_memory if uri.startswith(str(tmp_path))]
    assert kept == [str(tmp_path / "b"), str(tmp_path / "c")]


def _epochs(checkpoints: Checkpoints, *places: tuple[int, int, int]) -> None:
    for step, epoch, row in places:
        checkpoints.save(step, {"weight": torch.zeros(1)}, {"epoch": epoch, "row": row})


def test_ends_of_every_second_epoch_are_kept_for_ever(folder):
    places = [(1, 0, 5), (2, 1, 0), (3, 1, 5), (4, 2, 0), (5, 2, 5), (6, 3, 0), (7, 4, 0), (8, 4, 5), (9, 5, 0), (10, 5, 5)]
    _epochs(Checkpoints(folder, keep_last=2, keep_every=2), *places[:6])
    _epochs(Checkpoints(folder, keep_last=2, keep_every=2), *places[6:])  # a later life of the run
    assert folder.list() == [f"step-{step:09d}" for step in (4, 7, 9, 10)]
    _epochs(Checkpoints(folder, keep_last=1), (11, 5, 6))  # the wish is over
    assert folder.list() == ["step-000000011"]


def test_the_manifest_leaves_first(watched):
    checkpoints = Checkpoints(watched, keep_last=1)
    _save(checkpoints, 1)
    watched.done.clear()
    _save(checkpoints, 2)
    assert watched.done == [
        "write step-000000002/state.pt",
        "write step-000000002/manifest.json",
        "read step-000000001/manifest.json",
        "delete step-000000001/manifest.json",
        "delete step-000000001",
    ]


def test_rests_are_swept_and_what_is_not_understood_stays(folder, caplog):
    checkpoints = Checkpoints(folder, keep_last=2)
    _save(checkpoints, 1)
    folder.write("step-000000002/state.pt", b"half")  # killed before its manifest
    folder.write("step-000000003/manifest.json", json.dumps({"format": 99}).encode())  # of a version to come
    folder.write("step-000000009/state.pt", b"half")  # newer than anything complete: perhaps being written
    folder.write("notes.txt", b"the user's")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest()[1]["step"] == 1
    assert "step-000000009: incomplete, it has no manifest.json; the one before it is used" in caplog.text
    assert "step-000000003: manifest.json cannot be used (of format 99, this version reads 1)" in caplog.text
    _save(checkpoints, 4, 5)
    names = ["step-000000003", "step-000000004", "step-000000005", "step-000000009"]
    assert folder.list() == ["notes.txt", *names]
    _save(checkpoints, 9)
    assert folder.list() == ["notes.txt", "step-000000003", "step-000000005", "step-000000009"]


def test_a_damaged_one_does_not_take_the_place_of_a_good_one(folder):
    checkpoints = Checkpoints(folder, keep_last=2)
    _save(checkpoints, 1, 2)
    (folder / "step-000000002").write("state.pt", b"junk")
    again = Checkpoints(folder, keep_last=2)
    assert again.latest()[1]["step"] == 1
    _save(again, 3)
    assert folder.list() == ["step-000000001", "step-000000002", "step-000000003"]


def test_the_one_read_is_removed_by_a_living_writer(folder):
    """Whoever looks while a run goes on (`swav-ray probe`) gets the one that replaced it."""
    writer = Checkpoints(folder, keep_last=1)
    _save(writer, 1)
    Checkpoints._in_memory.clear()

    class Slow(Storage):
        def read(self, name: str) -> bytes:
            if name == "step-000000001/state.pt":
                _save(writer, 2)
            return super().read(name)

    assert Checkpoints(Slow(folder.uri)).latest()[1]["step"] == 2


def _train_without_a_place(rank: int, train: str, storage: str) -> str:
    """What its training ends with. The write of step 4 begins with step 5: else it may fail before that meeting is over."""
    from swav_ray.train.loop import Training
    from swav_ray.train.world import World

    going_on, commit, train_step = threading.Event(), Checkpoints._commit, Training._train_step

    def commit_late(self: Checkpoints, job: Any) -> None:
        assert going_on.wait(60)
        commit(self, job)

    def train_on(self: Training, batch: Any) -> None:
        if self.step >= 4:
            going_on.set()
        train_step(self, batch)

    Checkpoints._commit, Training._train_step = commit_late, train_on  # in a process of its own
    config = small_config(train, storage, "run")
    try:
        train_here(config, world=World.join(torch.device("cpu")))
    except UserError as error:
        return str(error)
    return "no error"


def test_a_failed_write_ends_the_run_on_every_worker_alike(tmp_path):
    """The write of step 4 fails behind the training's back; all workers hear of it when they meet for step 8."""
    train = small_shards(str(tmp_path / "shards"))
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "checkpoints").write_bytes(b"a file where the folder should be")
    errors = run_ranks(2, _train_without_a_place, train, str(tmp_path / "runs"))
    assert errors[0] == errors[1]
    assert "run/checkpoints/step-000000004: checkpoint cannot be written: " in errors[0]
    lines = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9)), "and what was measured is on disk"


@pytest.mark.parametrize("failing", ["state.pt", "manifest.json"])
def test_no_space_left_is_one_line_and_loses_nothing(tmp_path, monkeypatch, failing):
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    _save(checkpoints, 1)
    write = Storage.write

    def full(self: Storage, name: str, content: bytes) -> None:
        if name.endswith(failing):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are kept"):
        _save(checkpoints, 2)
    assert checkpoints.latest()[1]["step"] == 1


def test_loading_executes_nothing(tmp_path):
    """A checkpoint with a pickle that would run code is refused, not run."""

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    checkpoints = Checkpoints(Storage(str(tmp_path)))
    checkpoints.save(1, {"weight": Trap()}, {})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.latest()
    assert not tmp_path.joinpath("ran").exists()
