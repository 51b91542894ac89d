"""The doctor on a store over real HTTP: rights one by one, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_ray.data.storage import Storage
from swav_ray.doctor.check import Check, State
from swav_ray.doctor.nodes import Here
from swav_ray.doctor.store import ask_rights, check_store
from tests.outage import Proxy, reply

DENIED = reply(403, "AccessDenied")


def asked(uri: str) -> dict[str, Check]:
    return {check.name: check for check in check_store(uri, *ask_rights(Here(), uri))}


def test_all_rights(s3: str) -> None:
    before = Storage(s3).find()
    found = asked(f"{s3}/doctor")
    assert [check.state for check in found.values()] == [State.OK] * 2
    assert "from env" in found["credentials"].found
    assert all(f"{step} " in found["storage"].found for step in ("write", "read", "list", "delete"))
    assert Storage(s3).find() == before


@pytest.mark.parametrize(
    ("request_", "step", "right"),
    [
        ("PUT ", "write", "s3:PutObject"),
        ("DELETE ", "delete", "s3:DeleteObject"),
        ("GET /swav-ray-tests?", "list", "s3:ListBucket"),
    ],
)
def test_a_right_that_is_missing(s3: str, s3_proxy: Proxy, request_: str, step: str, right: str) -> None:
    before = Storage(s3).find()
    s3_proxy.answer(request_.encode(), *[DENIED] * 20)
    try:
        found = asked(f"{s3}/doctor")["storage"]
    finally:
        s3_proxy.restore()
    assert found.state is State.FAILURE
    assert f"cannot {step}" in found.found and found.mend.startswith(f"allow {right} on it")
    if step == "delete":
        new = Storage(s3).find().keys() - before.keys()
        left = [f"s3://{Storage(s3).root}/{name}" for name in new]
        assert "left behind" in found.found and any(address in found.found for address in left)
        for name in new:
            Storage(s3).delete(name)
    assert Storage(s3).find() == before


def test_nodes_that_may_write_and_an_asker_that_may_not(s3: str, s3_proxy: Proxy) -> None:
    s3_proxy.answer(b"PUT ", DENIED)  # the first, which is the asker's
    try:
        found = asked(f"{s3}/doctor")["storage"]
    finally:
        s3_proxy.restore()
    assert found.state is State.FAILURE and "this process cannot: PermissionError" in found.found
    assert "give this process the nodes' keys or role" in found.mend


def test_a_node_that_asks_another_store(s3: str) -> None:
    """One that has a bucket of that name too."""
    nowhere = ask_rights(Here(), f"{s3}/elsewhere")[1]["this machine"] | {"seen": False}
    found = check_store(f"{s3}/doctor", "", {"a": nowhere})[-1]
    assert found.state is State.FAILURE and found.found.startswith("a: does not see s3://") and "AWS_ENDPOINT_URL" in found.mend


def test_no_bucket(s3: str) -> None:
    found = asked("s3://no-such-bucket-of-swav-ray/runs")["storage"]
    assert found.state is State.FAILURE and "cannot write" in found.found and "make the bucket" in found.mend


def test_a_store_that_is_away(s3: str, s3_proxy: Proxy) -> None:
    s3_proxy.cut()
    try:
        found = asked(f"{s3}/doctor")["storage"]
    finally:
        s3_proxy.restore()
    assert found.state is State.FAILURE and "AWS_ENDPOINT_URL" in found.mend


def test_a_local_folder_is_made_and_removed(tmp_path: Path) -> None:
    found = asked(str(tmp_path / "runs" / "mine"))
    assert list(found) == ["storage"] and found["storage"].state is State.OK
    assert list(tmp_path.iterdir()) == []


def test_a_local_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    found = asked(str(tmp_path / "runs"))["storage"]
    assert found.state is State.FAILURE and "cannot be written" in found.found and "--storage" in found.mend


def test_a_folder_that_may_not_be_entered(closed: Path) -> None:
    found = asked(str(closed / "runs"))["storage"]
    assert found.state is State.FAILURE and "cannot be written: PermissionError" in found.found
