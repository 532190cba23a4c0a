"""What an address asks for, in plain values: numbers, bands and ranges, and where the server itself is.

In: requests and their text.  Out: numbers, or an error that says which word is none.  Knows nothing of scenes.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.requests import Request

from ditic_stream.doors.server.answers import NotServedError
from ditic_stream.errors import ConfigError

PREFIX = re.compile(r"(/[A-Za-z0-9._~%-]{1,100}){0,20}")


def base(request: Request) -> str:
    """The address of the index without the last slash, as who asks knows it: behind a proxy with the path that it takes
    off (X-Forwarded-Prefix, or --root-path)."""
    prefix = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    return str(request.base_url).rstrip("/") + (prefix if PREFIX.fullmatch(prefix) else "")


def is_own(host: str) -> bool:
    """True for the names by which a machine calls itself.  host: as the header says it, with or without a port."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def number(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise NotServedError(f"{name} {text[:20]!r} is no number")
    return int(text)


def numbers(text: str, count: int, name: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text) or text.count(",") != count - 1:
        raise ConfigError(f"{name} {text[:60]!r} is not {count} whole numbers with commas between")
    return tuple(int(part) for part in text.split(","))


def shown(request: Request) -> tuple[tuple[int, ...] | None, tuple[tuple[float, float], ...] | None]:
    """?bands=4,3,2 (from 1) and ?rescale=LOW,HIGH (once, or once a band)."""
    bands: tuple[int, ...] | None = None
    query = request.query_params
    if "bands" in query:
        text = query["bands"]
        bands = tuple(band - 1 for band in numbers(text, min(text.count(",") + 1, 3), "bands"))
    ranges = []
    for text in query.getlist("rescale"):
        found = re.fullmatch(r"(-?[0-9.eE+-]{1,30}),(-?[0-9.eE+-]{1,30})", text)
        try:
            if found is None:
                raise ValueError
            ranges.append((float(found[1]), float(found[2])))
        except ValueError:
            raise ConfigError(f"rescale {text[:60]!r} is not LOW,HIGH") from None
    if len(ranges) > 3:
        raise ConfigError(f"{len(ranges)} ranges; at most 3 bands are shown")
    return bands, tuple(ranges) or None
