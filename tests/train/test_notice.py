"""A spot node hears from its cloud: metadata services on loopback. What Ray then hears: `test_elastic.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from swav_ray.errors import UserError
from swav_ray.train import notice
from tests.commands import run_command

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
