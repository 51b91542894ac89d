"""The newest checkpoint on all workers: read by one, or by nobody where a worker still holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from swav_ray.data.storage import Storage
from swav_ray.train.checkpoint import Checkpoints
from swav_ray.train.restore import restore
from swav_ray.train.world import World
from tests.gloo import run_ranks


def _restored(rank: int, folder: str, writer: int | None, damage: bool) -> tuple[float, int, list[str]] | None:
    """Weight and step that this rank got, and which states it read from the store."""
    read, got = Storage.read, list[str]()

    def counted(self: Storage, name: str) -> bytes:
        got.extend([name] if name.endswith("state.pt") else [])
        return read(self, name)

    Storage.read = counted  # type: ignore[method-assign]  this process lives for this call only
    place = Storage(folder)
    if rank == writer:
        for step in (1, 2):
            Checkpoints(place).save(step, {"weight": torch.full((3,), float(step))}, {"epoch": 0, "row": step})
        if damage:
            (place / "step-000000002").write("state.pt", b"junk")
    dist.barrier()
    found = restore(Checkpoints(place), World.join(torch.device("cpu")))
    return None if found is None else (float(found[0]["weight"][0]), found[1]["step"], got)


@pytest.mark.parametrize("writer", [0, 1, 2])
def test_whoever_wrote_it_hands_it_on(tmp_path: Path, writer: int) -> None:
    answers = run_ranks(3, _restored, str(tmp_path), writer, False)
    assert answers == [(2.0, 2, [])] * 3, "nobody reads the store"


def test_one_rank_reads_for_all(tmp_path: Path) -> None:
    for step in (1, 2):
        Checkpoints(Storage(str(tmp_path))).save(step, {"weight": torch.full((3,), float(step))}, {"epoch": 0, "row": step})
    answers = run_ranks(3, _restored, str(tmp_path), None, False)
    assert answers == [(2.0, 2, ["step-000000002/state.pt"]), (2.0, 2, []), (2.0, 2, [])]


def test_a_damaged_one_is_passed_over_by_all(tmp_path: Path) -> None:
    answers = run_ranks(3, _restored, str(tmp_path), 1, True)
    assert [answer[:2] for answer in answers] == [(1.0, 1)] * 3


def test_none_is_none_everywhere(tmp_path: Path) -> None:
    assert run_ranks(2, _restored, str(tmp_path), None, False) == [None, None]
