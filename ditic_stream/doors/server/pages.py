"""The pages, and the few files they need: all from the package, none from the network.

In: the catalog, names of files.  Out: HTML, JavaScript, CSS.  A name is a key of FILES and never becomes a path.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files

from starlette.responses import Response

from ditic_stream.doors.server.answers import NotServedError, etag
from ditic_stream.doors.server.served import Catalog

FILES = {
    "openseadragon.min.js": "text/javascript",
    "openseadragon.LICENSE.txt": "text/plain",
    "viewer.js": "text/javascript",
    "viewer.css": "text/css",
}
"""What /static/ serves, and nothing else."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'"
)
"""The page may load from this server alone.  OpenSeadragon sets styles of elements, and draws blobs it has fetched."""
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "same-origin"}


@cache
def _read(name: str) -> bytes:
    return files("ditic_stream.doors.server").joinpath("static", name).read_bytes()


def static(name: str) -> Response:
    """A file of the page.  NotServedError for any other name."""
    if name not in FILES:
        raise NotServedError("the pages have no such file")
    body = _read(name)
    return Response(body, media_type=FILES[name], headers={"Cache-Control": "no-cache", "ETag": etag(body)})


def viewer() -> Response:
    """The page to look at one archive; it asks for `info` beside itself."""
    return Response(_read("viewer.html"), media_type="text/html", headers=HEADERS)


def index(catalog: Catalog) -> Response:
    """The archives, with where each of them is to be had."""
    rows = []
    for one in catalog:
        height, width, samples = one.scene.shape
        name, placed = escape(one.name), one.scene.crs and one.scene.transform
        map_tiles = f'<a href="{name}/tilejson.json">TileJSON</a> ' if placed else ""
        rows.append(
            f'<li><a class="name" href="{name}/">{name}</a> {width} x {height} pixels, {samples} '
            f"{'band' if samples == 1 else 'bands'}, {escape(str(one.scene.dtype))}<br>"
            f'{map_tiles}<a href="{name}/image.dzi">Deep Zoom</a> <a href="{name}/iiif/info.json">IIIF</a> '
            f'<a href="{name}/info">info</a></li>'
        )
    body = _read("index.html").decode().replace("<!-- archives -->", "\n".join(rows))
    return Response(body, media_type="text/html", headers=HEADERS)
