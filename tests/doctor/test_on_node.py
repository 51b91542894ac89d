"""What is asked on a node, and that it goes there as code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ray.cloudpickle

from swav_ray.doctor import on_node
from swav_ray.doctor.nodes import hand
from swav_ray.train.network import GLOO

WITHOUT = """
import pickle, sys
sys.modules["swav_ray"] = None  # importing it, or a part of it, fails
print(pickle.load(sys.stdin.buffer)(0, 1, "127.0.0.1:0", "gloo", 30))
"""


def test_an_all_reduce_needs_no_swav_ray_there() -> None:
    hand()  # which says what goes along
    code = ray.cloudpickle.dumps(on_node.all_reduce)
    done = subprocess.run([sys.executable, "-c", WITHOUT], input=code, capture_output=True)
    assert done.returncode == 0 and float(done.stdout) >= 0, done.stderr.decode()


def test_an_all_reduce_goes_over_the_network_by_which_ray_knows_the_node(monkeypatch) -> None:
    monkeypatch.delenv(GLOO, raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    assert on_node.all_reduce(0, 1, on_node.free_address("127.0.0.1"), "gloo", 30) >= 0
    assert os.environ[GLOO] == "lo"


def test_the_room_of_a_folder_that_may_not_be_entered_is_that_of_its_disk(closed: Path) -> None:
    room = on_node.room(str(closed / "runs"))
    assert room is not None and room["total"] > 0


def test_a_folder_at_the_top_that_is_not_there_would_lie_on_the_first_disk() -> None:
    """A missing one is no object store without end."""
    room, disk = on_node.room("/no-such-folder-of-swav-ray/runs"), shutil.disk_usage("/")
    assert room is not None and room["total"] == disk.total
