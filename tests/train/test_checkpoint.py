"""A checkpoint is complete or invisible."""

from __future__ import annotations

import errno
import logging

import pytest
import torch

from swav_ray.data.storage import Storage
from swav_ray.errors import UserError
from swav_ray.train.checkpoint import Checkpoints


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
