"""Decode tiles and render windows, in any process: the work behind `regions`, and its order.

In: an archive by its name, and jobs.  Out: latents in a spool and pixels in slots, both shared with the parent.
Knows records, the codec and where results go; knows nothing of blending, dtypes of files or outputs.

A scene is decoded in row-major order.  Each tile's symbols are decoded once, by one job, into the spool; the windows
around it are rendered by other jobs, from the spool, whoever runs them.  Nothing waits for anything: the order of jobs
alone keeps a window behind the tiles it reads (`schedule`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ditic_stream._paths import Place
from ditic_stream.archive import Archive, open_archive
from ditic_stream.bitstream import EMPTY, Record
from ditic_stream.errors import (
    DesyncError,
    FormatError,
    MissingTileError,
    WeightsError,
    naming,
)
from ditic_stream.executors import Note, Shared, loaded, one_thread
from ditic_stream.families import family_of
from ditic_stream.geometry import TileKey
from ditic_stream.latents import Cells, Latent, LatentSpool, assemble
from ditic_stream.manifest import Manifest
from ditic_stream.models.folder import at_hand
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream.codec import TileCodec

Pixels = NDArray[np.float32]
DAMAGE = (FormatError, MissingTileError, DesyncError)
"""What a damaged, foreign or lost tile raises; `on_error="fill"` goes on after these and after nothing else."""


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """Read a tile's record, decode its symbols, put the latents into the spool.  count: the same for so many tiles of
    its row, from it on, in lockstep; of an archive that is far away their records come together."""

    key: TileKey
    count: int = 1

    @property
    def keys(self) -> list[TileKey]:
        return [TileKey(self.key.row, self.key.col + place) for place in range(self.count)]

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, slots=True)
class RenderWindow:
    """Render a tile's decode window into a slot.  blank: do not; nothing of it will be seen."""

    key: TileKey
    slot: int
    blank: bool

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing: keeps a window far enough behind the tiles it reads."""


Job = DecodeTile | RenderWindow | Pause


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a tile: EMPTY, coded, or damaged (then the reason, and its latents are zero)."""

    key: TileKey
    empty: bool = False
    damage: str | None = None


def tiles_read(grid: Grid, rows: range, cols: range) -> tuple[range, range]:
    """Tile rows and tile columns whose records the windows of `rows` x `cols` need."""
    reach = 1 if grid.config.overlap else 0
    return (
        range(max(rows[0] - reach, 0), min(rows[-1] + reach + 1, grid.rows)),
        range(max(cols[0] - reach, 0), min(cols[-1] + reach + 1, grid.cols)),
    )


