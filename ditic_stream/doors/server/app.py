"""The server: addresses to answers.

In: a Catalog and settings.  Out: an ASGI application (Starlette).
Knows addresses and HTTP; pixels are made by `display`, in the threads of `gate`; names are keys of the catalog.

    /                                  the archives               /NAME/                      the page to look at one
    /healthz  /info                    state; all archives        /NAME/info  /NAME/rates     facts; bytes of each tile
    /region?archive=NAME&...           the same as                /NAME/region?window=&size=&format=
    /NAME/tilejson.json                                           /NAME/tiles/Z/X/Y[@2x].png|jpg|webp
    /NAME/image.dzi                                               /NAME/image_files/LEVEL/COL_ROW.png|jpg|webp
    /NAME/iiif/info.json                                          /NAME/iiif/REGION/SIZE/ROTATION/QUALITY.FORMAT
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ditic_stream.doors.server import deepzoom, iiif, pages
from ditic_stream.doors.server.answers import Body, Kept, NotServedError, Outgoing, error_answer, etag, matches
from ditic_stream.doors.server.asking import base, number, numbers, shown
from ditic_stream.doors.server.display import check_size
from ditic_stream.doors.server.encoding import MEDIA, checked_format, encode
from ditic_stream.doors.server.gate import Busy, Gate, Ticket
from ditic_stream.doors.server.mercator import Places, check_tile
from ditic_stream.doors.server.resampling import Rgba
from ditic_stream.doors.server.served import Catalog, Served
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window

OUTGOING_BYTES = 2**28
IMMUTABLE = 31536000
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How requests are let through and what clients may keep."""

    threads: int
    """Pictures made at once."""
    timeout: float = 30.0
    """Seconds from a request to its answer, or to a refusal."""
    queue: int = 256
    """Requests that wait, in all."""
    each: int = 64
    """Requests that wait of one client."""
    kept_bytes: int = 2**26
    """Finished pictures kept for the next who asks."""
    max_age: int = 3600
    """Seconds a client may use a picture before it asks again whether it changed."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may read the answers; ("*",): all."""
    page_format: str = "webp"
    """What the page asks tiles in: "png" shows the very pixels."""
    open_iiif: bool = True
    """IIIF answers may be read by pages of any origin, as the API demands."""


