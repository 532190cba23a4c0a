"""Compress scenes too large to hold with a learned codec, tile by tile, and read any window of them back.

    import ditic_stream

    ditic_stream.compress("scene.tif", "scene.ditic", quality=60)
    with ditic_stream.open("scene.ditic") as scene:
        pixels = scene[2048:2560, 1024:1536]          # (rows, columns, bands)
    ditic_stream.decompress("scene.ditic", "scene.decoded.tif")

Importing this loads nothing else; torch, zarr and imagecodecs come with the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from os import path as _path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditic_stream import errors as errors
    from ditic_stream.compression import compress as compress
    from ditic_stream.geometry import Window as Window
    from ditic_stream.regions import decompress as decompress
    from ditic_stream.scene import open_scene as open

__version__ = "0.1.0"
if not _path.isdir(_path.join(__path__[0], "schemas")):
    # Python started in a checkout takes this folder for the package, and there schemas/ and workers/ stand beside it.
    __path__.append(_path.dirname(__path__[0]))

_HOMES = {
    "Window": ("ditic_stream.geometry", "Window"),
    "compress": ("ditic_stream.compression", "compress"),
    "decompress": ("ditic_stream.regions", "decompress"),
    "errors": ("ditic_stream.errors", None),
    "open": ("ditic_stream.scene", "open_scene"),
}
__all__ = ["Window", "__version__", "compress", "decompress", "errors", "open"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ditic_stream' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    home = import_module(module)
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