def schedule(
    grid: Grid, rows: range, cols: range, distance: int, together: int = 1
) -> Iterator[DecodeTile | TileKey | Pause]:
    """The order in which to decode tiles and to render the windows of `rows` x `cols`; a bare TileKey is a window.

    distance: at least so many places lie between a tile and a window that reads it.  An executor that runs in order
    with `distance` in flight has finished a window's tiles when it takes the window.
    together: tiles of a row that one place decodes, at most.
    Tiles run `distance` windows ahead, so that pauses are needed at the start and in tiny scenes only.
    """
    reach = 1 if grid.config.overlap else 0
    tile_rows, tile_cols = tiles_read(grid, rows, cols)
    tiles = [len(tile_rows), len(tile_cols)]
    windows = len(rows) * len(cols)

    def last_read(index: int) -> int:
        """The last tile, counted row-major among those decoded, that window `index` reads."""
        row, col = divmod(index, len(cols))
        low = min(rows[row] + reach, tile_rows[-1]) - tile_rows[0]
        return low * tiles[1] + min(cols[col] + reach, tile_cols[-1]) - tile_cols[0]

    place = sent = newest = 0
    places: dict[int, int] = {}
    for index in range(windows):
        while sent <= last_read(min(index + distance, windows - 1)):
            row, col = divmod(sent, tiles[1])
            count = min(together, tiles[1] - col)  # within the row: the spool need not be deeper
            yield DecodeTile(TileKey(tile_rows[row], tile_cols[col]), count)
            places |= dict.fromkeys(range(sent, sent + count), place)
            place, sent = place + 1, sent + count
        # In the lowest row of windows there is no row of tiles below: what was read last stays the newest.
        newest = max(newest, last_read(index))
        while place - places[newest] < distance:
            yield Pause()
            place += 1
        places = {tile: at for tile, at in places.items() if tile >= newest}
        yield TileKey(rows[index // len(cols)], cols[index % len(cols)])
        place += 1


def spool_depth(grid: Grid, cols: range, distance: int) -> int:
    """Tile rows a spool needs so that no tile is overwritten while a window that reads it may be unfinished.

    Tiles run `distance` windows ahead and windows may be unfinished for as long again: 2 x distance windows span
    `behind` rows.  A window reads one row of tiles above it and one below.
    """
    behind = -(-2 * distance // len(cols))
    return min(behind + 3, grid.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """The task of the workers: DecodeTile and RenderWindow jobs of one archive."""

    archive: Place
    device: str
    fill: bool
    """Go on after damage, with zero latents."""
    depth: int
    """Tile rows of the spool."""
    spool: Shared
    slots: Shared
    slot_bytes: int

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[Job], list[Decoded]]]:
        with open_archive(self.archive) as archive:
            codec = codec_of(archive.manifest, self.device)
            groups = groups_of(archive.manifest)
            zero = codec.zero_latent(1, 1, 1)
            spool = LatentSpool(
                grid=archive.grid,
                groups=groups,
                channels=zero.values.shape[1],
                depth=self.depth,
                store=self.spool,
                scales=zero.scales.dtype.name,
            )

            def run(job: Job) -> list[Decoded]:
                if isinstance(job, DecodeTile):
                    note(job.key)
                    if job.count > 1:
                        archive.fetch(job.keys)
                    found = []
                    tiles = decode_tiles(archive, codec, job.keys, fill=self.fill)
                    for key, tile in zip(job.keys, tiles, strict=True):
                        if isinstance(tile, Exception):
                            raise tile
                        spool.put(key, tile[0])
                        found.append(tile[1])
                    return found
                if isinstance(job, RenderWindow) and not job.blank:
                    note(job.key)
                    pixels = render_window(archive, codec, job.key, assemble(archive.grid, job.key, spool.get))
                    self.slots.floats(job.slot * self.slot_bytes, pixels.shape)[...] = pixels
                return []

            with one_thread():
                yield run


def _checked(codec: TileCodec, name: str, weights: str) -> TileCodec:
    """The codec itself; WeightsError when its weights are others than an archive names."""
    if codec.info.weights != weights:
        raise WeightsError(
            f"the archive needs weights {weights[:16]}... of {name}, this release has "
            f"{codec.info.weights[:16]}...; import the ones it names with `ditic-stream models import`"
        )
    return codec


_elsewhere: WeakValueDictionary[tuple[str, str], TileCodec] = WeakValueDictionary()
"""Codecs on other devices: shared while somebody holds one, and gone with the last, since their memory is scarce."""
_opening = Lock()


def codec_of(manifest: Manifest, device: str) -> TileCodec:
    """The codec an archive names; WeightsError when the weights at hand are others."""
    from ditic_stream.codec import load_codec
    from ditic_stream.models.names import name_here

    model = manifest.model
    name = (at_hand if family_of(model.name).imported else name_here)(model.name, model.weights)
    with _opening:
        kept: TileCodec | None = loaded(load_codec, name, device) if device == "cpu" else _elsewhere.get((name, device))
        if kept is not None and kept.info.weights == model.weights:
            return kept
        codec = load_codec(name, device=device)  # of that name another set may have been imported since
        if device != "cpu":
            _elsewhere[name, device] = codec
        return _checked(codec, name, model.weights)


def release_memory(device: str) -> None:
    """Give a device the memory back that torch keeps of codecs that are gone."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        torch.cuda.empty_cache()


def groups_of(manifest: Manifest) -> int:
    """Groups of three bands the networks see."""
    return -(-manifest.image.bands // 3)


def decode_tile(archive: Archive, codec: TileCodec, key: TileKey, *, fill: bool) -> tuple[Latent, Decoded]:
    """The latents of a tile's core, zero when it is EMPTY, or damaged and to be filled.  Errors name the tile."""
    core, manifest = archive.grid.latent_core(key), archive.manifest
    groups = groups_of(manifest)
    try:
        with naming(key):
            record = archive.record(key)
            if record.kind == EMPTY:
                return codec.zero_latent(groups, core.height, core.width), Decoded(key, empty=True)
            return codec.decode_symbols(record, groups, core.height, core.width, manifest.q), Decoded(key)
    except DAMAGE as error:
        if not fill:
            raise
        zero = codec.zero_latent(groups, core.height, core.width)
        return zero, Decoded(key, damage=error.message)


def decode_tiles(
    archive: Archive, codec: TileCodec, keys: Sequence[TileKey], *, fill: bool, coarse: bool = False
) -> list[tuple[Latent, Decoded] | Exception]:
    """What `decode_tile` gives for each key, or the error it raises; those of one size are decoded together.

    coarse: the leading channels alone (codecs that have a readout).
    """
    manifest, groups, grid = archive.manifest, groups_of(archive.manifest), archive.grid
    found: dict[TileKey, tuple[Latent, Decoded] | Exception] = {}
    sizes: dict[tuple[int, int], list[tuple[TileKey, Record]]] = {}
    many = getattr(codec, "decode_many", None)  # a codec may have no such way
    for key in keys:
        shape = grid.latent_core(key).shape
        try:
            with naming(key):
                record = archive.record(key)
            if record.kind != EMPTY and many is not None:
                sizes.setdefault(shape, []).append((key, record))
                continue
        except DAMAGE:
            pass  # said below, with all else that is not decoded together
        found[key] = _alone(archive, codec, key, fill, coarse)
    for (height, width), some in sizes.items():
        try:
            assert many is not None
            latents = many([record for _, record in some], groups, height, width, manifest.q, coarse=coarse)
            found |= {key: (latent, Decoded(key)) for (key, _), latent in zip(some, latents, strict=True)}
        except DAMAGE:  # of one of them
            found |= {key: _alone(archive, codec, key, fill, coarse) for key, _ in some}
    return [found[key] for key in keys]


def _alone(
    archive: Archive, codec: TileCodec, key: TileKey, fill: bool, coarse: bool
) -> tuple[Latent, Decoded] | Exception:
    try:
        latent, decoded = decode_tile(archive, codec, key, fill=fill)
    except Exception as error:
        return error
    if coarse:
        channels = len(codec.coarse_gain(archive.manifest.q))
        latent = Cells(latent.values[:, :channels], latent.scales[:, :channels])
    return latent, decoded


def render_window(archive: Archive, codec: TileCodec, key: TileKey, cells: Cells) -> Pixels:
    """The pixels of a tile's decode window, float32 (bands, rows, columns), network units, from its latents.

    The last group's repeated bands are left out.  Safe in several threads.
    """
    window, canvas = archive.grid.decode_window(key), archive.grid.latent_window(key)
    with naming(key):
        pixels = codec.render(cells.values, cells.scales, archive.manifest.q, (canvas.row, canvas.col))
    bands = pixels.reshape(-1, *pixels.shape[2:])[: archive.manifest.image.bands]
    return bands[:, : window.height, : window.width]
