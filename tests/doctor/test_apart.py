"""Nodes that do not reach each other, in real: a network namespace in which one address cannot be reached."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--net", "--map-root-user"]


@pytest.mark.slow
def test_the_node_that_nobody_reaches_is_named() -> None:
    if not (shutil.which("unshare") and shutil.which("ip")) or subprocess.run([*ALONE, "ip", "link"]).returncode:
        pytest.skip("no network namespaces here")
    command = [*ALONE, sys.executable, "-m", "tests.doctor.apart"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2])
    assert done.stdout, done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["gloo"]
    node = next(line for line in done.stderr.splitlines() if len(line) == 8)
    assert found["state"] == "failure" and "GLOO_SOCKET_IFNAME" in found["mend"]
    assert f"({node}) and the others do not reach each other" in found["found"]
