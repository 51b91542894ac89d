"""`swav-ray share` and `swav-ray receive` as they are typed."""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.share.send_server import SendServer

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return functools.partial(run_command, monkeypatch, capsys)


def test_there_and_back(call: Call, server: SendServer, weights: Path, here: Path) -> None:
    code, out, err = call("share", str(weights), "--to", server.url, "--downloads", "3", "--expires", "12h")
    assert (code, err.strip()) == (0, "")
    (link,) = re.findall(r"^\S+/download/\w+/#[\w-]{22}$", out, re.MULTILINE)
    assert "in it: weights.safetensors (0.4 MB)" in out and "3 downloads, until 2" in out and "password" not in out
    (entry,) = server.files.values()
    assert (entry.dlimit, entry.expires) == (3, 12 * 3600)
    code, out, err = call("receive", link)
    assert code == 0 and "weights.safetensors  400," in out and out.endswith("all checksums hold: weights\n")
    code, out, err = call("receive", link)
    assert (
        code == 2 and err == "swav-ray: weights: is there already; name another folder, as in `swav-ray receive LINK FOLDER`\n"
    )
    assert call("receive", link, "again")[0] == 0 and (here / "again" / "weights.safetensors").exists()
    address = link.partition("#")[0]
    assert call("share", "--revoke", address) == (0, f"revoked: {address}\n", "")
    code, out, err = call("receive", link, "third")
    assert code == 2 and out == "" and "not there: expired, revoked" in err and link.partition("#")[2] not in err


def test_a_link_may_come_from_standard_input(call: Call, server: SendServer, weights: Path, monkeypatch) -> None:
    _, out, _ = call("share", str(weights), "--to", server.url)
    monkeypatch.setattr(sys, "stdin", io.StringIO(out.splitlines()[1] + "\n"))
    assert call("receive", "-")[0] == 0


def test_passwords_come_from_the_environment_or_the_keyboard(
    call: Call, server: SendServer, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call("share", str(weights), "--to", server.url, "--password")
    assert code == 2 and "a password is needed: set SWAV_RAY_SHARE_PASSWORD" in err and not server.seen
    monkeypatch.setenv("SWAV_RAY_SHARE_PASSWORD", "hunter22")
    code, out, err = call("share", str(weights), "--to", server.url, "--password")
    assert code == 0 and "hunter22" not in out + err
    assert "it does not strengthen the encryption" in out and "for whoever has the link and the password" in out
    link = out.splitlines()[1]
    monkeypatch.setenv("SWAV_RAY_SHARE_PASSWORD", "wrong")
    code, out, err = call("receive", link)
    assert code == 2 and "wrong password" in err
    monkeypatch.setenv("SWAV_RAY_SHARE_PASSWORD", "hunter22")
    assert call("receive", link)[0] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("share",), "there is no default one"),
        (("share", "weights"), "there is no default one"),
        (("share", "x", "--to", "send.example"), "--to: not the plain address of a Send server"),
        (("share", "x", "--to", "https://send.example", "--downloads", "0"), "--downloads 0: at least 1"),
        (("share", "x", "--to", "https://send.example", "--expires", "soon"), "--expires soon: write a time such as 30m"),
        (("share", "x", "--to", "https://send.example"), "x: neither a run nor a file"),
        (("share", "--revoke", "https://send.example/download/abc/"), "not shared from here by this user"),
        (("receive", "https://send.example"), "LINK: not a link of a Send server"),
        (("receive", "x", "https://send.example/download/abc/#AAECAwQFBgcICQoLDA0ODw"), "DEST is a local folder"),
    ],
)
def test_a_mistake_is_one_line(call: Call, args: tuple[str, ...], said: str, here: Path) -> None:
    code, out, err = call(*args)
    assert code == 2 and out == "" and err.startswith("swav-ray: ") and len(err.splitlines()) == 1
    assert said in err and "AAECAwQFBgcICQoLDA0ODw" not in err
    assert not list(here.iterdir())
