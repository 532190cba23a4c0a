"""Open a scene and read any window of it, without ever holding the whole.

In: a TIFF of any ordinary kind, a PNG or a JPEG.  Out: pixels (bands, rows, columns), alpha and mask apart, and the
metadata a writer needs to give the file back.  Knows files; knows nothing of networks, tiles or archives.

    open_source --> Source --+--> read        colour and data bands, in the dtype that comes back
                             +--> read_alpha  levels of the alpha band, if there is one
                             +--> read_mask   0 or 255, from a mask in the file, if there is one

What cannot come back as it was is refused when the file is opened, in one sentence that says what to do instead.
`docs/formats.md` lists what goes through.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ditic_stream._files import LocalFile, Readable
from ditic_stream._paths import Name, Place, Uri, place_of
from ditic_stream._remote import RemoteFile, exists
from ditic_stream._tiff_geo import geo_of
from ditic_stream._tiff_layout import Layout, join_channels, layout_of, sort_pages
from ditic_stream._tiff_segments import TiffRaster
from ditic_stream._tiff_tags import Ifd, branches_to_json, fields_to_json, read_ifds
from ditic_stream.errors import SourceError
from ditic_stream.geometry import Window

Array = npt.NDArray[Any]
NODATA_FIELD, COLORMAP, DESCRIPTION = 42113, 320, 270
READ_BYTES = 2**20
"""Bytes hashed at a time."""


@dataclass(frozen=True, slots=True)
class AlphaInfo:
    """The alpha band of a scene.  `index`: its place among all samples; `associated`: colours are premultiplied."""

    index: int
    dtype: str
    associated: bool


class Raster(Protocol):
    """Pixels of one picture: (samples, rows, columns) of any window."""

    def read(self, window: Window) -> Array: ...

    def close(self) -> None: ...


class Source:
    """A scene that is open for reading; a context manager.  Workers open their own by the same uri.

    name: base name of the file.  size: its bytes.  etag: what tells it from others of its name where it is not on this
    machine and its server says so, None elsewhere.  height, width: pixels.  bands: samples of a pixel less alpha.
    dtype: "uint8", "uint16", "int16" or "float32", the type that comes back.
    nodata: per band, the value that marks a pixel without data, None where the type cannot hold the stated one.
    alpha: where the alpha band lies, or None.  has_mask: the file says of each pixel whether it is valid.
    metadata: JSON-able, what the writer needs.  warnings: what the archive will not keep, one sentence each.
    """

    def __init__(
        self,
        *,
        name: str,
        file: Readable,
        raster: Raster,
        height: int,
        width: int,
        samples: int,
        dtype: str,
        alpha: AlphaInfo | None,
        nodata: float | int | None,
        mask: Raster | None,
        metadata: dict[str, Any],
        warnings: tuple[str, ...],
        etag: str | None = None,
        checker: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.size, self.etag, self._file = name, file.size, etag, file
        self.height, self.width, self.dtype = height, width, dtype
        self.bands = samples - (alpha is not None)
        self.alpha, self.has_mask, self.metadata, self.warnings = alpha, mask is not None, metadata, warnings
        self.nodata: tuple[float | int | None, ...] | None = None if nodata is None else (nodata,) * self.bands
        self._raster, self._mask, self._checker = raster, mask, checker
        self._last: tuple[Window, Array] | None = None

    def read(self, window: Window) -> Array:
        """The bands (bands, rows, columns) of `window`, in `dtype`.

        Raises WindowError outside the scene; SourceError when a strip or tile the window touches is damaged.
        """
        samples = self._samples(window)
        return samples if self.alpha is None else np.delete(samples, self.alpha.index, axis=0)

    def read_alpha(self, window: Window) -> Array | None:
        """The alpha band (rows, columns) of `window` in `dtype`, None when there is none."""
        return None if self.alpha is None else self._samples(window)[self.alpha.index]

    def read_mask(self, window: Window) -> npt.NDArray[np.uint8] | None:
        """The mask (rows, columns) of `window`, 255 where pixels are valid and 0 elsewhere, None when there is none."""
        if self._mask is None:
            return None
        mask = self._pixels(self._mask, window)[0]
        return np.where(mask != 0, np.uint8(255), np.uint8(0))

    def check(self) -> None:
        """Find damage that a decoder would pass over and that needs the whole file: in a JPEG.  Reading finds the rest.

        Raises SourceError.  The first window read does the same, unless the source was opened as `checked`.
        """
        if self._checker is not None:
            with self._named():
                self._checker()

    def digest(self) -> str:
        """SHA-256 of the file's bytes in hexadecimal; reads the whole file, a megabyte at a time."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, READ_BYTES):
            digest.update(self._file.read_at(offset, READ_BYTES))
        return digest.hexdigest()

    def close(self) -> None:
        """Free the file and what was decoded; a second call does nothing."""
        self._last = None
        self._raster.close()
        if self._mask is not None:
            self._mask.close()
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _samples(self, window: Window) -> Array:
        """All samples of `window`; the last window is kept when there is alpha, which is asked for after the bands."""
        if self._last is not None and self._last[0] == window:
            return self._last[1]
        samples = self._pixels(self._raster, window)
        if self.alpha is not None:
            self._last = (window, samples)
        return samples

    def _pixels(self, raster: Raster, window: Window) -> Array:
        with self._named():
            return raster.read(window.within(self.height, self.width))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SourceError as error:
            raise SourceError(f"{self.name}: {error.message}") from error
        except MemoryError as error:
            raise SourceError(f"{self.name}: reading it needs more memory than there is") from error


