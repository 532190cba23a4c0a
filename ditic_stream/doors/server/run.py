"""Start the server in this process, on a socket that is open before anyone is told of it.

In: a Catalog, settings, host and port.  Out: a server that runs until SIGINT or SIGTERM.
Knows uvicorn; knows nothing of scenes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ditic_stream.doors.server.app import Settings, make_app
from ditic_stream.doors.server.asking import PREFIX
from ditic_stream.doors.server.served import Catalog
from ditic_stream.errors import ConfigError

MAX_CONNECTIONS = 1024
"""Connections at once; more are told 503."""
HEAD_SECONDS, IDLE_SECONDS, END_SECONDS = 15, 15, 5
"""A client's time for the head of a request, and between requests; that of requests under way when the server ends."""


class Punctual(H11Protocol):
    """uvicorn's HTTP, and a time by which the head of a request has to be there: who sends none, or sends it a letter
    at a time, is cut off and does not keep one of the connections."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.  ConfigError when the address cannot be had."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=MAX_CONNECTIONS
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}; choose another with --port") from error
    # Heads and bodies go out in two pieces: without this, the second waits for the client to confirm the first, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def configured(app: Starlette, *, access_log: bool = False, root_path: str = "") -> uvicorn.Config:
    """How uvicorn runs the application.  root_path: what a proxy before it takes off of each path."""
    return uvicorn.Config(
        app, http=Punctual, ws="none", log_level="info" if access_log else "warning", access_log=access_log,
        limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=END_SECONDS,
        server_header=False, root_path=root_path,
    )  # fmt: skip


def serve(
    catalog: Catalog,
    settings: Settings,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    access_log: bool = False,
    root_path: str = "",
) -> None:
    """Serve until the process is told to end; requests under way get a few seconds to finish.

    port: 0 takes a free one.  ready: called with the address once connections are taken.
    root_path: the path below which a proxy shows it, as "/maps".
    Raises ConfigError when the address cannot be had, or the path is none.
    """
    root_path = root_path.rstrip("/")
    if not PREFIX.fullmatch(root_path):
        raise ConfigError(f"--root-path {root_path!r:.80} is no path; give it like /maps")
    with listen(host, port) as listener:
        taken = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(configured(make_app(catalog, settings), access_log=access_log, root_path=root_path))
        ready(f"http://{shown}:{taken}/")
        # uvicorn ends in good order and then raises the signal anew for whoever else waits for it: nobody does.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
