"""Forecast what a scene will cost and how it will look, from coding small windows spread over it.

In: an executor, the settings of an archive, and its grid.  Out: bytes and PSNR with intervals, or the rate that
meets a target.  The scene is not coded for it: windows of 256 pixels cost within a percent of the bits that they cost
as parts of larger tiles (benchmarks/forecast.py), and many small windows see more of a scene than a few tiles do.  Only
a small scene is: its own tiles are the windows then, and nothing is left to chance.

    windows, one a stratum --> CodeWindows --> bits at some rates --> total +- error --> more windows --> the quality
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ditic_stream._encoding import TileCoder
from ditic_stream._layout import Layout
from ditic_stream._pace import NORMAL, Spent, stopwatch, total
from ditic_stream._paths import Place
from ditic_stream._shard import index_bytes
from ditic_stream._sizes import SEAL_BYTES
from ditic_stream.bitstream import HEADER_BYTES
from ditic_stream.config import Q_MAX, Q_OF_QUALITY, GridConfig, quality_of_q
from ditic_stream.errors import ConfigError, naming
from ditic_stream.executors import Executor, Note, one_thread
from ditic_stream.families import family_of
from ditic_stream.geometry import CELL, TileKey
from ditic_stream.manifest import Manifest
from ditic_stream.radiometry import Radiometry, from_network, in_sight, value_range
from ditic_stream.reader import open_source
from ditic_stream.summary import bits_per_pixel
from ditic_stream.tiling import Grid

WINDOW = 256
"""Side of a window, pixels."""
SMALL, FEW = 2**25, 4
"""Pixels up to which the tiles themselves are coded, and how many of them at first.  With what is read around them
MOST windows take more time than so many pixels in tiles (docs/numbers.md)."""
FIRST, MOST = 48, 256
"""Windows coded at first, and at most."""
ENOUGH = 0.016
"""Relative standard error of the bytes at which no more windows are coded."""
ENOUGH_SQUARES = 0.07
"""The same for squared errors, which differ more from window to window: a third of a decibel."""
MODEL_ERROR, MODEL_ERROR_SQUARES = 0.01, 0.03
"""What windows differ from tiles, relative, beside the error of sampling: in bytes, and in squared errors."""
SEEN_SMALL = 16
"""Tiles of a small scene that are decoded for a PSNR.  Of a large one all windows are: squared errors have a long tail,
and those of a part of the windows once missed it (docs/numbers.md)."""
LADDER = tuple(range(0, Q_MAX + 1, Q_MAX // 4))
"""Rates at which the first sample is coded to find about where a target lies."""
ASIDE = 10 * Q_OF_QUALITY
"""The second sample is coded at the expected q and so far on both sides of it."""
REFINED = 5
"""Times that sample is coded at most: again where the target does not lie near what is known."""
NEAR = 0.01
"""How far from the target, relative, what it leads to may lie, as far as its bends between known rates tell."""
TILE_SIZES, MASK_SIZES = 3, 6
"""Where an archive says the sizes of its chunks, about the bytes of a record's and of a mask's with its checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A window to code, at some rates, and whether to decode it at the first of them."""

    key: TileKey
    qs: tuple[int, ...]
    render: bool = False

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What came of a window."""

    pixels: int
    sizes: tuple[int, ...]
    """Bytes of payload and mask, for each rate."""
    squares: float = 0.0
    """Sum of squared errors of what was decoded, over the value range squared."""
    samples: int = 0
    stands_for: int = 1
    """Windows of the scene that this one was drawn from."""
    spent: Spent = Spent()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeWindows:
    """A task: code windows of a scene, and write nothing."""

    source: Place
    expand_palette: bool
    manifest: Manifest
    model: str
    device: str

    @contextmanager
    def open(self, note: Note) -> Iterator[Callable[[Probe], Probed]]:
        from ditic_stream.codec import load_codec

        manifest = self.manifest
        codec = load_codec(self.model, device=self.device)
        with (
            one_thread(),
            open_source(
                self.source, expand_palette=self.expand_palette, checked=True, etag=manifest.source.etag
            ) as source,
        ):
            coder = TileCoder(
                source=source,
                codec=codec,
                grid=windows_of(manifest),
                radiometry=Radiometry.from_json(manifest.radiometry),
                q=manifest.q,
                archive_id=manifest.archive_id,
            )

            def code(probe: Probe) -> Probed:
                note(probe.key)
                spent = stopwatch()
                with naming(probe.key):
                    return replace(_probe(coder, probe), spent=spent())

            yield code


