"""`swav-ray submit`: every mistake is one line, before anything is sent or by the cluster's answer."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.commands import Ended, run_command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return functools.partial(run_command, monkeypatch, capsys)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """An HTTP server that answers each path as told, and its address."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answers.get(self.path, (404, "no"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", answers
    web.shutdown()
    web.server_close()


def said(ended: Ended) -> str:
    """Its one line."""
    assert ended.code == 2 and "Traceback" not in ended.out + ended.err
    assert ended.err.startswith("swav-ray: ") and len(ended.err.splitlines()) == 1, ended.err
    return ended.err


S3 = ("--storage", "s3://bucket/runs")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pretrian", "demo-digits"], "no command 'pretrian' (did you mean 'pretrain'?)"),
        (["receive", "link"], "no command 'receive'"),
        (["pretrain", "demo-digit", *S3], "no recipe 'demo-digit' (did you mean 'demo-digits'?)"),
        (["pretrain", "demo-digits", *S3, "--set", "temprature=1"], "did you mean 'temperature'?"),
        (["pretrain", "demo-digits", "--storage", "s3://AKIAPLANTED:hunter2/x@bucket/runs"], "must hold no key or password"),
        (["knn", "s3://AKIAPLANTED:hunter2@bucket/run"], "knn: s3://*** holds a key or password"),
        (["bench", "demo-digits", "--set", "data.train=s3://k:hunter2@b/x"], "bench: s3://*** holds a key or password"),
        (["share", "runs/mine", "--to", "https://me:hunter2@send.example"], "share: https://*** holds a key or password"),
        (["tune", "none.yaml"], "none.yaml: no such file"),
        (["tune", "run", "none.yaml", "--dry-run", "3"], "--dry-run needs no cluster"),
        (["pretrain", "demo-digits", *S3], "no cluster; give the address of its dashboard, --address http://HEAD:8265"),
    ],
)
def test_mistakes_are_found_before_a_cluster_is_asked(call: Callable[..., Ended], words: list[str], text: str) -> None:
    line = said(call("submit", "--", *words))
    assert text in line and "hunter2" not in line


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "ftp://me:hunter2@host"])
def test_an_address_of_another_kind(call: Callable[..., Ended], address: str) -> None:
    line = said(call("submit", "--address", address, "--", "pretrain", "demo-digits", *S3))
    assert "jobs go to the dashboard, as http://HEAD:8265" in line and "hunter2" not in line


def test_nobody_there_and_somebody_else(call: Callable[..., Ended], server) -> None:
    address, answers = server
    run = functools.partial(call, "submit", "--address", address, "--", "pretrain", "demo-digits", *S3)
    answers["/api/version"] = (200, "<html>a shop</html>")
    assert f"--address {address}: what answers there is no Ray dashboard" in said(run())
    answers["/api/version"] = (200, json.dumps({"version": 4}))
    assert "is no Ray dashboard" in said(run())
    nobody = call("submit", "--address", "http://127.0.0.1:9", "--", "pretrain", "demo-digits", *S3)
    assert "--address http://127.0.0.1:9: nobody answers there" in said(nobody)
    # What the environment says is second to what the command line says.
    assert "http://127.0.0.1:9" in said(nobody)


@pytest.mark.parametrize(
    ("words", "going"),
    [
        (["shard", "s3://b/src", "shards/train"], "shards/train is relative"),
        (["export", "s3://b/run", "out"], "out is relative"),
        (["probe", "s3://b/run", "--protocol", "linear", "--out", "learnt"], "learnt is relative"),
        (["export", "s3://b/run", "s3://b/out"], ""),
        (["export", "s3://b/run", "/shared/out"], ""),
        (["knn", "s3://b/run"], ""),
    ],
)
def test_what_would_go_with_the_jobs_folder_is_told(call: Callable[..., Ended], words: list[str], going: str) -> None:
    ended = call("submit", "--address", "http://127.0.0.1:9", "--", *words)
    *told, last = ended.err.splitlines()
    assert ended.code == 2 and "nobody answers there" in last
    assert len(told) == bool(going) and all(line.startswith(going) and "goes with it" in line for line in told)
