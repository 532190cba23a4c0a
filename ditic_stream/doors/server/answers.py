"""Answers over HTTP: bodies with ETags that are sent within bounds, errors as JSON, and the bodies kept for next time.

In: bytes, errors.  Out: Starlette responses.  Knows HTTP; knows nothing of scenes.

A body is sent in pieces, and a client that takes none for a while is let go; what is on its way to clients is counted,
and there is a bound to it: slow readers cannot fill the memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ditic_stream.doors.server.display import TooLargeError
from ditic_stream.doors.server.gate import Busy
from ditic_stream.doors.server.iiif import UnsupportedError
from ditic_stream.errors import ConfigError, DiticError

PIECE = 2**18
STALL_SECONDS = 30.0
"""A client that takes no piece for so long is let go."""
_log = logging.getLogger(__name__)


class NotServedError(DiticError, LookupError):
    """There is nothing under this address."""

    kind = "address"


class Outgoing:
    """Bytes on their way to clients, and how many may be."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def take(self, count: int) -> None:
        """Busy when there is no room for `count` bytes more."""
        if self.bytes and self.bytes + count > self.limit:
            raise Busy(f"{self.bytes} bytes are on their way to clients; at most {self.limit} may be", seconds=2)
        self.bytes += count

    def give(self, count: int) -> None:
        self.bytes -= count


class Kept:
    """Bodies by key, those used last, up to `limit` bytes in all.  For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._bodies: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        body = self._bodies.get(key)
        if body is not None:
            self._bodies.move_to_end(key)
        return body

    def put(self, key: Hashable, body: bytes) -> None:
        """Keep a body, unless it alone takes an eighth of the room."""
        if key in self._bodies or len(body) > self.limit // 8:
            return
        self._bodies[key] = body
        self.bytes += len(body)
        while self.bytes > self.limit:
            self.bytes -= len(self._bodies.popitem(last=False)[1])


class Body(Response):
    """A body sent in pieces, within the bounds of `outgoing`."""

    def __init__(self, body: bytes, outgoing: Outgoing, **rest: Any) -> None:
        super().__init__(body, **rest)
        self._outgoing = outgoing
        outgoing.take(len(body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = bytes(self.body)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, max(len(whole), 1), PIECE):
                more = start + PIECE < len(whole)
                message = {"type": "http.response.body", "body": whole[start : start + PIECE], "more_body": more}
                async with asyncio.timeout(STALL_SECONDS):
                    await send(message)
        except TimeoutError:
            _log.info("a client took nothing for %g s and was let go", STALL_SECONDS)
        finally:
            self._outgoing.give(len(whole))


def etag(*parts: object) -> str:
    """A strong ETag of whatever decides the bytes."""
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"'


def matches(request: Request, tag: str) -> bool:
    """True when the client has this body already."""
    asked = request.headers.get("if-none-match", "")
    return any(one.strip().removeprefix("W/") in (tag, "*") for one in asked.split(",")) if asked else False


def error_answer(error: Exception) -> Response:
    """An error as JSON: {"kind": ..., "message": ...}, with the status that says who is to act.

    400 the request, 413 its size, 404 the address, 501 a word not known, 503 later, 500 the archive or ourselves: what
    is wrong there is logged, not told, for it may name places on this machine; but for the tile.
    """
    headers = {"Cache-Control": "no-store"}
    status = 500
    match error:
        case Busy():
            status, headers["Retry-After"] = 503, str(error.seconds)
        case NotServedError():
            status = 404
        case TooLargeError():
            status = 413
        case UnsupportedError():
            status = 501
        case ConfigError():
            status = 400
    if isinstance(error, DiticError):
        kind, message = error.kind, error.message
        if status == 500:
            _log.error("%s: %s", kind, error)
            where = f"tile {error.key}" if error.key else "the archive"
            message = f"{where} cannot be decoded ({kind}); the log of the server says why"
    else:
        _log.error("a request failed", exc_info=error)
        kind, message = "internal", "the server failed on this request; its log says why"
    return JSONResponse({"kind": kind, "message": message}, status, headers)