def open_source(uri: Name, *, expand_palette: bool = False, checked: bool = False, etag: str | None = None) -> Source:
    """Open a scene by its path or URI; of what is not on this machine only the ranges are read that are needed.

    expand_palette: turn the indexes of a palette picture into RGB, which is what comes back then.
    checked: another process has called `check`, which takes time and memory, and looked at what lies beside the file;
    this one need not.  etag: what that process found; SourceError when the file is another by now.
    Raises SourceError, one sentence with advice, when the file cannot be read, or could not be given back as it was.
    """
    path = place_of(uri)
    file = _file(path, etag)
    found = file.etag if isinstance(file, RemoteFile) else None
    try:
        head = file.read_at(0, 16)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _open_tiff(path, file, found, expand_palette, checked)
        if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff":
            from ditic_stream._picture import open_picture

            picture = open_picture(file, expand_palette)
            picture.checked = checked
            return Source(
                name=path.name, file=file, raster=picture, height=picture.height, width=picture.width,
                samples=picture.samples, dtype=picture.dtype, nodata=None, mask=None, metadata=picture.metadata,
                alpha=AlphaInfo(picture.samples - 1, picture.dtype, False) if picture.has_alpha else None,
                warnings=picture.warnings + (() if checked else _sidecars(_beside(path))), etag=found,
                checker=picture.check,
            )  # fmt: skip
        raise SourceError("the file is neither TIFF, PNG nor JPEG; convert it first, e.g. with gdal_translate")
    except SourceError as error:
        file.close()
        raise SourceError(f"{path.name}: {error.message}") from error
    except MemoryError as error:
        file.close()
        raise SourceError(f"{path.name}: reading it needs more memory than there is") from error
    except BaseException:
        file.close()
        raise


def _file(path: Place, etag: str | None) -> Readable:
    """The file, wherever it is."""
    if not isinstance(path, Uri):
        return LocalFile(path)
    file = RemoteFile(path)
    if etag is not None and file.etag != etag:
        file.close()
        raise SourceError(f"{path} changed while it was being read; run the same command again")
    return file


def _open_tiff(path: Place, file: Readable, etag: str | None, expand_palette: bool, checked: bool) -> Source:
    pages = sort_pages(read_ifds(file))
    beside = [] if checked else _beside(path)
    _no_mask(beside)
    notes = [*pages.notes, *_sidecars(beside)]
    palette = pages.scene.number(262, 1) == 3 and expand_palette
    layout = layout_of(pages.scene, palette=palette)
    if len(pages.channels) > 1:
        layout = join_channels([layout_of(page) for page in pages.channels])
    fields, left = fields_to_json(pages.scene)
    branches, lost = branches_to_json(pages.scene)
    notes += left + lost
    if pages.channels and not pages.in_order:
        fields = [field for field in fields if field["code"] != DESCRIPTION]
        notes.append("the description is not kept: it names pages that come back in the order of their channels")
    nodata = _nodata(pages.scene, layout.dtype)
    alpha = None if palette else _alpha(layout)
    mask: Raster | None = None
    if pages.mask is not None:
        mask = TiffRaster(layout_of(pages.mask, mask=True))
    raster: Raster = TiffRaster(layout, _sparse_fill(nodata))
    samples, dtype, photometric = layout.samples, layout.dtype, layout.photometric
    extras = layout.extrasamples
    if palette:
        table = _color_table(pages.scene, layout)
        if nodata is not None and mask is None:
            mask = _IndexMask(raster, nodata)
        fields, nodata = [field for field in fields if field["code"] != NODATA_FIELD], None
        raster, samples, dtype, photometric, extras = _Expanded(raster, table), 3, str(table.dtype), 2, ()
        notes.append("the palette is expanded: the file comes back in RGB")
    if layout.bits % 8:
        notes.append(f"samples of {layout.bits} bits come back in words of 16 bits")
    if photometric == 6:
        photometric = 2  # the JPEG decoder turns YCbCr into RGB
    metadata = {
        "driver": "tiff",
        "photometric": photometric,
        "extrasamples": list(extras),
        "planar": layout.planar,
        **({"pages": True} if len(pages.channels) > 1 and pages.in_order else {}),
        "alpha": None if alpha is None else alpha.index,
        "mask": mask is not None,
        "fields": fields,
        **branches,
        "geo": geo_of(fields),
    }
    return Source(
        name=path.name, file=file, raster=raster, height=layout.height, width=layout.width, samples=samples,
        dtype=dtype, alpha=alpha, nodata=nodata, mask=mask, metadata=metadata, warnings=tuple(notes), etag=etag,
    )  # fmt: skip


