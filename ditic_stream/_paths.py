"""Names of files as users give them: a path or a file:// URI on this machine, or the URI of another place.

In: text.  Out: a Path, or a Uri, which has the same few ways of being asked and turned into a neighbour's name.
Knows spelling; opens nothing.  A Uri shows itself without the credentials it may carry; `full` has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from ditic_stream.errors import SourceError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class Uri:
    """The name of an object, or of all objects below it, on another machine.

    `query` stays with every name made from this one: it is where signed URLs carry their signature.
    """

    scheme: str
    authority: str
    """Host or bucket, with user and password if the URI has them."""
    path: str
    """As written, percent-encoded, without a slash at its end."""
    query: str = ""

    @property
    def full(self) -> str:
        """The URI with all that it was given with.  For the one who connects, never for a message."""
        return f"{self.scheme}://{self.authority}{self.path}{f'?{self.query}' if self.query else ''}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.rpartition('@')[2]}{self.path}"

    def __repr__(self) -> str:
        return f"Uri({str(self)!r})"

    @property
    def is_web(self) -> bool:
        """True for plain HTTP, which has no listing and is not written to."""
        return self.scheme in WEB

    @property
    def name(self) -> str:
        return unquote(self.path.rpartition("/")[2])

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> Uri:
        """The neighbour of that name."""
        return replace(self, path=f"{self.path.rpartition('/')[0]}/{quote(name)}")


Place = Path | Uri
Name = str | Path | Uri
"""What callers may name a place by."""


def place_of(name: Name) -> Place:
    """The path on this machine, or the URI, that `name` means.

    Raises SourceError for a file:// URI of another host, and for a URI that names no object.
    """
    if isinstance(name, Uri):
        return name
    text = str(name)
    found = SCHEME.match(text)
    if found is None:
        return Path(name)
    scheme = found.group()[:-3].lower()
    authority, _, rest = text[found.end() :].partition("/")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise SourceError(f"{text} is not on this machine; mount it, or name it by http:// or s3://")
        return Path("/" + unquote(rest))
    path, _, query = rest.partition("#")[0].partition("?")
    uri = Uri(scheme, authority, f"/{path.rstrip('/')}", query)
    if not authority or not path.strip("/"):
        raise SourceError(f"{uri} names a host or a bucket, and nothing in it; name an object")
    return uri


def local_path(name: Name) -> Path:
    """The path that `name` means on this machine.  Raises SourceError when it lies elsewhere."""
    place = place_of(name)
    if isinstance(place, Uri):
        raise SourceError(f"{place} is not on this machine; decoded files are written here: name a path")
    return place


def everywhere(place: Place) -> Place:
    """A place by a name that means the same in any process: workers on a cluster have another working folder."""
    return place if isinstance(place, Uri) else place.absolute()
