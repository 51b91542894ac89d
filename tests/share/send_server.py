"""A Send server for tests, over real HTTP and websocket: the protocol of Send 3.4 as its clients see it.

Uploads over `/api/ws` (a line of JSON, records, a closing zero byte) or `POST /api/upload` (one download, a day), requests
signed with HMAC over nonces that change with each, owner tokens, passwords, limits. Files lie on disk. It runs in a thread;
its faults are set from the test: cut connections, silence, lies.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

MAX_DOWNLOADS, MAX_SECONDS, DEFAULT_SECONDS = 100, 7 * 86400, 86400


@dataclass
class Entry:
    """A stored file."""

    owner: str
    metadata: str
    auth: bytes
    dlimit: int
    expires: float
    path: Path
    nonce: bytes = field(default_factory=lambda: os.urandom(16))
    pwd: bool = False
    dl: int = 0


class SendServer:
    """Start with ``with SendServer(folder) as server``; its address is ``server.url``.

    Attributes:
        now: its clock, in seconds; advance it to let files expire.
        max_bytes: of an encrypted file.
        public: the address it names in links, if not its own.
        accounts_only: anonymous uploads are refused.
        cut_upload_after, cut_download_after: bytes after which the connection is dropped; None: never.
        silent: paths (beginnings) that are never answered.
        spoil: applied to every encrypted file before it is sent.
        refused: paths (beginnings) that are answered with a status.
        seen: of each request its method, path with query, and headers.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder, self.tls = folder, tls
        self.files: dict[str, Entry] = {}
        self.now = 0.0
        self.max_bytes = 2**31
        self.public = ""
        self.accounts_only = False
        self.cut_upload_after: int | None = None
        self.cut_download_after: int | None = None
        self.silent: tuple[str, ...] = ()
        self.refused: dict[str, int] = {}
        self.spoil = lambda content: content
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()  # an upload ended, well or not
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> SendServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._faults], client_max_size=2**31)
        app.router.add_get("/config", self._config)
        app.router.add_get("/api/ws", self._ws)
        app.router.add_post("/api/upload", self._upload)
        app.router.add_get("/api/exists/{id}", self._exists)
        app.router.add_get("/api/metadata/{id}", self._metadata)
        app.router.add_get("/api/download/{id}", self._download)
        for name in ("delete", "password", "params", "info"):
            app.router.add_post(f"/api/{name}/{{id}}", getattr(self, f"_{name}"))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}/"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append((request.method, request.path_qs, dict(request.headers)))
        if request.path.startswith(self.silent or ("-",)):
            await asyncio.sleep(3600)
        for path, status in self.refused.items():
            if request.path.startswith(path):
                return web.Response(status=status)
        return await handler(request)

    async def _config(self, _: web.Request) -> web.Response:
        limits = {"MAX_FILE_SIZE": self.max_bytes, "MAX_DOWNLOADS": MAX_DOWNLOADS, "MAX_EXPIRE_SECONDS": MAX_SECONDS}
        return web.json_response({"LIMITS": limits})

    def _new(self, metadata: str, authorization: str, dlimit: int, seconds: int) -> tuple[str, Entry]:
        name = os.urandom(8).hex()
        auth = _decode(authorization.split(" ")[1])
        return name, Entry(os.urandom(10).hex(), metadata, auth, dlimit, self.now + seconds, self.folder / name)

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        hello = json.loads((await socket.receive()).data)
        seconds, dlimit = hello.get("timeLimit") or DEFAULT_SECONDS, hello.get("dlimit") or 1
        bad = not hello.get("fileMetadata") or not hello.get("authorization")
        if self.accounts_only or bad or not 0 < seconds <= MAX_SECONDS or dlimit > MAX_DOWNLOADS:
            await socket.send_json({"error": 401 if self.accounts_only else 400})
            await socket.close()
            return socket
        name, entry = self._new(hello["fileMetadata"], hello["authorization"], dlimit, seconds)
        await socket.send_json({"url": f"{self.public or self.url}download/{name}/", "ownerToken": entry.owner, "id": name})
        size, ended = 0, False
        with entry.path.open("wb") as file:
            async for message in socket:
                if message.type != WSMsgType.BINARY:
                    break
                if message.data == b"\0":
                    ended = True
                    break
                size += file.write(message.data)
                if self.cut_upload_after is not None and size > self.cut_upload_after:
                    assert request.transport is not None
                    request.transport.abort()
                    break
                if size > self.max_bytes:
                    await socket.send_json({"error": 413})
                    await socket.close()
                    break
        if ended or (socket.close_code == 1000 and size <= self.max_bytes):  # Send takes a normal close for the end
            self.files[name] = entry
            if ended:
                await socket.send_json({"ok": True})
                await socket.close()
        else:
            entry.path.unlink()
        self.over.set()
        return socket

    async def _upload(self, request: web.Request) -> web.Response:
        name, entry = self._new(request.headers["X-File-Metadata"], request.headers["Authorization"], 1, DEFAULT_SECONDS)
        entry.path.write_bytes(await request.read())
        self.files[name] = entry
        body = {"id": name, "url": f"{self.url}download/{name}/", "owner": entry.owner}
        return web.json_response(body, headers=_challenge(entry))

    def _entry(self, request: web.Request) -> tuple[str, Entry]:
        name = request.match_info["id"]
        entry = self.files.get(name)
        if entry is None or entry.expires <= self.now or entry.dl >= entry.dlimit:
            raise web.HTTPNotFound
        return name, entry

    async def _exists(self, request: web.Request) -> web.Response:
        entry = self._entry(request)[1]
        return web.json_response({"requiresPassword": entry.pwd}, headers=_challenge(entry))

    def _signed(self, request: web.Request) -> tuple[str, Entry]:
        name, entry = self._entry(request)
        given = _decode(request.headers.get("Authorization", "send-v1 ").split(" ")[1])
        if not hmac.compare_digest(given, hmac.new(entry.auth, entry.nonce, hashlib.sha256).digest()):
            raise web.HTTPUnauthorized(headers=_challenge(entry))
        entry.nonce = os.urandom(16)
        return name, entry

    async def _metadata(self, request: web.Request) -> web.Response:
        entry = self._signed(request)[1]
        body = {
            "metadata": entry.metadata,
            "finalDownload": entry.dl + 1 == entry.dlimit,
            "ttl": (entry.expires - self.now) * 1000,
        }
        return web.json_response(body, headers=_challenge(entry))

    async def _download(self, request: web.Request) -> web.StreamResponse:
        name, entry = self._signed(request)
        content = self.spoil(entry.path.read_bytes())
        response = web.StreamResponse(headers=_challenge(entry) | {"Content-Length": str(len(content))})
        await response.prepare(request)
        for start in range(0, len(content), 65536):
            if self.cut_download_after is not None and start >= self.cut_download_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(content[start : start + 65536])
        await response.write_eof()
        entry.dl += 1
        if entry.dl >= entry.dlimit:
            entry.path.unlink()
            del self.files[name]
        return response

    async def _owned(self, request: web.Request) -> tuple[str, Entry, dict[str, Any]]:
        name, entry = self._entry(request)
        body = await request.json()
        if not hmac.compare_digest(str(body.get("owner_token")), entry.owner):
            raise web.HTTPUnauthorized
        return name, entry, body

    async def _delete(self, request: web.Request) -> web.Response:
        name, entry, _ = await self._owned(request)
        entry.path.unlink()
        del self.files[name]
        return web.Response()

    async def _password(self, request: web.Request) -> web.Response:
        _, entry, body = await self._owned(request)
        entry.auth, entry.pwd = _decode(body["auth"]), True
        return web.Response()

    async def _params(self, request: web.Request) -> web.Response:
        _, entry, body = await self._owned(request)
        if not 0 < body.get("dlimit", 0) <= MAX_DOWNLOADS:
            raise web.HTTPBadRequest
        entry.dlimit = body["dlimit"]
        return web.Response()

    async def _info(self, request: web.Request) -> web.Response:
        _, entry, _ = await self._owned(request)
        return web.json_response({"dlimit": entry.dlimit, "dtotal": entry.dl, "ttl": (entry.expires - self.now) * 1000})


def _challenge(entry: Entry) -> dict[str, str]:
    return {"WWW-Authenticate": f"send-v1 {base64.b64encode(entry.nonce).decode()}"}


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