def windows_of(manifest: Manifest) -> Grid:
    """The scene cut into windows."""
    image = manifest.image
    config = manifest.grid if image.height * image.width <= SMALL else GridConfig(tile=WINDOW)
    units = family_of(manifest.model.name).units
    return Grid(height=image.height, width=image.width, config=config, units=units)


def _probe(coder: TileCoder, probe: Probe) -> Probed:
    look = coder.look(probe.key)
    core = coder.grid.core(probe.key)
    pixels, mask = core.height * core.width, sum(len(chunk or b"") for chunk in look.mask)
    if look.blank:
        return Probed(pixels=pixels, sizes=(mask,) * len(probe.qs))
    coded = coder.codec.encode_at(look.units, look.inner, probe.qs)
    sizes = tuple(mask + len(one.words) + len(one.escapes) for one in coded)
    if not probe.render:
        return Probed(pixels=pixels, sizes=sizes)
    q, own = probe.qs[0], coder.grid.latent_core(probe.key)
    latent = coder.codec.decode_symbols(coder.record(probe.key, coded[0]), len(look.units), *own.shape, q)
    anchor = (own.row, own.col)
    units = coder.codec.render(latent.values, latent.scales, q, anchor)[:, :, : core.height, : core.width]
    radiometry, inner = coder.radiometry, (slice(None), *look.inner)
    decoded = from_network(units, look.planes[inner], radiometry)
    # A window decoded alone has edges that a decode window has not: they lie in its overlap.
    kept = (slice(None), *(slice(CELL, -CELL) if side > 4 * CELL else slice(None) for side in core.shape))
    error = (decoded.astype(np.float64) - look.pixels[inner])[kept] / value_range(radiometry)[1]
    counts = in_sight(look.planes[inner], radiometry)[kept]
    return Probed(pixels=pixels, sizes=sizes, squares=float(np.square(error[counts]).sum()), samples=int(counts.sum()))


@dataclass(frozen=True, slots=True)
class Interval:
    """An expected value, and bounds that are to hold 9 times of 10."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What to expect at one quality."""

    bytes: Interval
    """Of records with headers, shard indexes, sizes of chunks where they are said, and masks."""
    psnr: Interval | None
    """Decibels; None where nothing differs or nothing is in sight."""
    windows: int


