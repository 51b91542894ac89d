"""A spot node hears from its cloud: metadata services on loopback. Telling Ray: a cluster that is not there, another's node, a
control store that is away. What Ray then does: `test_elastic.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from benchmarks.cluster import LocalCluster
from swav_ray.errors import UserError
from swav_ray.train import notice
from tests.commands import run_command
from tests.outage import Proxy

TOKEN = "a-token-of-the-metadata-service"


class Metadata:
    """What a machine's metadata service answers; each answer is given once, the last for ever."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def answer(self, path: str) -> tuple[int, str]:
        self.asked.append(path)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def served(metadata: Metadata) -> Iterator[str]:
    """``host:port`` of a service that wants what the clouds want: Amazon a token of its own, Google a header."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self._say(*((200, TOKEN) if wanted else (400, "")))

        def do_GET(self) -> None:
            known = self.headers["X-aws-ec2-metadata-token"] == TOKEN or self.headers["Metadata-Flavor"] == "Google"
            self._say(*(metadata.answer(self.path) if known else (401, "")))

        def _say(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "LOOK_SECONDS", 0.01)


def taken_in(seconds: float) -> tuple[int, str]:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return 200, f'{{"action": "terminate", "time": "{at:%Y-%m-%dT%H:%M:%SZ}"}}'


def test_amazon_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Metadata((404, ""), (404, ""), (503, "busy"), taken_in(120))
    with served(metadata) as place:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}/")
        assert notice.wait_for_notice("aws") == pytest.approx(119, abs=2)
    assert metadata.asked == ["/latest/meta-data/spot/instance-action"] * 4


def test_google_says_that_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Metadata((200, "FALSE"), (200, "TRUE"))
    with served(metadata) as place:
        monkeypatch.setenv("GCE_METADATA_HOST", place)
        assert notice.wait_for_notice("gcp") == notice.GCP_SECONDS
    assert metadata.asked == ["/computeMetadata/v1/instance/preempted"] * 2


def test_a_notice_that_is_late_leaves_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Metadata(taken_in(-30))) as place:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}")
        assert notice.wait_for_notice("aws") == 0


@pytest.mark.parametrize("cloud", notice.CLOUDS)
def test_elsewhere_there_is_nobody_to_ask(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Metadata((200, ""))) as place:
        pass  # a port that nobody listens at any more
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}")
    monkeypatch.setenv("GCE_METADATA_HOST", place)
    with pytest.raises(UserError, match=f"--on-notice {cloud}: no metadata service of that cloud answers here"):
        notice.wait_for_notice(cloud)


def test_a_machine_without_a_node_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="no Ray node was started on this machine"):
        notice.this_node()


@pytest.mark.parametrize(("options", "says"), [(["--on-notice", "azure"], "aws or gcp"), (["--seconds", "-1"], "--seconds -1")])
def test_what_cannot_be_is_refused(
    options: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_command(monkeypatch, capsys, "drain", *options)
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as nodes:
        yield nodes


def typed(address: str, *options: str) -> tuple[int, str]:
    """`swav-ray drain` in a process that does not wait half a minute for a cluster to answer."""
    given = {"RAY_ADDRESS": address, "RAY_py_gcs_connect_timeout_s": "1"}
    command = [sys.executable, "-m", "swav_ray", "drain", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | given)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at "),
        ("head", "RAY_ADDRESS = head: give HOST:6379"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS = ray://127.0.0.1:10001: give HOST:6379"),
    ],
)
def test_a_cluster_that_is_not_there(address: str, says: str) -> None:
    code, line = typed(address)
    assert code == 2 and line.startswith(f"swav-ray: {says}")


def test_another_clusters_node(cluster: LocalCluster) -> None:
    code, line = typed(cluster.address, "--node-id", "typo")
    assert code == 2 and "--node-id typo: " in line and "has no such living node" in line
    assert cluster.nodes[0].node_id in line and cluster._cluster.head_node.node_id in line


def test_a_notice_waits_for_a_control_store_that_is_away(cluster: LocalCluster) -> None:
    host, port = cluster.address.split(":")
    proxy = Proxy((host, int(port)))
    proxy.cut()
    call = f"pass_on('127.0.0.1:{proxy.port}', '{cluster.nodes[0].node_id}', 60, 'of the test')"
    code = f"from swav_ray.train.notice import pass_on; {call}"
    given = {"RAY_py_gcs_connect_timeout_s": "1"}
    teller = subprocess.Popen([sys.executable, "-c", code], env=os.environ | given, stderr=subprocess.PIPE, text=True)
    time.sleep(8)  # some tries of a second, after the import of Ray
    assert teller.poll() is None
    proxy.restore()
    assert teller.wait(60) == 0, teller.communicate()[1]
    proxy.cut()
    control = GcsClient(address=cluster.address)
    deadline = time.monotonic() + 60
    while True:  # idle, it goes at once
        row = {key.hex(): info for key, info in control.get_all_node_info().items()}[cluster.nodes[0].node_id]
        if row.state == row.DEAD:
            break
        assert time.monotonic() < deadline, "the node did not hear of it"
        time.sleep(0.1)
    assert "of the test" in row.death_info.reason_message


def test_a_notice_that_nobody_hears_ends_with_the_node() -> None:
    code = "from swav_ray.train.notice import pass_on; pass_on('127.0.0.1:9', 'a', 3, '')"
    given = {"RAY_py_gcs_connect_timeout_s": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | given)
    assert "InfraError: no Ray cluster answers at 127.0.0.1:9" in done.stderr
