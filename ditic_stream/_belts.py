"""Decode a window of an archive where workers share no memory: belts of tile rows, each by one worker, then the seams.

In: an open archive, a window, an Output.  Out: its rows, coded by the workers and put together in order.
Knows windows, blending and blocks of rows; knows nothing of formats or clusters.

    belt 0   ######  blocks of rows that lie inside a belt are finished and coded by its worker
             ~~~~~~  rows that fade into the next belt are spooled as they are, with what is left of their block
    belt 1   ~~~~~~  a seam: its worker takes both sides, blends, finishes and codes the blocks they lie in
             ######
                     this process puts the coded blocks into the output, in order (Output.take)

No window is rendered twice, and a pixel has the bits that `_decoding` gives it: the Blender fades sideways first, and
the last fade downwards needs nothing but the two sides.  The spool is a folder beside the output, on storage that all
nodes see; every file in it appears whole or not at all, so a belt may be done twice.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._claim import discard, storing
from ditic_stream._decoding import Damage, OnError, Progress, check_whole, finish
from ditic_stream._output import Output, RowsCoder
from ditic_stream._paths import Place, everywhere
from ditic_stream._rendering import codec_of, decode_tile, render_window
from ditic_stream._shared import Scratch
from ditic_stream._store import write_object
from ditic_stream.archive import Archive, open_archive
from ditic_stream.blend import Blender, fade_down, fade_of, windows_of
from ditic_stream.executors import Executor, Note, one_thread
from ditic_stream.geometry import TileKey, Window
from ditic_stream.latents import Cells, Latent, assemble
from ditic_stream.radiometry import Radiometry
from ditic_stream.tiling import Grid

if TYPE_CHECKING:
    from ditic_stream.codec import TileCodec

BELTS_A_WORKER = 4
"""Belts for each worker, so that none waits long for the last one; a belt has at most MAX_ROWS tile rows."""
MAX_ROWS = 8
LATENT_BYTES = 2**28
"""Latents a worker keeps: three rows of tiles of a scene 900 000 pixels wide."""
MEMORY_BYTES = 2**27
"""Rows a worker gathers in memory, for each of its stores; beyond, they lie in an unnamed file on its disk."""
Uint8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Belt:
    """Tile rows `first` to before `end`."""

    first: int
    end: int

    def __str__(self) -> str:
        return f"tile rows {self.first}..{self.end - 1}"


@dataclass(frozen=True, slots=True)
class Seam:
    """Where the belt that begins at tile row `row` meets the one above."""

    row: int

    def __str__(self) -> str:
        return f"the seam above tile row {self.row}"


@dataclass(frozen=True, slots=True)
class Belted:
    """What a worker says of a belt or a seam.  damage: of tiles that were filled, and why."""

    damage: dict[TileKey, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a window is cut: everything that belts and seams agree on.  A value; it travels to the workers."""

    grid: Grid
    window: Window
    block: int
    """Rows of the blocks that the output takes."""

    @property
    def rows(self) -> range:
        return windows_of(self.grid, self.window)[0]

    @property
    def cols(self) -> range:
        return windows_of(self.grid, self.window)[1]

    @property
    def blocks(self) -> int:
        return -(-self.window.height // self.block)

    def belts(self, workers: int) -> list[Belt]:
        """Belts of equal height.  At most one seam meets a block, so a belt is at least as high as a block."""
        least = -(-(self.block + 2 * fade_of(self.grid)) // self.grid.config.tile)
        wanted = -(-len(self.rows) // (BELTS_A_WORKER * workers))
        high = max(least, min(wanted, MAX_ROWS))
        starts = list(range(self.rows[0], self.rows[-1] + 1, high))
        if len(starts) > 1 and self.rows[-1] + 1 - starts[-1] < least:
            starts.pop()
        return [Belt(first, end) for first, end in zip(starts, [*starts[1:], self.rows[-1] + 1], strict=True)]

    def zone(self, row: int) -> tuple[int, int]:
        """Scene rows, inside the window, in which tile row `row` fades from the one above it."""
        middle, fade = row * self.grid.config.tile, fade_of(self.grid)
        begin = max(middle - fade, self.window.row)
        return begin, max(min(middle + fade, self.window.row_end), begin)

    def touched(self, row: int) -> range:
        """The blocks that the seam above tile row `row` lies in; none when it runs between two."""
        begin, end = (place - self.window.row for place in self.zone(row))
        if begin == end:
            return range(begin // self.block, begin // self.block + (begin % self.block > 0))
        return range(begin // self.block, (end - 1) // self.block + 1)

    def rows_of(self, block: int) -> tuple[int, int]:
        """Scene rows of a block."""
        begin = self.window.row + block * self.block
        return begin, min(begin + self.block, self.window.row_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBelt:
    """The task of the workers: belts, and once all of them are done, seams."""

    archive: Place
    device: str
    fill: bool
    cut: Cut
    coder: RowsCoder
    spool: str

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[Belt | Seam], Belted]]:
        with open_archive(self.archive) as archive, one_thread():
            work = _Work(self, archive, codec_of(archive.manifest, self.device), note)
            yield lambda key: work.belt(key) if isinstance(key, Belt) else work.seam(key)


class _Work:
    """One archive, open in a worker."""

    def __init__(self, task: DecodeBelt, archive: Archive, codec: TileCodec, note: Note) -> None:
        self._task, self._archive, self._codec, self._note = task, archive, codec, note
        self._cut, self._radiometry = task.cut, Radiometry.from_json(archive.manifest.radiometry)
        self._dtype, self._samples = np.dtype(self._radiometry.dtype), self._radiometry.samples
        self._bands = archive.manifest.image.bands

    def belt(self, belt: Belt) -> Belted:
        cut, damage, width = self._cut, Damage(), self._cut.window.width
        rows, cols = range(belt.first, belt.end), cut.cols
        upper = cut.zone(belt.first) if belt.first > cut.rows[0] else (cut.window.row,) * 2
        lower = cut.zone(belt.end) if belt.end <= cut.rows[-1] else (cut.window.row_end,) * 2
        zones = [self._scratch((self._bands, end - begin, width), np.float32) for begin, end in (upper, lower)]
        below = self._scratch(Blender.below_shape(cut.grid, rows, cols, self._bands), np.float32)
        blender = Blender(cut.grid, rows, cols, self._bands, below=below.array, whole=cut.rows)
        blocks, reached = _Blocks(self, upper[1], lower[0]), 0
        for key, pixels in self._rendered(rows, cols, damage):
            done = blender.add(key, pixels)
            below.release()
            if done is not None and done[0].meets(cut.window):
                part = done[0].intersect(cut.window)
                reached = part.row_end
                units = done[1][(slice(None), *part.slices(done[0]))]
                for zone, (begin, end) in zip(zones, (upper, lower), strict=True):
                    piece = _between(part, begin, end)
                    if piece is not None:
                        self._put(zone, piece, begin, units[:, piece.row - part.row : piece.row_end - part.row])
                piece = _between(part, upper[1], lower[0])
                if piece is not None:
                    inner = units[:, piece.row - part.row : piece.row_end - part.row]
                    blocks.put(piece, *self._finish(piece, inner, damage))
            if key.col == cols[-1]:
                for block, samples, mask in blocks.whole(reached):
                    self._code(block, samples, mask)
            core = cut.grid.core(key)
            if core.meets(cut.window):
                seen = core.intersect(cut.window)
                self._note(key, seen.height * seen.width)
        for row, side, zone in ((belt.first, "below", zones[0]), (belt.end, "above", zones[1])):
            if cut.rows[0] < row <= cut.rows[-1]:
                self._save(f"{row}-{side}-units", zone.array)
                for block, begin, samples, mask in blocks.rest(cut.touched(row)):
                    self._save(f"{row}-{side}-{block}-{begin}-samples", samples)
                    if mask is not None:
                        self._save(f"{row}-{side}-{block}-{begin}-mask", mask)
        return Belted(dict(damage.tiles))

    def seam(self, seam: Seam) -> Belted:
        cut, damage, spool = self._cut, Damage(), Path(self._task.spool)
        self._note(f"seam {seam.row}")
        (begin, end), touched = cut.zone(seam.row), cut.touched(seam.row)
        first, last = cut.rows_of(touched[0])[0], cut.rows_of(touched[-1])[1]
        blocks = _Blocks(self, first, last)
        for place in sorted(spool.glob(f"{seam.row}-*-samples.npy")):
            row = int(place.name.split("-")[3])
            samples = np.load(place, mmap_mode="r")
            masked = place.with_name(place.name.replace("-samples", "-mask"))
            window = Window(row=row, col=cut.window.col, height=samples.shape[1], width=cut.window.width)
            blocks.put(window, samples, np.load(masked, mmap_mode="r") if masked.exists() else None)
        if end > begin:
            sides = [np.load(spool / f"{seam.row}-{side}-units.npy", mmap_mode="r") for side in ("above", "below")]
            offset = begin - (seam.row * cut.grid.config.tile - fade_of(cut.grid))
            for col in range(0, cut.window.width, cut.grid.config.tile):
                above, below = (np.array(side[:, :, col : col + cut.grid.config.tile]) for side in sides)
                window = Window(row=begin, col=cut.window.col + col, height=end - begin, width=below.shape[2])
                blocks.put(window, *self._finish(window, fade_down(cut.grid, offset, above, below), damage))
        for block, samples, mask in blocks.whole(last):
            self._code(block, samples, mask)
        return Belted(dict(damage.tiles))

    def _rendered(self, rows: range, cols: range, damage: Damage) -> Iterator[tuple[TileKey, NDArray[np.float32]]]:
        """The windows of a belt, row-major; each tile's symbols are decoded once where LATENT_BYTES holds them."""
        archive, grid, empty = self._archive, self._cut.grid, set[TileKey]()

        def load(key: TileKey) -> Latent:
            latent, decoded = decode_tile(archive, self._codec, key, fill=self._task.fill)
            if decoded.empty:
                empty.add(key)
            if decoded.damage is not None:
                damage.tiles[key] = decoded.damage
            return latent

        latents = _Latents(load)
        for key in (TileKey(row, col) for row in rows for col in cols):
            self._note(key)
            cells = assemble(grid, key, latents)
            if empty.issuperset(grid.neighbours(key)):  # nothing of it is seen
                yield key, np.zeros((self._bands, *grid.decode_window(key).shape), np.float32)
            else:
                yield key, render_window(archive, self._codec, key, cells)

    def _finish(self, window: Window, units: NDArray[np.float32], damage: Damage) -> tuple[Any, Uint8 | None]:
        return finish(self._archive, self._radiometry, window, units, damage if self._task.fill else None)

    def _put(self, scratch: Scratch, piece: Window, first: int, values: NDArray[Any]) -> None:
        col = piece.col - self._cut.window.col
        scratch.array[..., piece.row - first : piece.row_end - first, col : col + piece.width] = values
        scratch.release()

    def _scratch(self, shape: tuple[int, ...], dtype: Any) -> Scratch:
        return Scratch(shape, dtype, limit=MEMORY_BYTES, folder=None)

    def _code(self, block: int, samples: NDArray[Any], mask: Uint8 | None) -> None:
        pieces = self._task.coder.code(block * self._cut.block, samples, mask)
        sizes = struct.pack(f"<{1 + len(pieces)}Q", len(pieces), *map(len, pieces))
        write_object(Path(self._task.spool), f"block-{block}", [sizes, *pieces])

    def _save(self, name: str, array: NDArray[Any]) -> None:
        def pieces() -> Iterator[bytes]:
            version = np.lib.format.magic(1, 0)
            header = repr({"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}).encode()
            header += b" " * (-(len(header) + len(version) + 3) % 64) + b"\n"
            yield version + struct.pack("<H", len(header)) + header
            for plane in array if array.ndim > 2 else array[None]:
                yield np.ascontiguousarray(plane).tobytes()

        write_object(Path(self._task.spool), f"{name}.npy", pieces())


class _Latents:
    """The latents used last, up to LATENT_BYTES; `load` makes those that are not here."""

    def __init__(self, load: Callable[[TileKey], Latent]) -> None:
        self._load, self._bytes = load, 0
        self._kept: OrderedDict[TileKey, Cells] = OrderedDict()

    def __call__(self, key: TileKey) -> Cells:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        latent = self._load(key)
        cells = self._kept[key] = Cells(latent.values, latent.scales)
        self._bytes += cells.nbytes
        while self._bytes > LATENT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return cells


class _Blocks:
    """Gathers finished pieces between two scene rows into the blocks they lie in."""

    def __init__(self, work: _Work, begin: int, end: int) -> None:
        self._work, self._begin, self._end = work, begin, end
        self._held: dict[int, tuple[Scratch, Scratch | None]] = {}

    def _span(self, block: int) -> tuple[int, int]:
        begin, end = self._work._cut.rows_of(block)
        return max(begin, self._begin), min(end, self._end)

    def put(self, window: Window, samples: NDArray[Any], mask: Uint8 | None) -> None:
        cut = self._work._cut
        row = window.row
        while row < window.row_end:
            block = (row - cut.window.row) // cut.block
            begin, end = self._span(block)
            piece = _between(window, row, end)
            assert piece is not None
            if block not in self._held:
                shape = (end - begin, cut.window.width)
                self._held[block] = (
                    self._work._scratch((self._work._samples, *shape), self._work._dtype),
                    None if mask is None else self._work._scratch(shape, np.uint8),
                )
            kept, kept_mask = self._held[block]
            taken = slice(piece.row - window.row, piece.row_end - window.row)
            self._work._put(kept, piece, begin, samples[:, taken])
            if mask is not None and kept_mask is not None:
                self._work._put(kept_mask, piece, begin, mask[taken])
            row = piece.row_end

    def whole(self, upto: int) -> Iterator[tuple[int, NDArray[Any], Uint8 | None]]:
        """Blocks, all rows of which are here, from above down to scene row `upto`; they are let go."""
        for block in sorted(self._held):
            rows = self._work._cut.rows_of(block)
            if rows == self._span(block) and rows[1] <= upto:
                samples, mask = self._held.pop(block)
                yield block, samples.array, None if mask is None else mask.array

    def rest(self, blocks: range) -> Iterator[tuple[int, int, NDArray[Any], Uint8 | None]]:
        """What is here of `blocks`: (block, first scene row, samples, mask)."""
        for block in blocks:
            if block in self._held:
                samples, mask = self._held[block]
                yield block, self._span(block)[0], samples.array, None if mask is None else mask.array


def _between(window: Window, begin: int, end: int) -> Window | None:
    """The rows of a window from `begin` to before `end`; None when there are none."""
    begin, end = max(begin, window.row), min(end, window.row_end)
    return Window(row=begin, col=window.col, height=end - begin, width=window.width) if begin < end else None


def decode_apart(
    archive: Archive,
    window: Window,
    output: Output,
    executor: Executor,
    device: str,
    on_error: OnError,
    progress: Progress | None,
    damage: Damage,
) -> None:
    """Fill `output` with the pixels of `window`, by workers that see its folder and the archive.

    Raises what `regions.decompress` does.  The folder .NAME.spool beside the output holds up to what the output does,
    and is gone in the end.
    """
    check_whole(archive, on_error)
    cut = Cut(grid=archive.grid, window=window, block=output.block)
    spool = output.path.absolute().with_name(f".{output.path.name}.spool")
    task = DecodeBelt(
        archive=everywhere(archive.path), device=device, fill=on_error == "fill", cut=cut, coder=output.coder(),
        spool=str(spool),
    )  # fmt: skip
    belts = cut.belts(executor.workers)
    seams = [Seam(belt.first) for belt in belts[1:] if cut.touched(belt.first)]
    total, ready = window.height * window.width, 0

    def tell(_: object, pixels: int) -> None:
        nonlocal ready
        ready += pixels
        if progress is not None and pixels:
            progress(min(ready, total), total)

    try:
        with storing(output.path):
            discard(spool)  # of a run that was killed; the output's lock is ours
            spool.mkdir()
        steps: tuple[Sequence[Belt | Seam], ...] = (belts, seams)
        for keys in steps:
            for _, belted in executor.run_unordered(task, keys, on_note=tell):
                for key, why in belted.damage.items():
                    damage.tiles.setdefault(key, why)
        for block in range(cut.blocks):
            with storing(output.path):
                pieces = _pieces(spool / f"block-{block}")
            output.take(pieces)
            (spool / f"block-{block}").unlink()
    finally:
        with storing(output.path):
            discard(spool)


def _pieces(place: Path) -> list[bytes]:
    with open(place, "rb") as file:
        (count,) = struct.unpack("<Q", file.read(8))
        sizes = struct.unpack(f"<{count}Q", file.read(8 * count))
        return [file.read(size) for size in sizes]