class Forecaster:
    """Codes windows of one scene in the workers of an executor."""

    def __init__(self, executor: Executor, task: CodeWindows, grid: Grid) -> None:
        self._executor, self._task, self._grid = executor, task, grid
        self._windows = windows_of(task.manifest)
        self._small = grid.height * grid.width <= SMALL
        self._count = self._windows.rows * self._windows.cols if self._small else FIRST
        self._beside = _beside(task.manifest)
        self.spent = Spent()
        """What its windows took so far."""

    def expect(self, q: int) -> Forecast:
        """Bytes and PSNR at a rate."""
        probed = self._code(self._count, (q,), render=True)
        spread_of = max(self._total(probed, 0)[1] / ENOUGH, self._squares(probed)[1] / ENOUGH_SQUARES)
        if (count := self._enough(spread_of, len(probed))) > len(probed):
            probed = self._code(count, (q,), render=True)
        total, error = self._total(probed, 0)
        return Forecast(bytes=_interval(total, error, len(probed)), psnr=self._psnr(probed), windows=len(probed))

    def q_for(self, target: int, beside: int = 0) -> int:
        """The q whose records, shard indexes and masks, and `beside` bytes of all else, come closest to `target`
        bytes.

        ConfigError when even the lowest would need more; the best one when nothing needs as many.
        """
        asked, target = target, max(target - beside, 1)
        first = self._code(FEW if self._small else FIRST, LADDER)
        ladder = np.maximum.accumulate([self._total(first, step)[0] for step in range(len(LADDER))])
        q = _crossing(np.array(LADDER), ladder, target)
        error = self._total(first, min(range(len(LADDER)), key=lambda step: abs(LADDER[step] - q)))[1]
        self._count = self._enough(error / ENOUGH, len(first))
        known: dict[int, float] = {}
        for _ in range(REFINED):
            around = sorted({min(max(round(q) + aside, 0), Q_MAX) for aside in (-ASIDE, 0, ASIDE)} - set(known))
            second = self._code(self._count, tuple(around))
            known |= {other: self._total(second, step)[0] for step, other in enumerate(around)}
            qs = sorted(known)
            sizes = np.maximum.accumulate([known[other] for other in qs])
            if qs[0] == 0 and target < 0.95 * sizes[0]:
                least = round(sizes[0]) + beside
                bpp = [bits_per_pixel(size, self._grid.height, self._grid.width) for size in (asked, least)]
                raise ConfigError(
                    f"{asked} bytes ({bpp[0]:.4f} bits per pixel) are less than the {least} ({bpp[1]:.4f}) this scene "
                    f"needs at quality 1{f', {beside} of them for metadata and preview' * bool(beside)}; give it more"
                )
            q = _crossing(np.array(qs), sizes, target)
            if round(q) in known or _near(np.array(qs), sizes, q):
                break
        return round(q)

    def _code(self, count: int, qs: tuple[int, ...], *, render: bool = False) -> list[Probed]:
        """Code about `count` windows; in the order in which they lie, row by row, to and fro."""
        drawn = sample(self._windows, count)
        most = SEEN_SMALL if self._small else len(drawn)
        shown = {int(place) for place in np.linspace(0, len(drawn) - 1, min(most, len(drawn)))} if render else set()
        probes = [Probe(key=key, qs=qs, render=index in shown) for index, (key, _) in enumerate(drawn)]
        done = dict(self._executor.run_unordered(self._task, probes))
        self.spent = total([self.spent, *(one.spent for one in done.values())])
        return [replace(done[probe], stands_for=part) for probe, (_, part) in zip(probes, drawn, strict=True)]

    def _enough(self, error: float, coded: int) -> int:
        """Windows to code, when `coded` ones leave a standard error of so many times what is wanted."""
        if self._small:
            return self._windows.rows * self._windows.cols
        return int(np.clip(math.ceil(coded * error**2), FIRST, MOST))

    def _total(self, probed: Sequence[Probed], step: int) -> tuple[float, float]:
        """Bytes of the whole scene and their relative standard error."""
        part = np.array([p.stands_for for p in probed], float)
        sizes = part * np.array([p.sizes[step] for p in probed], float)
        pixels = part * np.array([p.pixels for p in probed], float)
        whole = self._grid.height * self._grid.width
        return sizes.sum() / pixels.sum() * whole + self._beside, _error(sizes, pixels) * self._unseen(probed)

    def _squares(self, probed: Sequence[Probed]) -> tuple[float, float, int]:
        """Mean squared error over the value range squared, its relative standard error, and of how many windows."""
        seen = [p for p in probed if p.samples]
        part = np.array([p.stands_for for p in seen], float)
        squares, samples = (part * np.array([getattr(p, name) for p in seen], float) for name in ("squares", "samples"))
        if not samples.sum():
            return 0.0, 0.0, 0
        return squares.sum() / samples.sum(), _error(squares, samples) * self._unseen(seen), len(seen)

    def _unseen(self, probed: Sequence[Probed]) -> float:
        """By how much a sample without repetition errs less than one with."""
        whole = self._grid.height * self._grid.width
        return math.sqrt(max(1 - sum(p.pixels for p in probed) / whole, 0))

    def _psnr(self, probed: Sequence[Probed]) -> Interval | None:
        mean, error, count = self._squares(probed)
        if not mean:
            return None
        value = -10 * math.log10(mean)
        half = 10 * math.log10(1 + _normal(count) * math.hypot(error, MODEL_ERROR_SQUARES))
        return Interval(value, value - half, value + half)


def _beside(manifest: Manifest) -> int:
    """About the bytes that a rate counts beside payloads and masks: headers, indexes, and sizes of chunks."""
    layout = Layout(manifest)
    grid, planes = layout.grid, layout.planes
    tiles, shards = grid.rows * grid.cols, grid.shard_rows * grid.shard_cols
    indexes = SEAL_BYTES + index_bytes(grid.shard**2) + (index_bytes(planes * grid.shard**2) if planes else 0)
    sizes = tiles * (TILE_SIZES + MASK_SIZES * planes) + TILE_SIZES * shards if layout.sized else 0
    return tiles * HEADER_BYTES + shards * indexes + sizes


