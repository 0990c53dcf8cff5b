"""Stands before the application: keys, sizes, times, counts, and an answer in one form to whatever goes wrong."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from mbrl_jax.serving.server.measures import Measures
from mbrl_jax.serving.server.reading import ARROW, JSON, Limits
from mbrl_jax.serving.server.refusal import Refused, shown

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = "mbrl_jax.body"  # where a request's scope has its body, and
MEDIA = "mbrl_jax.media"  # the media type of it
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json")  # answered without a key

FAILED = ("server", "it failed to answer; its log says why")

log = logging.getLogger("mbrl_jax.serving")


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, paths: set[str], measures: Measures, limits: Limits, key: str | None):
        """Guard the paths of an application; with a key, all but a few need it."""
        self._app, self._paths, self._measures, self._limits = app, paths, measures, limits
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, started, whole = time.perf_counter(), 500, False, False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status, started, whole
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            else:
                whole = not message.get("more_body", False)
            await send(message)

        try:
            try:
                self._admit(scope)
                if scope["method"] == "POST":
                    scope[MEDIA] = self._media(scope)
                    scope[BODY] = await self._body(scope, receive)
                await self._app(scope, receive, watched)
            except Refused as refused:
                await _answer(watched, refused.status, refused.field, refused.detail)
        except Exception as error:
            log.exception("a request to %s failed", shown(scope["path"]))
            if started and not whole:  # the status is sent: all that can be told is that the answer has no end
                raise ConnectionAbortedError("the answer could not be finished") from error
            if not started:
                await _answer(watched, 500, *FAILED)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._measures.answered(path, status, time.perf_counter() - begun)

    def _admit(self, scope: Scope) -> None:
        """Refuse whoever has not the key."""
        if self._key is None or scope["path"] in OPEN or scope["path"].startswith("/page/"):
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", headers.get(b"authorization", b"").removeprefix(b"Bearer "))
        if not hmac.compare_digest(given, self._key):
            raise Refused(401, "x-api-key", "it is missing or not the one; it must be that of the server")

    def _media(self, scope: Scope) -> str:
        """The media type of a body; that it must be named keeps pages of other hosts from sending one unasked."""
        for name, value in scope["headers"]:
            if name == b"content-type":
                media: str = value.split(b";")[0].strip().lower().decode("latin-1")
                if media in (JSON, ARROW):
                    return media
                raise Refused(415, "content-type", f"{shown(media)} does not fit; it must be {JSON} or {ARROW}")
        raise Refused(415, "content-type", f"it is missing; it must be {JSON} or {ARROW}")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, if it is small enough and comes in time."""
        most = self._limits.body
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                raise Refused(413, "body", f"{int(value):,} bytes are too many; it must be at most {most:,}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "body", "it has no end")
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise Refused(413, "body", f"it is too large; it must be at most {most:,} bytes")
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, "body", f"it did not arrive within {self._limits.seconds:g} s") from None


async def _answer(send: Send, status: int, field: str, detail: str) -> None:
    content = orjson.dumps({"field": field, "detail": detail})
    headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
