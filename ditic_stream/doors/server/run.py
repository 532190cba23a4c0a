"""Start the server in this process, on a socket that is open before anyone is told of it.

In: a Catalog, settings, host and port.  Out: a server that runs until SIGINT or SIGTERM.
Knows uvicorn; knows nothing of scenes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn

from ditic_stream.doors.server.app import Settings, make_app
from ditic_stream.doors.server.served import Catalog
from ditic_stream.errors import ConfigError

MAX_CONNECTIONS = 1024
"""Connections at once; more are told 503."""
IDLE_SECONDS, END_SECONDS = 15, 5


def serve(
    catalog: Catalog,
    settings: Settings,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    access_log: bool = False,
) -> None:
    """Serve until the process is told to end; requests under way get a few seconds to finish.

    port: 0 takes a free one.  ready: called with the address once connections are taken.
    Raises ConfigError when the address cannot be had.
    """
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=MAX_CONNECTIONS
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}; choose another with --port") from error
    # Heads and bodies go out in two pieces: without this, the second waits for the client to confirm the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        taken = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            make_app(catalog, settings), log_level="info" if access_log else "warning", access_log=access_log,
            limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=END_SECONDS,
            server_header=False, ws="none",
        )  # fmt: skip
        server = uvicorn.Server(config)
        ready(f"http://{shown}:{taken}/")
        # uvicorn ends in good order and then raises the signal anew for whoever else waits for it: nobody does.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