def spread(grid: Grid, count: int) -> list[TileKey]:
    """The tiles of `sample`."""
    return [key for key, _ in sample(grid, count)]


def sample(grid: Grid, count: int) -> list[tuple[TileKey, int]]:
    """About `count` tiles of a grid, all of them where there are not many more: one at random in each of about equal
    parts, the same ones every time, and how many tiles its part has.  Parts of a few tiles differ much, one or two rows
    each, so each tile has to count as its part does.  Row by row, to and fro, so that neighbours in the list are
    neighbours in the scene."""
    if grid.rows * grid.cols <= 1.5 * count:
        rows, cols = grid.rows, grid.cols
    else:
        rows = int(np.clip(round(math.sqrt(count * grid.rows / grid.cols)), 1, min(grid.rows, count)))
        cols = min(round(count / rows), grid.cols)
    random, drawn = np.random.default_rng(count), []
    for part in range(rows):
        for other in range(cols) if part % 2 == 0 else reversed(range(cols)):
            (row, high), (col, wide) = _one_of(random, part, rows, grid.rows), _one_of(random, other, cols, grid.cols)
            drawn.append((TileKey(row, col), high * wide))
    return drawn


def _one_of(random: np.random.Generator, part: int, parts: int, whole: int) -> tuple[int, int]:
    """One at random of those in a part, and how many these are."""
    first, end = part * whole // parts, (part + 1) * whole // parts
    return int(random.integers(first, end)), end - first


def _error(sums: np.ndarray, weights: np.ndarray) -> float:
    """Relative standard error of the ratio of two totals over a stratified sample, from differences of neighbours."""
    if len(sums) < 2 or not sums.sum():
        return 0.0
    off = sums - weights * (sums.sum() / weights.sum())
    variance = np.square(np.diff(off)).sum() / (2 * (len(off) - 1)) * len(off)
    return float(math.sqrt(variance) / sums.sum())


def _normal(count: int) -> float:
    """`NORMAL` for an error that is itself known from so many windows: about Student's t."""
    return NORMAL * (1 + (NORMAL**2 + 1) / (4 * max(count - 1, 1)))


def _interval(total: float, error: float, count: int) -> Interval:
    half = _normal(count) * math.hypot(error, MODEL_ERROR)
    return Interval(total, total / (1 + half), total * (1 + half))


def _crossing(qs: np.ndarray, sizes: np.ndarray, target: float) -> float:
    """q where log(bytes), linear between the ends of the piece that holds it and beyond, meets the target."""
    logs = np.log(np.maximum(sizes, 1))
    piece = int(np.clip(np.searchsorted(logs, math.log(max(target, 1))) - 1, 0, len(qs) - 2))
    slope = max((logs[piece + 1] - logs[piece]) / max(qs[piece + 1] - qs[piece], 1), 1e-5)
    return float(np.clip(qs[piece] + (math.log(max(target, 1)) - logs[piece]) / slope, 0, Q_MAX))


def _near(qs: np.ndarray, sizes: np.ndarray, q: float) -> bool:
    """Whether log(bytes), known at these, is told well enough at q by a straight line: by how much it bends."""
    place = int(np.searchsorted(qs, q))
    if place in (0, len(qs)):
        return bool(q in qs)
    widths, slopes = np.diff(qs), np.diff(np.log(sizes)) / np.diff(qs)
    piece = place - 1
    before, behind = q - qs[piece], qs[place] - q
    if len(slopes) == 1:
        return bool(slopes[0] * before * behind < NEAR * widths[0])
    bends = (
        abs(slopes[other] - slopes[piece]) / (2 * min(widths[other], widths[piece]))
        for other in (piece - 1, piece + 1)
        if 0 <= other < len(slopes)
    )
    return bool(max(bends) * before * behind < NEAR)


def at(manifest: Manifest, q: int) -> Manifest:
    """The same settings at a rate, which as a rule lies between two qualities: the nearer one is said."""
    return replace(manifest, quality=quality_of_q(q), q=q)