def _alpha(layout: Layout) -> AlphaInfo | None:
    """The first extra sample that is marked as alpha, when there is another band beside it."""
    first = layout.samples - len(layout.extrasamples)
    for place, role in enumerate(layout.extrasamples):
        if role in (1, 2) and layout.samples > 1:
            return AlphaInfo(first + place, layout.dtype, role == 1)
    return None


def _nodata(ifd: Ifd, dtype: str) -> float | int | None:
    """The nodata value as `dtype` holds it, None when there is none or `dtype` cannot hold it."""
    text = ifd.text(NODATA_FIELD, 256).strip().replace(",", ".")
    if not text:
        return None
    kind = np.dtype(dtype)
    try:
        value = float(text)
        if kind.kind == "f":
            if math.isfinite(value):
                limits = np.finfo(np.float32)
                # Writers print -3.4028234663852886e+38 with too few or rounded digits, just beyond the type's range.
                if abs(value) > float(limits.max) * (1 + 1e-6):
                    return None
                value = min(max(value, float(limits.min)), float(limits.max))
            return float(np.float32(value))
        limit = np.iinfo(kind)
        return int(value) if value.is_integer() and limit.min <= value <= limit.max else None
    except (ValueError, OverflowError):
        return None


def _sparse_fill(nodata: float | int | None) -> float | int:
    return 0 if nodata is None else nodata


def _beside(path: Place) -> list[str]:
    """The names of the masks and sidecars that lie beside the file, masks first."""
    names = [f"{path.name}.msk", f"{path.stem}.msk", f"{path.name}.aux.xml"]
    names += [f"{path.stem}{suffix}" for suffix in (".tfw", ".pgw", ".jgw", ".wld")]
    names = [name for name in dict.fromkeys(names) if name != path.name]
    if isinstance(path, Uri):
        return [uri.name for uri in exists([path.with_name(name) for name in names])]
    return [name for name in names if path.with_name(name).exists()]


def _no_mask(beside: list[str]) -> None:
    for name in beside:
        if name.endswith(".msk"):
            raise SourceError(
                f"{name} beside the file holds a mask, which would be lost; run gdal_translate once to join them"
            )


def _sidecars(beside: list[str]) -> tuple[str, ...]:
    found = [name for name in beside if not name.endswith(".msk")]
    return (f"{', '.join(found)} beside the file is not kept",) if found else ()


def _color_table(ifd: Ifd, layout: Layout) -> Array:
    """The palette as (entries, 3), uint8; a file whose entries stay below 256 means them as 8-bit levels."""
    entries = 1 << layout.bits
    table = np.asarray(ifd.ints(COLORMAP, 3 << 16), np.uint32)
    if layout.samples != 1 or len(table) != 3 * entries:
        raise SourceError(f"the palette holds {len(table)} values, {3 * entries} belong to {layout.bits}-bit indexes")
    if table.max(initial=0) > 255:
        table = (table + 128) // 257
    return table.reshape(3, entries).T.astype(np.uint8)


class _Expanded:
    """A palette picture seen as RGB."""

    def __init__(self, indexes: Raster, table: Array) -> None:
        self._indexes, self._table = indexes, table

    def read(self, window: Window) -> Array:
        colours: Array = self._table[self._indexes.read(window)[0]]
        return np.ascontiguousarray(colours.transpose(2, 0, 1))

    def close(self) -> None:
        self._indexes.close()


class _IndexMask:
    """The mask of a palette picture whose nodata value is an index."""

    def __init__(self, indexes: Raster, nodata: float | int) -> None:
        self._indexes, self._nodata = indexes, nodata

    def read(self, window: Window) -> Array:
        return np.where(self._indexes.read(window) == self._nodata, np.uint8(0), np.uint8(255))

    def close(self) -> None:
        pass  # the indexes are closed with the colours
