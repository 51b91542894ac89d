"""Round trips through a real server, and everything that can go wrong on the way."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ffsend
import pytest

from swav_ray.errors import Stopped, UserError
from swav_ray.share import Shared, hand_over, receive, revoke, send
from swav_ray.share.link import Link, read_link
from swav_ray.share.send import Send
from tests.share.send_server import SendServer


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put(server: SendServer, content: bytes, name: str = "x.zip", claimed: Any = "true") -> Link:
    """Upload any bytes as a stranger would, with whatever name and size."""
    client = Send(server.url)
    size = len(content) if claimed == "true" else claimed
    return client.upload(io.BytesIO(content), size, name, downloads=1, seconds=60, progress=lambda more: None)[0]


def refusal(link: Link, *said: str, dest: str | None = None, **options) -> str:
    """Receiving fails with one line, without the key, and leaves nothing."""
    before = left(Path.cwd())
    with pytest.raises(UserError) as caught:
        receive(link, dest, **options)
    message = str(caught.value)
    for text in said:
        assert text in message, message
    assert link.whole().partition("#")[2] not in message and len(message.splitlines()) == 1
    assert left(Path.cwd()) == before
    return message


def test_round_trip(server, weights, here):
    seen = []
    shared = hand_over(
        str(weights), server.url, downloads=2, seconds=3600, progress=lambda size: seen.append(size) or seen.append
    )
    assert sum(seen[1:]) > seen[0] > weights.stat().st_size  # encrypted records are a little longer
    assert weights.read_bytes()[1000:1100] not in (server.folder / shared.link.id).read_bytes()
    entry = server.files[shared.link.id]
    assert (entry.dlimit, entry.expires) == (2, 3600)
    place, manifest = receive(read_link(shared.link.whole()))
    assert place == Path("weights") and (place / "weights.safetensors").read_bytes() == weights.read_bytes()
    assert json.loads((place / "manifest.json").read_text()) == manifest
    assert manifest["files"]["weights.safetensors"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert left(here) == ["weights", "weights/manifest.json", "weights/weights.safetensors"]
    assert left(here.parent / "scratch") == []
    receive(shared.link, "again")
    assert (here / "again" / "weights.safetensors").exists()


def test_what_a_browser_uploads_with_a_plain_post_is_received_too(server, weights, tmp_path):
    shared = hand_over(str(weights), server.url)
    receive(shared.link, "one")
    bundle = put_by_post(server, tmp_path)
    place, _ = receive(bundle)
    assert (place / "weights.safetensors").exists()


def put_by_post(server: SendServer, tmp_path: Path) -> Link:
    from swav_ray.share.bundle import pack

    (tmp_path / "packed").mkdir()
    bundle = pack(str(tmp_path / "weights.safetensors"), tmp_path / "packed")
    about = ffsend.single_file_metadata("weights (1).zip", bundle.path.stat().st_size)
    with bundle.path.open("rb") as file:
        answer, key = ffsend.FFSend(server.url).upload(about, file)
    return read_link(answer["url"] + "#" + ffsend.url_b64encode(key))


def test_a_wrong_link_says_which_part_is_wrong(server, weights):
    link = hand_over(str(weights), server.url).link
    refusal(Link(link.service, link.id, os.urandom(16)), "the key in the link, after the #, is not the right one")
    refusal(Link(link.service, "0" * 16, link.key), "not there: expired, revoked")
    assert server.files[link.id].dl == 0  # neither counts as a download
    receive(link)


def test_exhausted_expired_and_revoked_files_are_gone(server, weights):
    once = hand_over(str(weights), server.url).link
    receive(once)
    refusal(once, "not there: expired, revoked, downloaded as often as allowed", dest="other")
    short = hand_over(str(weights), server.url, seconds=300).link
    server.now += 299
    Send(server.url).look(short, None)
    server.now += 1
    refusal(short, "not there: expired", dest="other")
    shared = hand_over(str(weights), server.url).link
    assert revoke(str(shared)) == Link(shared.service, shared.id)  # the key is not needed
    assert shared.id not in server.files
    refusal(shared, "not there: expired, revoked", dest="other")
    with pytest.raises(UserError, match="not shared from here by this user"):
        revoke(shared.whole())


def test_a_server_may_name_itself_by_another_address(server, weights):
    server.public = "https://public.invalid/"
    shared = hand_over(str(weights), server.url, password="x")
    assert str(shared.link) == f"https://public.invalid/download/{shared.link.id}/"
    revoke(str(shared.link))
    assert not server.files


def test_owner_tokens_are_for_their_user_only_and_go_when_they_expire(server, weights, tmp_path, monkeypatch):
    link = hand_over(str(weights), server.url, seconds=3600).link
    folder = tmp_path / "state" / "swav-ray" / "shares"
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert server.files[link.id].owner in kept.read_text()
    assert link.whole().partition("#")[2] not in kept.read_text()
    late = json.loads(kept.read_text())["expires"] + 1
    monkeypatch.setattr("swav_ray.share.tokens.time.time", lambda: late)
    hand_over(str(weights), server.url)
    assert len(left(folder)) == 1 and not kept.exists()


def test_nothing_is_uploaded_that_could_not_be_revoked(server, weights, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_STATE_HOME"):
        hand_over(str(weights), server.url)
    assert not server.seen
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("swav_ray.share.tokens._name", lambda link: "no/such/folder")
    with pytest.raises(UserError, match="cannot be written"):
        hand_over(str(weights), server.url)
    assert not server.files


# --- passwords


def test_a_password_gates_the_download(server, weights):
    link = hand_over(str(weights), server.url, password="pässword").link
    refusal(link, "needs a password")
    refusal(link, "wrong password", ask=lambda: "password")
    assert server.files[link.id].dl == 0
    asked = []
    place, _ = receive(read_link(link.whole().replace("/#", "#")), ask=lambda: asked.append(1) or "pässword")
    assert asked == [1] and (place / "weights.safetensors").exists()


def test_no_password_is_asked_for_where_none_is_needed(server, weights):
    link = hand_over(str(weights), server.url).link
    receive(link, ask=lambda: pytest.fail("asked"))


def test_a_password_that_cannot_be_set_takes_the_file_back(server, weights):
    server.refused = {"/api/password": 500}
    with pytest.raises(UserError, match="the server answers 500"):
        hand_over(str(weights), server.url, password="x")
    assert not server.files and not list(server.folder.iterdir())


# --- the server fails


def test_a_server_gone_in_the_middle_of_an_upload(server, weights, tmp_path):
    server.cut_upload_after = 100_000
    with pytest.raises(UserError, match=r"the upload stopped: .*; try again") as caught:
        hand_over(str(weights), server.url)
    assert len(str(caught.value)) < 150
    assert server.over.wait(30) and not server.files and not list(server.folder.iterdir())
    assert left(tmp_path / "state" / "swav-ray" / "shares") == [] and left(tmp_path / "scratch") == []


def test_a_server_gone_in_the_middle_of_a_download(server, weights):
    link = hand_over(str(weights), server.url).link
    for after in (0, 65536, 200_000):
        server.cut_download_after = after
        refusal(link, "the download stopped")
    server.cut_download_after = None
    receive(link)  # none of them counted


def test_no_server_at_all(weights, tmp_path):
    with SendServer(tmp_path) as gone:
        url = gone.url
    with pytest.raises(UserError, match="the upload stopped: Connection refused; try again"):
        hand_over(str(weights), url)
    refusal(Link(url, "0" * 16, bytes(16)), "Connection refused; try again")


@pytest.mark.parametrize("path", ["/api/exists", "/api/metadata", "/api/download", "/api/ws"])
def test_a_silent_server_is_not_waited_for(server, weights, path, monkeypatch):
    link = hand_over(str(weights), server.url).link
    monkeypatch.setattr(send, "SILENT_SECONDS", 0.2)
    server.silent = (path,)
    if path == "/api/ws":
        with pytest.raises(UserError, match="fell silent"):
            hand_over(str(weights), server.url)
    else:
        monkeypatch.setattr(send, "SILENT_SECONDS", 1.0)  # the requests before it are answered
        refusal(link, "fell silent; try again", dest="other")


def test_a_server_that_speaks_something_else(server, weights):
    server.refused = {"/api/ws": 404}
    with pytest.raises(UserError, match=r"does not speak Send's protocol \(it answers 404 at api/ws\)"):
        hand_over(str(weights), server.url)
    server.refused = {"/api/exists": 200}
    refusal(Link(server.url, "0" * 16, bytes(16)), "does not speak Send's protocol (no JSON)")


def test_refusals_name_the_servers_limits(server, weights):
    with pytest.raises(UserError, match="too many --downloads or too long --expires; it allows 100 downloads and 168 h"):
        hand_over(str(weights), server.url, downloads=101)
    with pytest.raises(UserError, match="too long --expires"):
        hand_over(str(weights), server.url, seconds=8 * 86400)
    server.accounts_only = True
    with pytest.raises(UserError, match="users with an account only"):
        hand_over(str(weights), server.url)
    server.accounts_only = False
    server.max_bytes = 2**17
    with pytest.raises(UserError, match=r"too large, it takes 0\.1 MiB"):
        hand_over(str(weights), server.url)
    assert not server.files


def test_an_interrupted_upload_is_not_taken_for_a_whole_one(server, weights):
    """Send stores what it has of an upload whose connection is closed in good order."""

    def interrupt(more: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="nothing was shared"):
        hand_over(str(weights), server.url, progress=lambda size: interrupt)
    assert server.over.wait(30) and not server.files and not list(server.folder.iterdir())


def test_an_interrupted_download_leaves_nothing(server, weights, here):
    link = hand_over(str(weights), server.url).link

    def interrupt(more: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="nothing was kept"):
        receive(link, progress=lambda size: interrupt)
    assert left(here) == []


# --- the server or the sender lies


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: content[: 21 + 65536],  # at the end of a record
        lambda content: content[:10],
        lambda content: b"",
        lambda content: content[:16] + (2**32 - 1).to_bytes(4, "big") + content[20:],  # a record of 4 GiB
        lambda content: content[:16] + bytes(4) + content[20:],
        lambda content: content[:20] + b"\x05" + content[21:],
    ],
    ids=["bit", "short", "head", "empty", "record", "norecord", "idlen"],
)
def test_what_is_damaged_is_refused(server, weights, spoil):
    link = hand_over(str(weights), server.url).link
    server.spoil = spoil
    refusal(link, "the download stopped: what the server sent is damaged or cut short")


def test_a_header_is_refused_before_a_record_is_read_into_memory():
    raw = io.BytesIO(bytes(16) + (2**32 - 1).to_bytes(4, "big") + bytes(1000))
    with pytest.raises(ValueError):
        send._Checked(raw)
    assert raw.tell() == 21


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        (0, "claims 0 bytes, which no bundle has"),
        (-1, "claims -1 bytes"),
        (2**40, "bytes, which no bundle has"),
        (10, "is larger than the 10 bytes it claims to have"),
        (10**6, "has 1,000 bytes instead of the 1,000,000"),
        (2**31 - 2**25, "are free"),
        ("x", "damaged"),
        (float("inf"), "damaged"),
        (None, "damaged"),
    ],
)
def test_a_lying_size_is_refused(server, claimed, said, monkeypatch):
    if said == "are free":
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=10**9))
    link = put(server, bytes(1000), claimed=claimed)
    refusal(link, said)


@pytest.mark.parametrize("name", ["../evil.zip", "/tmp/evil.zip", "a/b", "..", ".bashrc", "x\x1b[2J", "con\n", "", "x" * 5000])
def test_the_senders_file_name_is_no_path(server, weights, tmp_path, name, here):
    from swav_ray.share.bundle import pack

    (tmp_path / "packed").mkdir()
    link = put(server, pack(str(weights), tmp_path / "packed").path.read_bytes(), name)
    outside = left(tmp_path)
    place, _ = receive(link)
    assert place == Path(f"bundle-{link.id}")
    assert set(left(tmp_path)) - set(outside) == {
        f"here/{place}{end}" for end in ("", "/manifest.json", "/weights.safetensors")
    }


def test_a_folder_that_is_there_is_left_alone_and_costs_no_download(server, weights, here):
    link = hand_over(str(weights), server.url).link
    (here / "weights").mkdir()
    (here / "dangling").symlink_to("nowhere")
    refusal(link, "weights: is there already; name another folder")
    refusal(link, "dangling: is there already", dest="dangling")
    refusal(link, "make it first", dest="no/such")
    assert server.files[link.id].dl == 0


# --- secrets, memory, TLS


def test_the_key_enters_no_log_and_no_request(server, weights, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    link = hand_over(str(weights), server.url, password="hunter22", downloads=3).link
    key = link.whole().partition("#")[2]
    receive(link, ask=lambda: "hunter22")
    refusal(link, dest="b", ask=lambda: "wrong")
    server.cut_download_after = 0
    refusal(link, dest="c", ask=lambda: "hunter22")
    revoke(link.whole())
    said = "".join(capfd.readouterr()) + caplog.text + repr(server.seen) + repr(link) + str(link)
    assert "/api/metadata" in said  # the logs were on
    for secret in (key, "hunter22", link.key.hex(), repr(link.key), base64.b64encode(link.key).decode()):
        assert secret not in said


CHILD = """
import re, sys
from pathlib import Path
from swav_ray.share import hand_over, receive
def peak():
    # Not getrusage, whose peak begins with the parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def there_and_back(name):
    receive(hand_over(name + ".safetensors", sys.argv[1]).link)
