"""`verify --deep`: besides every byte, decode the symbols of every tile and hold them against their checksum.

In: an archive.  Out: the Report of `verify`, with a problem for each tile whose symbols do not come out.
Needs torch and the weights the archive names; renders no pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from ditic_stream._paths import Name
from ditic_stream._rendering import codec_of, groups_of
from ditic_stream.archive import open_archive
from ditic_stream.bitstream import Record
from ditic_stream.errors import FormatError
from ditic_stream.executors import one_thread
from ditic_stream.geometry import TileKey
from ditic_stream.verify import Report, verify


def verify_deep(path: Name, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None) -> Report:
    """Check every byte and all symbols of an archive.

    progress: called with (bytes done, bytes of all objects).  Raises SourceError when there is no archive, WeightsError
    when the weights it names are not at hand, DesyncError when this device fails its known-answer test.
    """
    try:
        archive = open_archive(path)
    except FormatError:
        return verify(path)  # which reports it
    with archive, one_thread():
        manifest, grid = archive.manifest, archive.grid
        codec = codec_of(manifest, device)

        def check(key: TileKey, record: Record) -> None:
            core = grid.latent_core(key)
            codec.decode_symbols(record, groups_of(manifest), core.height, core.width, manifest.q)

        return verify(archive, progress, check)
