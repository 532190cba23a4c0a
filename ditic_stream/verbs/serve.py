"""Archives over HTTP: serve, and view with its page."""

from __future__ import annotations

import threading
from functools import partial
from typing import Annotated, Any

import typer

from ditic_stream import console
from ditic_stream.errors import ConfigError, DiticError
from ditic_stream.verbs.options import Archive, Device, Json, OnError, Quiet, byte_count

Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Pictures made at once (default: the cores); some 300 MB each at tiles of 1024."),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds a request may take, waiting and decoding, before 503.")]
Cache = Annotated[
    str, typer.Option(metavar="BYTES", help="Memory for decoded tiles and finished pictures, as 500MB or 2GB.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]


def serve(
    archives: Annotated[
        list[str], typer.Argument(metavar="ARCHIVE...", help="Archives, paths or URIs, each served by its name.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    threads: Threads = None,
    cache: Cache = "512MB",
    timeout: Timeout = 30.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told 503.")] = 256,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages of this origin read the answers; '*': all.")
    ] = None,
    max_age: Annotated[
        int, typer.Option(min=0, help="Seconds clients may keep a picture before they ask again.")
    ] = 3600,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Path below which a proxy shows this, as /maps; it takes that off.")
    ] = "",
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request on stderr.")] = False,
    device: Device = "cpu",
    on_error: OnError = "stop",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve archives: map tiles, Deep Zoom, IIIF, regions, and a page for each.  Ends at Ctrl-C.

    \b
    Example:  ditic-stream serve scene.ditic other.ditic.zip --port 8000
    """
    _run(
        [(archive, None) for archive in archives], host=host, port=port, threads=threads, cache=cache, device=device,
        on_error=on_error, as_json=as_json, quiet=quiet, access_log=access_log, browse=False, root_path=root_path,
        settings={"timeout": timeout, "queue": queue, "cors": tuple(cors or ()), "max_age": max_age},
    )  # fmt: skip


def view(
    archive: Archive,
    source: Annotated[
        str | None,
        typer.Option(help="The scene it was made from, to swipe against (default: looked for beside the archive)."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 0,
    threads: Threads = None,
    cache: Cache = "512MB",
    timeout: Timeout = 120.0,
    device: Device = "cpu",
    on_error: OnError = "stop",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at an archive in the browser: pan, zoom, swipe against the original, tile grid, rate map.  Ends at Ctrl-C.

    \b
    Example:  ditic-stream view scene.ditic --source scene.tif
    """
    _run(
        [(archive, source)], host=host, port=port, threads=threads, cache=cache, device=device, on_error=on_error,
        as_json=as_json, quiet=quiet, access_log=False, browse=not no_browser, look=True,
        settings={"timeout": timeout, "page_format": "png", "open_iiif": False, "max_age": 0},
    )  # fmt: skip


def _run(
    archives: list[tuple[Any, Any]],
    *,
    host: str,
    port: int,
    threads: int | None,
    cache: str,
    device: str,
    on_error: Any,
    as_json: bool,
    quiet: bool,
    access_log: bool,
    browse: bool,
    settings: dict[str, Any],
    look: bool = False,
    root_path: str = "",
) -> None:
    try:
        from ditic_stream.doors.server.app import Settings
        from ditic_stream.doors.server.asking import is_own
        from ditic_stream.doors.server.run import serve as run
        from ditic_stream.doors.server.served import Catalog, source_at_hand
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(f"serving needs {error.name}; install it with pip install 'ditic-stream[serve]'") from None
    from ditic_stream.executors import cores

    total, threads = byte_count(cache, "--cache") or 0, threads or cores()
    with console.interruptible("nothing was changed"), Catalog() as catalog:
        for archive, source in archives:
            add = partial(
                catalog.add, archive, device=device, on_error=on_error, cache_bytes=total * 3 // 4 // len(archives),
                threads=max(threads // len(archives), 1),
            )  # fmt: skip
            found = source_at_hand(archive) if look and source is None else None
            if found is None:
                add(source=source)
                continue
            try:
                add(source=found)
                console.note(f"original: {found}", quiet=quiet)
            except DiticError as error:  # nobody asked for it: the archive can be seen without
                add()
                console.note(f"{found} is not shown beside it: {error.message}", quiet=quiet)

        def ready(address: str) -> None:
            places = {one.name: f"{address}{one.name}/" for one in catalog}
            page = next(iter(places.values())) if look else address
            console.emit(
                {"url": page, "archives": places}, as_json=as_json, quiet=quiet,
                lines=[f"{page}  (Ctrl-C ends it)"],
            )  # fmt: skip
            threading.Thread(target=next(iter(catalog)).warm, daemon=True).start()
            if browse:
                import webbrowser

                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

        own = look and is_own(f"[{host}]" if ":" in host else host)
        run(
            catalog, Settings(threads=threads, kept_bytes=total // 4, own_names=own, **settings),
            host=host, port=port, ready=ready, access_log=access_log, root_path=root_path,
        )  # fmt: skip