there_and_back("small")
before = peak()
there_and_back("large")
print(peak() - before)
"""


def test_memory_stays_flat_for_100_mb(server, here):
    import numpy as np
    from safetensors.numpy import save_file

    for name, rows in (("small", 10), ("large", 1000)):
        save_file({"weight": np.random.default_rng(0).integers(0, 255, (rows, 100_000), dtype=np.uint8)}, f"{name}.safetensors")
    done = subprocess.run([sys.executable, "-c", CHILD, server.url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (here / "large" / "large.safetensors").stat().st_size > 100_000_000
    assert int(done.stdout) < 20_000, f"{done.stdout} KiB more for 100 MB"  # KiB


def test_tls_with_an_authority_of_ones_own(weights, tmp_path, monkeypatch):
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "cert.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = tmp_path / "key.pem"
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    (tmp_path / "server").mkdir()
    with SendServer(tmp_path / "server", context) as server:
        with pytest.raises(UserError, match=r"TLS failed \(CERTIFICATE_VERIFY_FAILED\)"):
            hand_over(str(weights), server.url)
        refusal(Link(server.url, "0" * 16, bytes(16)), "TLS failed (CERTIFICATE_VERIFY_FAILED)")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        receive(hand_over(str(weights), server.url).link)


def test_a_netrc_does_not_replace_the_signature(server, weights, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    receive(hand_over(str(weights), server.url).link)
    assert not any("Basic" in headers.get("Authorization", "") for _, _, headers in server.seen)


def test_several_shares_at_once_keep_their_tokens(server, weights):
    out: list[Shared] = []
    threads = [threading.Thread(target=lambda: out.append(hand_over(str(weights), server.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 4
    for shared in out:
        revoke(str(shared.link))
    assert not server.files and re.fullmatch(r"http://127.0.0.1:\d+/", server.url)
