"""The client of a Send server: ffsend's class API and cipher, with time-outs, and the websocket upload it lacks.

A plain POST ignores the expiry and allows one download, so uploads go over the websocket: a line of JSON, the encrypted
records, and a closing zero byte. Errors name the file without its key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import aiohttp
import requests
import urllib3

from swav_ray.errors import UserError
from swav_ray.share.link import KEY_BYTES, Link, read_link

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ffsend's progress bars come from a package with a SyntaxWarning
    import ffsend

CONNECT_SECONDS = 15.0
SILENT_SECONDS = 60.0  # without a byte in either direction
STORE_SECONDS = 600.0  # between the last byte of an upload and the server's word that it is stored
LARGEST_RECORD = 2**20  # Send's are 64 KiB; a stranger's header may claim 4 GiB, and a record is held in memory
MIME = "application/zip"
Progress = Callable[[int], None]  # bytes more


class _Session(requests.Session):
    """`requests` for ffsend, which sets no time-outs."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = lambda request: request  # else a .netrc would replace the header that signs a request

    def request(self, method: Any, url: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, url, **({"timeout": (CONNECT_SECONDS, SILENT_SECONDS)} | options))


ffsend.requests = _Session()


class Remote(NamedTuple):
    """What is behind a link: the file's name at the sender's (never a path here), and its bytes."""

    name: str
    size: int


