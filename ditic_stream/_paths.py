"""Names of files as users give them: a path or a file:// URI.  Other places are not read yet, and are named so."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from ditic_stream.errors import SourceError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(name: str | Path) -> Path:
    """The path that `name` means on this machine.

    Raises SourceError for a URI of another scheme or another host.
    """
    text = str(name)
    found = SCHEME.match(text)
    if found is None:
        return Path(name)
    host, _, path = text[found.end() :].partition("/")
    if found.group().lower() != "file://" or host not in ("", "localhost"):
        raise SourceError(f"{text} is not on this machine: only local files for now; copy it here first")
    return Path("/" + unquote(path))


def everywhere(name: str | Path) -> str:
    """A name that means the same in any process: workers on a cluster have another working folder."""
    return str(name) if SCHEME.match(str(name)) else str(Path(name).absolute())
