"""A scene behind an archive, as an array of pixels that are decoded where they are read.

In: an archive.  Out: pixels of any window at any level, masked or resampled, and what the source said of itself.
Knows what users ask for and in which words; which tiles that takes is _levels', how they are decoded _loading's.

    scene[...]   read(window | bbox, level, out_shape, masked)   read_region((x, y), level, (w, h))   valid(window)
         \\______________________|___________________________________|_______________________________/
                              Levels --> Loader: threads, caches --> Archive
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream._decoding import Damage, OnError, Pixels, check_whole
from ditic_stream._describing import Number, crs_of, nodata_of, profile_of, tags_of
from ditic_stream._ground import Box, Ground, Transform
from ditic_stream._indexing import picks_of
from ditic_stream._levels import Levels
from ditic_stream._loading import Loader
from ditic_stream._paths import Name
from ditic_stream._pyramid import coarser
from ditic_stream._reshaping import reshaped
from ditic_stream.archive import Archive, open_archive
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window, whole
from ditic_stream.radiometry import Radiometry

CACHE_BYTES = 3 * 2**27
"""Rendered windows, latents and masks an open scene keeps between reads: 18 windows of 1024 pixels, which a view of
512 x 512 at level 2 may need."""

SIDE = "a side of a region"


class Scene:
    """An archive as an array.  `shape` is (rows, columns, samples); `read` gives (samples, rows, columns), as rasterio.

    A read gives the bits that `decompress` gives there, whatever was read before and by however many threads.  Safe in
    any number of threads: they share the tiles they decode.  A context manager; `close` lets go of memory and device.
    """

    ndim = 3

    def __init__(
        self,
        archive: Archive,
        *,
        device: str = "cpu",
        on_error: OnError = "stop",
        cache_bytes: int = CACHE_BYTES,
        threads: int | None = None,
        uri: str | None = None,
    ) -> None:
        check_whole(archive, on_error)
        self.archive = archive
        self.damage = Damage()
        """What was found damaged, and filled."""
        self.uri = str(archive.path) if uri is None else uri
        """The archive as it was named when it was opened."""
        self._radiometry = Radiometry.from_json(archive.manifest.radiometry)
        self.closed = False
        """True after `close`."""
        self._options = tuple(
            {"device": device, "on_error": on_error, "cache_bytes": cache_bytes, "threads": threads}.items()
        )
        fill = on_error == "fill"
        self._loader = Loader(
            archive, device=device, fill=fill, cache_bytes=cache_bytes, threads=threads, damage=self.damage
        )
        self._levels = Levels(self._loader, self._radiometry, self.damage if fill else None)
        self._ground = Ground.of(archive.manifest, archive.path.name)

    # --- what it is

    @property
    def shape(self) -> tuple[int, int, int]:
        image = self.archive.manifest.image
        return image.height, image.width, self._radiometry.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.archive.manifest.image.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def name(self) -> str:
        """The name of the file the archive was made from."""
        return self.archive.manifest.source.name

    @cached_property
    def crs(self) -> str | None:
        """The reference system: "EPSG:code"; else WKT, if rasterio is installed and the source names one; else None."""
        return crs_of(self.archive.manifest, self._ground)

    @property
    def transform(self) -> Transform | None:
        """(a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f of a pixel's upper left corner."""
        return self._ground.transform

    @property
    def bounds(self) -> Box | None:
        """(left, bottom, right, top) in the scene's coordinates; None when it does not say where it lies."""
        return self._ground.bounds

    @property
    def nodata(self) -> Number | None:
        """The value that marks pixels without data (of the first band), NaN where that is it, None without one."""
        return nodata_of(self._radiometry)

    @property
    def alpha(self) -> int | None:
        """Index of the alpha sample."""
        return self._radiometry.alpha

    @property
    def profile(self) -> dict[str, Any]:
        """driver, dtype, nodata, width, height, count, crs, transform, blocks and tiled, under rasterio's names."""
        return profile_of(self.archive.manifest, self._radiometry, self.crs, self._ground)

    def tags(self) -> dict[str, str]:
        """The tags of the source under GDAL's names, and DITIC_LOSSY: by what the pixels were coded."""
        return tags_of(self.archive.manifest)

    @property
    def level_count(self) -> int:
        """Levels, the scene itself among them; the last one's longest side is at most 64 pixels."""
        return self._levels.count

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of the scene, as of level 0."""
        return self.level_dimensions[0]

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level: those of the scene over 2^level, rounded up."""
        shapes = [self._levels.shape(level) for level in range(self.level_count)]
        return tuple((width, height) for height, width in shapes)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Scene pixels a pixel of each level covers a side."""
        return tuple(float(1 << level) for level in range(self.level_count))

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is no coarser than `downsample` scene pixels a side; 0 below 1, as in OpenSlide.

        ConfigError for what is no number.
        """
        try:
            return max((level for level, each in enumerate(self.level_downsamples) if each <= downsample), default=0)
        except TypeError:
            raise ConfigError(f"a downsample of {downsample!r:.40}; give a number, such as 4.0") from None

    # --- pixels

    def read(
        self,
        window: Window | None = None,
        *,
        bbox: Box | None = None,
        level: int = 0,
        out_shape: tuple[int, int] | None = None,
        masked: bool = False,
        bands: Sequence[int] | None = None,
    ) -> Pixels:
        """Samples (samples, rows, columns) of a window, of the whole scene by default, in `dtype`.

        window: pixels of `level`, a Window or rasterio's.  bbox: (xmin, ymin, xmax, ymax) in the scene's coordinates
        instead, every pixel it touches, clipped to the scene.  level: 0..level_count - 1; each halves the one before
        (docs/format.md).
        out_shape: (rows, columns) to resample to, by means over areas of the next finer level.  masked: a MaskedArray
        where nodata, NaN, mask and alpha hide samples.  bands: indexes of samples, all by default.
        Raises WindowError outside the scene, ConfigError for what fits nowhere; MissingTileError, ChecksumError or
        DesyncError for lost and damaged tiles.
        """
        self._loader.check_open()
        samples, level = self._samples(bands), whole(level, "level")
        height, width = self._levels.shape(level)
        if bbox is not None:
            if window is not None:
                raise ConfigError("a window and a bbox were given; give one of the two")
            window = coarser(self._ground.window_of(bbox), level)
        window = Window(row=0, col=0, height=height, width=width) if window is None else Window.of(window)
        window.within(height, width)
        try:
            if out_shape is not None:
                pixels, sight = reshaped(self._levels, level, window, out_shape, samples)
            else:
                pixels, planes = self._levels.read(level, window, samples)
                sight = self._levels.sight(planes, samples) if masked else np.ones(0, bool)
        except MemoryError as error:
            made = (len(samples), *(out_shape or window.shape))
            raise ConfigError(
                f"{' x '.join(map(str, made))} values of {self.dtype} need more memory than there is; read them in "
                "parts, or at a coarser level"
            ) from error
        if not masked:
            return pixels
        fill = self.nodata if self.nodata is not None else np.nan if self.dtype.kind == "f" else None
        return np.ma.MaskedArray(pixels, ~sight, fill_value=fill)

    def valid(self, window: Window | None = None, *, level: int = 0) -> NDArray[np.uint8]:
        """The mask (rows, columns) of a window of the level's pixels, 0 or 255, as rasterio's dataset_mask: a pixel
        counts when some band of it is valid, and neither mask nor alpha hides it.  Decodes no pixels."""
        self._loader.check_open()
        level = whole(level, "level")
        height, width = self._levels.shape(level)
        window = Window(row=0, col=0, height=height, width=width) if window is None else Window.of(window)
        return self._levels.valid(level, window)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """Samples (rows, columns, samples) as OpenSlide reads regions.

        location: (x, y) of the upper left corner in pixels of level 0, whatever the level.  size: (width, height) in
        pixels of `level`.  What lies outside the scene is 0.  ConfigError for a level or a size that cannot be.
        """
        self._loader.check_open()
        try:
            (x, y), (width, height) = location, size
            known = math.isfinite(x) and math.isfinite(y)
        except (TypeError, ValueError):
            raise ConfigError(
                f"a region at {location!r:.40} of {size!r:.40} pixels; give (x, y) and (width, height)"
            ) from None
        width, height, level = whole(width, SIDE), whole(height, SIDE), whole(level, "level")
        if not known:
            raise ConfigError(f"a region at {x}, {y}; give numbers of pixels of level 0")
        if width < 0 or height < 0:
            raise ConfigError(f"a region of {width} x {height} pixels; sides are 0 or more")
        rows, cols = self._levels.shape(level)
        left, top = math.floor(x / (1 << level)), math.floor(y / (1 << level))
        try:
            out = np.zeros((height, width, self.shape[2]), self.dtype)
        except (MemoryError, ValueError) as error:
            raise ConfigError(
                f"a region of {width} x {height} pixels needs more memory than there is; read it in parts, or at a "
                "coarser level"
            ) from error
        first, last = max(left, 0), min(left + width, cols)
        upper, lower = max(top, 0), min(top + height, rows)
        if first < last and upper < lower:
            window = Window(row=upper, col=first, height=lower - upper, width=last - first)
            out[upper - top : lower - top, first - left : last - left] = self.read(window, level=level).transpose(
                1, 2, 0
            )
        return out

    def __getitem__(self, index: Any) -> Pixels:
        """numpy's basic indexing of (rows, columns, samples): ints, slices with any step, an ellipsis."""
        rows, cols, samples = picks_of(index, self.shape)
        if rows.empty or cols.empty or samples.empty:
            shape = [pick.end - pick.first for pick in (rows, cols, samples)]
            pixels = np.empty(shape, self.dtype)
        else:
            window = Window(row=rows.first, col=cols.first, height=rows.end - rows.first, width=cols.end - cols.first)
            pixels = self.read(window, bands=range(samples.first, samples.end)).transpose(1, 2, 0)
        return np.asarray(pixels[rows.take, cols.take, samples.take])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        if copy is False:
            raise ValueError("a scene is decoded into a new array; copy=False cannot be had")
        return self[...].astype(dtype or self.dtype, copy=False)

    def to_dask(self, *, chunks: Any = None, level: int = 0) -> Any:
        """A dask array (rows, columns, samples) of a level, each block decoded when it is computed; the values do not
        depend on the chunks, which are tiles by default.  The scene must stay open.  Needs the extra `dask`."""
        from importlib.metadata import entry_points

        door = next(iter(entry_points(group="ditic_stream.doors", name="dask")), None)
        if door is None:
            raise ConfigError("the package is found but not installed; pip install 'ditic-stream[dask]'")
        return door.load()(self, chunks=chunks, level=level)

    # --- its life

    def close(self) -> None:
        """Let go of threads, caches, networks and the archive; a read after that raises ConfigError."""
        self.closed = True
        self._loader.close()
        self.archive.close()

    def __reduce__(self) -> Any:
        """Pickles as the name of the archive and how it was opened: it is opened again elsewhere, once a process."""
        return _open_again, (str(self.uri), self._options)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width, samples = self.shape
        return f"<Scene {self.name}: {height} x {width} x {samples} {self.dtype}, {self.archive.path}>"

    def _samples(self, bands: Sequence[int] | None) -> list[int]:
        count = self.shape[2]
        if bands is None:
            return list(range(count))
        if not isinstance(bands, Iterable) or not len(bands):
            raise ConfigError(f"bands {bands!r:.40}; give a list of indexes, such as [0, 1, 2], or None for all")
        bands = [whole(band, "a band") for band in bands]
        for band in bands:
            if not -count <= band < count:
                raise ConfigError(f"band {band} is outside 0..{count - 1}; bands are counted from 0, alpha among them")
        return [band % count for band in bands]


@lru_cache(maxsize=8)
def _open_once(uri: str, options: tuple[tuple[str, Any], ...]) -> Scene:
    return open_scene(uri, **dict(options))


def _open_again(uri: str, options: tuple[tuple[str, Any], ...]) -> Scene:
    """The scene that this process opened for a pickle before, unless that was closed."""
    scene = _open_once(uri, options)
    if scene.closed:
        _open_once.cache_clear()
        scene = _open_once(uri, options)
    return scene


def open_scene(
    path: Name,
    *,
    device: str = "cpu",
    on_error: OnError = "stop",
    cache_bytes: int = CACHE_BYTES,
    threads: int | None = None,
) -> Scene:
    """Open an archive for reading windows; a context manager.  The networks are loaded at the first read.

    on_error: "fill" goes on after a lost or damaged tile with zero latents and lists it in `scene.damage`.
    cache_bytes: what is kept between reads.  threads: windows decoded at once, the cores (4 at most) by default.
    Raises SourceError or FormatError when it is no archive; MissingTileError when it is not complete.
    """
    archive = open_archive(path)
    try:
        return Scene(archive, device=device, on_error=on_error, cache_bytes=cache_bytes, threads=threads, uri=str(path))
    except BaseException:
        archive.close()
        raise