class Send:
    """A server, by its address with a slash at the end. Every method raises a UserError when the server cannot do it."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._client = ffsend.FFSend(service)

    def upload(
        self, file: IO[bytes], size: int, name: str, *, downloads: int, seconds: int, progress: Progress
    ) -> tuple[Link, str]:
        """Encrypt and upload ``size`` bytes, to be had so many times for so long; the link and the owner token."""
        key = os.urandom(KEY_BYTES)
        cipher = ffsend.create_meta_cipher(key)
        about = cipher.encrypt(json.dumps(ffsend.single_file_metadata(name, size, mimetype=MIME)).encode())
        hello = {
            "fileMetadata": ffsend.url_b64encode(about + cipher.digest()),
            "authorization": "send-v1 " + ffsend.url_b64encode(ffsend.derive_auth_key(key)),
            "timeLimit": seconds,
            "dlimit": downloads,
        }
        with self._plainly(f"{self.service}: the upload stopped"):
            answer = asyncio.run(self._upload(hello, ffsend.encrypt_file_iter(key, file), progress))
        try:
            place = read_link(str(answer["url"]), with_key=False)
            return Link(place.service, place.id, key), str(answer["ownerToken"])
        except (UserError, KeyError):
            raise UserError(f"{self.service}: does not speak Send's protocol (its answer to an upload has no link)") from None

    async def _upload(self, hello: dict[str, Any], records: Iterator[bytes], progress: Progress) -> dict[str, Any]:
        address = "ws" + self.service.removeprefix("http") + "api/ws"
        # The session's own way to find a proxy comes with passwords of a .netrc.
        proxy = requests.utils.select_proxy(self.service, requests.utils.get_environ_proxies(self.service))
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        async with aiohttp.ClientSession(timeout=limits) as session:
            async with asyncio.timeout(SILENT_SECONDS):
                socket = await session.ws_connect(address, ssl=_trusted(), proxy=proxy, max_msg_size=2**16)
            try:
                await socket.send_json(hello)
                answer = await self._answer(socket, SILENT_SECONDS)
                await self._send_records(socket, records, progress)
            except BaseException:
                # A server keeps what it has of an upload that was closed in good order.
                await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)
                raise
            await socket.close()
        return answer

    async def _send_records(
        self, socket: aiohttp.ClientWebSocketResponse, records: Iterator[bytes], progress: Progress
    ) -> None:
        stored = asyncio.ensure_future(self._answer(socket, None))  # or a refusal, which may come midway
        try:
            for record in records:
                async with asyncio.timeout(SILENT_SECONDS):
                    await socket.send_bytes(record)
                progress(len(record))
                if stored.done():
                    break
            else:
                await socket.send_bytes(b"\0")
            early = stored.done()
            if not (await asyncio.wait_for(stored, STORE_SECONDS)).get("ok") or early:
                raise UserError(f"{self.service}: ended the upload before it was whole")
        except (aiohttp.ClientError, ConnectionError):
            if stored.done() and not stored.cancelled() and isinstance(refusal := stored.exception(), UserError):
                raise refusal from None  # said before the connection was closed
            raise
        finally:
            stored.cancel()
            await asyncio.gather(stored, return_exceptions=True)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse, seconds: float | None) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
        if message.type != aiohttp.WSMsgType.TEXT:
            raise aiohttp.ClientConnectionError("the server closed the connection")
        try:
            answer = dict(json.loads(message.data))
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{self.service}: does not speak Send's protocol (no JSON)") from None
        if "error" in answer:
            raise UserError(f"{self.service}: refuses the upload: {await asyncio.to_thread(self._refusal, answer['error'])}")
        return answer

    def _refusal(self, code: Any) -> str:
        limits: dict[str, Any] = {}
        with contextlib.suppress(Exception):  # only for the message
            limits = ffsend.requests.get(self.service + "config").json()["LIMITS"]
        if code == 413:
            size = limits.get("MAX_FILE_SIZE")
            return "too large" + (f", it takes {size / 2**20:,.1f} MiB" if isinstance(size, int | float) else "")
        if code == 401:
            return "it takes files from users with an account only"
        if code == 400:
            allowed = "ask for less"
            with contextlib.suppress(LookupError, TypeError):
                allowed = f"it allows {limits['MAX_DOWNLOADS']:d} downloads and {limits['MAX_EXPIRE_SECONDS'] / 3600:g} h"
            return f"too many --downloads or too long --expires; {allowed}"
        return f"error {str(code)[:20]}"

    def set_password(self, link: Link, token: str, password: str) -> None:
        """Let the server ask for a password before it hands the file out. The encryption stays what it was."""
        with self._plainly(str(link)):
            self._client.owner_set_password(link.id, token, link.key, password, link.whole())

    def needs_password(self, link: Link) -> bool:
        with self._plainly(str(link)):
            response = self._client.api.get_exists(link.id)
            response.raise_for_status()
            return bool(response.json().get("requiresPassword"))

    def look(self, link: Link, password: str | None) -> Remote:
        """What is behind a link; not counted as a download. It proves that link and password are right."""
        wrong = "wrong password, or the link's key is" if password is not None else "the key in the link, after the #, is"
        with self._plainly(str(link), refused=f"{link}: {wrong} not the right one; copy the whole link"):
            file = self._client.get_metadata(link.id, link.key, password, link.whole())["metadata"]
            return Remote(str(file["name"]), int(file["size"]))

    def download(self, link: Link, size: int, target: IO[bytes], password: str | None, progress: Progress) -> None:
        """Decrypt the file into ``target``; no more than ``size`` bytes are written, and it is an error if there are fewer."""
        auth = ffsend.derive_auth_key(link.key, password, link.whole())
        got = 0
        with self._plainly(f"{link}: the download stopped"), self._client.api.get_download(link.id, auth) as response:
            response.raise_for_status()
            for part in ffsend.decrypt_file_iter(link.key, _Checked(response.raw)):
                got += len(part)
                if got > size:
                    raise UserError(f"{link}: is larger than the {size:,} bytes it claims to have")
                target.write(part)
                progress(len(part))
        if got != size:
            raise UserError(f"{link}: has {got:,} bytes instead of the {size:,} it claims to have")

    def delete(self, link: Link, token: str) -> None:
        with self._plainly(str(link), refused=f"{link}: the server does not take our owner token"):
            self._client.owner_delete(link.id, token)

    @contextlib.contextmanager
    def _plainly(self, what: str, refused: str = "") -> Iterator[None]:
        """Turn what the network, the server and the cipher raise into one line, which holds no key."""
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 404:
                raise UserError(f"{what}: not there: expired, revoked, downloaded as often as allowed, or mistyped") from None
            if status in (401, 403) and refused:
                raise UserError(refused) from None
            raise UserError(f"{what}: the server answers {status}") from None
        except requests.JSONDecodeError:
            raise UserError(f"{what}: the server does not speak Send's protocol (no JSON)") from None
        except (requests.Timeout, TimeoutError, urllib3.exceptions.TimeoutError):
            raise UserError(f"{what}: the server fell silent; try again") from None
        except aiohttp.WSServerHandshakeError as error:
            raise UserError(f"{what}: does not speak Send's protocol (it answers {error.status} at api/ws)") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, aiohttp.ClientError, ConnectionError) as error:
            raise UserError(f"{what}: {_reason(error)}; try again") from None
        except (ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            # Of the cipher (EOFError, ValueError) and of JSON that is not as it should be.
            raise UserError(f"{what}: what the server sent is damaged or cut short; try again") from None


class _Checked:
    """A download whose header is looked at before ffsend believes it."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._head = raw, b""
        while len(self._head) < 21 and (part := raw.read(21 - len(self._head))):  # salt, record size, length of an id
            self._head += part
        if not 17 < int.from_bytes(self._head[16:20], "big") <= LARGEST_RECORD or self._head[20:] != b"\0":
            raise ValueError

    def read(self, amount: int) -> bytes:
        if self._head:
            part, self._head = self._head[:amount], self._head[amount:]
            return part
        return bytes(self._raw.read(amount))


def _trusted() -> ssl.SSLContext:
    """The authorities that `requests` trusts, so that one setting (`REQUESTS_CA_BUNDLE`) is good for both."""
    place = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or requests.certs.where()
    return ssl.create_default_context(capath=place) if Path(place).is_dir() else ssl.create_default_context(cafile=place)


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the words of the operating system or of TLS, which lie below several libraries' own."""
    chain: list[BaseException] = [error]
    for one in chain:
        below = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
        chain += [cause for cause in below if isinstance(cause, BaseException) and cause not in chain]
        if isinstance(one, ssl.SSLError) and isinstance(getattr(one, "reason", None), str):
            return f"TLS failed ({one.reason})"
    known = [(one.errno or 0, one.strerror) for one in chain if isinstance(one, OSError) and one.strerror]
    code, words = known[-1] if known else (0, "the connection was lost")
    return os.strerror(code) if code > 0 else str(words)