class Server:
    """The handlers, and what they share."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.catalog, self.settings = catalog, settings
        self.gate = Gate(
            threads=settings.threads, queue=settings.queue, each=settings.each, timeout=settings.timeout
        )  # fmt: skip
        self.kept, self.outgoing = Kept(settings.kept_bytes), Outgoing(OUTGOING_BYTES)
        self._places: dict[str, Places] = {}

    # --- pages and facts

    async def index(self, request: Request) -> Response:
        return pages.index(self.catalog)

    async def static(self, request: Request) -> Response:
        return pages.static(request.path_params["file"])

    async def health(self, request: Request) -> Response:
        facts = {
            "status": "ok", "archives": len(self.catalog), **self.gate.facts(), "kept_bytes": self.kept.bytes,
            "outgoing_bytes": self.outgoing.bytes,
        }  # fmt: skip
        return JSONResponse(facts, headers={"Cache-Control": "no-store"})

    async def listing(self, request: Request) -> Response:
        found = [
            {"name": one.name, "shape": list(one.scene.shape), "dtype": str(one.scene.dtype), "crs": one.scene.crs}
            for one in self.catalog
        ]
        return JSONResponse({"archives": found}, headers={"Cache-Control": "no-cache"})

    async def to_page(self, request: Request) -> Response:
        return RedirectResponse(f"{base(request)}/{self._served(request).name}/", 307)

    async def page(self, request: Request) -> Response:
        self._served(request)
        return pages.viewer()

    async def info(self, request: Request) -> Response:
        served = self._served(request)
        facts = await self._run(request, (served.name, "info"), lambda ticket: served.facts())
        facts["page_format"] = self.settings.page_format
        return JSONResponse(facts, headers={"Cache-Control": "no-cache"})

    async def rates(self, request: Request) -> Response:
        served = self._served(request)
        facts = await self._run(request, (served.name, "rates"), lambda ticket: served.rates())
        return JSONResponse(facts, headers={"Cache-Control": "no-cache"})

    # --- pictures

    async def region(self, request: Request) -> Response:
        """?window=COL,ROW,WIDTH,HEIGHT (all of it), &size=WIDTH,HEIGHT (that of the window), &format= (png)."""
        served = self._served(request)
        height, width = served.scene.shape[:2]
        query = request.query_params
        col, row, wide, high = numbers(query.get("window", f"0,0,{width},{height}"), 4, "window")
        window = Window(row=row, col=col, height=high, width=wide).within(height, width)
        made_w, made_h = numbers(query["size"], 2, "size") if "size" in query else (wide, high)
        check_size(made_w, made_h)
        form = checked_format(query.get("format", "png"))
        show = shown(request)
        box = (window.col, window.row, window.col_end, window.row_end)

        def make(ticket: Ticket) -> Rgba:
            return served.picture(served.stretch(*show)).render(box, made_w, made_h, ticket.check)

        return await self._picture(request, served, ("region", box, made_w, made_h, show), form, make)

    async def tilejson(self, request: Request) -> Response:
        served = self._served(request)
        form = checked_format(request.query_params.get("format", "webp"))
        show = shown(request)

        def place(ticket: Ticket) -> Places:
            served.stretch(*show)  # says so when there are no such bands
            return self._place(served)

        places = await self._run(request, (served.name, "places", show), place)
        chosen = [("bands", request.query_params["bands"])] if show[0] else []
        chosen += [("rescale", text) for text in request.query_params.getlist("rescale")]
        query = urlencode([("v", served.version), *chosen], safe=",")
        address = f"{base(request)}/{served.name}/tiles/{{z}}/{{x}}/{{y}}.{form}?{query}"
        return JSONResponse(places.tilejson(served.name, address), headers={"Cache-Control": "no-cache"})

    async def tile(self, request: Request) -> Response:
        served = self._served(request)
        last = re.fullmatch(r"([0-9]{1,9})(@2x)?\.([A-Za-z]+)", request.path_params["y"])
        if last is None:
            raise NotServedError("map tiles are named z/x/y.png, .jpg or .webp")
        z, x, y = number(request.path_params["z"], "z"), number(request.path_params["x"], "x"), int(last[1])
        check_tile(z, x, y)
        size, form, show = 512 if last[2] else 256, checked_format(last[3]), shown(request)

        def make(ticket: Ticket) -> Rgba:
            return self._place(served).tile(served.picture(served.stretch(*show)), z, x, y, size)

        return await self._picture(request, served, ("tile", z, x, y, size, show), form, make)

    async def dzi(self, request: Request) -> Response:
        served = self._served(request)
        height, width = served.scene.shape[:2]
        form = checked_format(request.query_params.get("format", "png" if served.transparent() else "jpg"))
        return Response(
            deepzoom.descriptor(width, height, form),
            media_type="application/xml",
            headers={"Cache-Control": "no-cache"},
        )

    async def dzi_tile(self, request: Request, *, original: bool = False) -> Response:
        served = self._served(request)
        if original and served.original is None:
            raise NotServedError(f"the source of {served.name} is not at hand")
        if original and served.original is not None and served.original.error is not None:
            raise NotServedError(f"{served.original.name} cannot be read; the log of the server says why")
        if original and served.original is not None and served.original.done < 1:
            raise Busy(f"the overview of its source is being made: {served.original.done:.0%}", seconds=2)
        place = re.fullmatch(r"([0-9]{1,9})_([0-9]{1,9})\.([A-Za-z]+)", request.path_params["tile"])
        if place is None:
            raise NotServedError("tiles are named LEVEL/COL_ROW.png, .jpg or .webp")
        level, col, row = number(request.path_params["level"], "level"), int(place[1]), int(place[2])
        form, show = checked_format(place[3]), shown(request)
        height, width = served.scene.shape[:2]
        try:
            window, down = deepzoom.tile_window(width, height, level, col, row)
        except ConfigError as error:
            raise NotServedError(error.message) from error

        def make(ticket: Ticket) -> Rgba:
            return served.picture(served.stretch(*show), original=original).tile(window, down)

        key = ("dzi", level, col, row, show, original)
        return await self._picture(request, served, key, form, make, original=original)

    # --- IIIF

    async def iiif_base(self, request: Request) -> Response:
        return RedirectResponse(
            f"{base(request)}/{self._served(request).name}/iiif/info.json", 303, self._iiif_headers()
        )

    async def iiif_info(self, request: Request) -> Response:
        served = self._served(request)
        height, width = served.scene.shape[:2]
        linked = "application/ld+json" in request.headers.get("accept", "")
        return JSONResponse(
            iiif.info(f"{base(request)}/{served.name}/iiif", width, height),
            media_type=f'application/ld+json;profile="{iiif.CONTEXT}"' if linked else "application/json",
            headers={**self._iiif_headers(), "Cache-Control": "no-cache", "Vary": "Accept"},
        )

    async def iiif_image(self, request: Request) -> Response:
        served = self._served(request)
        height, width = served.scene.shape[:2]
        parts = (request.path_params[part] for part in ("region", "size", "rotation", "last"))
        asked = iiif.parse(*parts, width=width, height=height)
        box = (asked.left, asked.top, asked.right, asked.bottom)

        def make(ticket: Ticket) -> Rgba:
            return iiif.finished(served.picture().render(box, asked.width, asked.height, ticket.check), asked)

        canonical = f"{base(request)}/{served.name}/iiif/{asked.canonical(width, height)}"
        answer = await self._picture(request, served, ("iiif", asked), asked.form, make)
        answer.headers["Link"] = f'<{canonical}>;rel="canonical", <{iiif.PROFILE}>;rel="profile"'
        answer.headers.update(self._iiif_headers())
        return answer

    # --- how

    def _iiif_headers(self) -> dict[str, str]:
        return {"Access-Control-Allow-Origin": "*"} if self.settings.open_iiif else {}

    def _served(self, request: Request) -> Served:
        name = request.path_params.get("name") or request.query_params.get("archive")
        if name is None and len(self.catalog) == 1:
            (only,) = self.catalog
            return only
        served = self.catalog.get(name) if name is not None else None
        if served is None:
            raise NotServedError("no archive of this name is served; / lists those that are")
        return served

    def _place(self, served: Served) -> Places:
        places = self._places.get(served.name)
        if places is None:
            scene = served.scene
            places = Places(scene.shape[1], scene.shape[0], scene.crs, scene.transform)
            self._places[served.name] = places
        return places

    async def _picture(
        self,
        request: Request,
        served: Served,
        key: tuple[Hashable, ...],
        form: str,
        make: Callable[[Ticket], Rgba],
        *,
        original: bool = False,
    ) -> Response:
        """A picture: not at all when the client has it, kept from before, or made in a thread when its turn comes."""
        version = served.version_of(original=original)
        key = (served.name, version, form, *key)
        tag = etag(*key)
        fresh = request.query_params.get("v") == version
        age = f"max-age={IMMUTABLE}, immutable" if fresh else f"max-age={self.settings.max_age}"
        headers = {"ETag": tag, "Cache-Control": f"public, {age}"}
        if matches(request, tag):
            return Response(status_code=304, headers=headers)
        body = self.kept.get(key)
        if body is None:

            def run(ticket: Ticket) -> bytes:
                ticket.check()
                rgba = make(ticket)
                ticket.check()
                return encode(rgba, form)

            body = await self._run(request, key, run)
            assert isinstance(body, bytes)
            self.kept.put(key, body)
        return Body(body, self.outgoing, media_type=MEDIA[form], headers=headers)

    async def _run(self, request: Request, key: Hashable, run: Callable[[Ticket], Any]) -> Any:
        """The result of a job, in its turn; dropped when the client hangs up."""
        client = request.client.host if request.client else ""
        job = asyncio.ensure_future(self.gate.run(client, key, run))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise HungUp
            return job.result()
        finally:
            for one in (job, gone):
                one.cancel()


class HungUp(Exception):
    """The client is gone: nobody will read an answer."""


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _guarded(handler: Handler) -> Handler:
    """Errors as answers."""

    async def guarded(request: Request) -> Response:
        try:
            answer = await handler(request)
        except HungUp:
            answer = Response(status_code=499)
        except Exception as error:
            answer = error_answer(error)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    return guarded


async def _unknown(request: Request, error: Exception) -> Response:
    return error_answer(NotServedError("there is nothing under this address; / lists what there is"))


def make_app(catalog: Catalog, settings: Settings) -> Starlette:
    """The application.  The catalog stays the caller's to close, after the application has ended."""
    server = Server(catalog, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        server.gate.close()

    addresses: list[tuple[str, Handler]] = [
        ("/", server.index),
        ("/healthz", server.health),
        ("/info", server.listing),
        ("/region", server.region),
        ("/static/{file}", server.static),
        ("/{name}", server.to_page),
        ("/{name}/", server.page),
        ("/{name}/info", server.info),
        ("/{name}/rates", server.rates),
        ("/{name}/region", server.region),
        ("/{name}/tilejson.json", server.tilejson),
        ("/{name}/tiles/{z}/{x}/{y}", server.tile),
        ("/{name}/image.dzi", server.dzi),
        ("/{name}/image_files/{level}/{tile}", server.dzi_tile),
        ("/{name}/original_files/{level}/{tile}", partial(server.dzi_tile, original=True)),
        ("/{name}/iiif", server.iiif_base),
        ("/{name}/iiif/info.json", server.iiif_info),
        ("/{name}/iiif/{region}/{size}/{rotation}/{last}", server.iiif_image),
    ]
    middleware = []
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "HEAD"],
                expose_headers=["ETag", "Link", "Retry-After"],
            )
        )  # fmt: skip
    app = Starlette(
        routes=[Route(path, _guarded(handler)) for path, handler in addresses],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={404: _unknown},
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


__all__ = ["Server", "Settings", "make_app"]
