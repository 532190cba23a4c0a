"""Read what a run trains on: pictures and scenes of any kind the codec takes, as the codec would see them, in 8 bits.

In: folders, tar files, lists (text files with a path or URI a line), single pictures and scenes.  Out: uint8 tensors
(3, rows, columns), 255 times the network's units.  Knows files and radiometry; knows nothing of crops.

Ordinary 8-bit pictures come whole.  Everything else (16-bit, float, many bands, nodata, masks, alpha) goes through the
codec's own reader and radiometry, one window at a time, three bands a picture; windows with more than a trace of
invalid pixels are cut smaller and at last left out.  When all there is exceeds the memory that is meant for it, windows
are drawn with equal chance over all scenes; most of those that are not kept are not read either.
"""

from __future__ import annotations

import heapq
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.geometry import Window
from ditic_stream.radiometry import in_sight, needs_survey, read_window, survey, to_network
from ditic_stream.reader import Source, open_source

if TYPE_CHECKING:
    from ditic_stream.radiometry import Radiometry

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".tf8", ".svs", ".webp"}
"""Of what is taken from folders and tar files; a file that is named itself may have another."""
LISTS = {".txt", ".lst"}
BESIDE = "._"
"""How names begin of what macOS lays beside files in folders and tar archives; no pictures, whatever their suffix."""
DECODERS: dict[bytes, Callable[[bytes], NDArray[Any]]] = {
    b"\xff\xd8": imagecodecs.jpeg8_decode,
    b"\x89PNG": imagecodecs.png_decode,
    b"RIFF": imagecodecs.webp_decode,
}
"""By how a file begins.  imagecodecs.imread tries every decoder it has, some of which crash on an empty file."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF begins."""
MIN_SIDE = 256
"""Pixels; smaller pictures hold no crop and are left out."""
WINDOW = 1024
"""Side of the windows a scene is read in; halved down to MIN_SIDE around invalid pixels."""
VALID = 0.995
"""Share of samples of a window that have to be valid: dead pixels of a sensor are filled in, edges are kept out."""
MEMORY = 4.0
"""Gigabytes of pictures."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may hold a picture: where it lies, and how to say so."""

    name: str
    open: Callable[[], bytes] | None
    """Its bytes, of a member of a tar file; None for what has a path of its own."""
    path: str = ""


def load_pictures(paths: Iterable[Path | str], memory: float = MEMORY, seed: int = 0) -> list[Tensor]:
    """Read every picture and scene of the given files, folders, lists and tar archives: uint8 (3, rows, columns) each,
    sides 256 or more.

    memory: gigabytes they may take; seed: of the draw of windows when they would take more.
    Raises ConfigError when nothing is left, SourceError naming a file that cannot be read.
    """
    kept = _Kept(int(memory * 1e9), seed)
    for path in paths:
        for found in _files(path):
            _take(found, kept)
    if not kept.pictures:
        raise ConfigError(
            f"no picture of at least {MIN_SIDE} x {MIN_SIDE} valid pixels found that fits into {memory:g} GB; give "
            "folders, tar files, lists or pictures that hold some"
        )
    return kept.in_order()


class _Kept:
    """An even draw of what is offered, within a budget of bytes: each offer gets a lot, and the lowest lots go."""

    def __init__(self, budget: int, seed: int) -> None:
        self.budget, self.pictures = budget, list[tuple[float, int, list[Tensor]]]()
        self._random, self._bytes, self._offers, self._lowest = random.Random(seed), 0, 0, 0.0

    def offer(self, read: Callable[[], list[Tensor]]) -> None:
        """Keep what `read` gives, or do not call it where its lot is lower than one that had to go."""
        lot, number = self._random.random(), self._offers
        self._offers += 1
        if lot < self._lowest or not (pictures := read()):
            return
        heapq.heappush(self.pictures, (lot, number, pictures))
        self._bytes += sum(p.numel() for p in pictures)
        while self._bytes > self.budget:
            self._lowest, _, gone = heapq.heappop(self.pictures)
            self._bytes -= sum(p.numel() for p in gone)

    def in_order(self) -> list[Tensor]:
        return [picture for _, _, pictures in sorted(self.pictures, key=lambda one: one[1]) for picture in pictures]


def _files(path: Path | str, within: tuple[Path, ...] = ()) -> Iterator[Found]:
    """within: the lists that led here."""
    if "://" in str(path):
        yield Found(str(path), None, str(path))
        return
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() or (child.suffix.lower() in SUFFIXES | {".tar"} and not child.name.startswith(BESIDE)):
                yield from _files(child, within)
    elif not path.exists():
        raise SourceError(f"{path} does not exist; give a folder, a tar file, a list or a picture")
    elif suffix == ".tar":
        yield from _members(path)
    elif suffix in LISTS:
        if path.resolve() in within:
            raise SourceError(f"{path} is a list that leads to itself; take that line out")
        for line in map(str.strip, _lines(path)):
            if line and not line.startswith("#"):
                yield from _files(line if "://" in line else path.parent / line, (*within, path.resolve()))
    elif suffix in SUFFIXES or _head(path).startswith((*TIFF, *DECODERS)):
        yield Found(str(path), None, str(path))
    else:
        kinds = ", ".join(sorted(SUFFIXES))
        raise SourceError(
            f"{path} is no folder, no list (.txt, .lst), no uncompressed tar file (.tar) and no picture or scene "
            f"({kinds}); unpack or convert it"
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is a list that is not in UTF-8 ({error}); save it as such") from error


def _members(path: Path) -> Iterator[Found]:
    try:
        with tarfile.open(path, "r:") as tar:
            places = [
                (member.name, member.offset_data, member.size)
                for member in tar
                if member.isfile() and not member.issparse() and _is_picture(member.name)
            ]
    except tarfile.TarError as error:
        raise SourceError(f"{path} is no whole, uncompressed tar file ({error}); unpack it, or pack it anew") from error

    def read(offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    for name, offset, size in places:
        yield Found(f"{path}: {name}", lambda offset=offset, size=size: read(offset, size))  # type: ignore[misc]


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not Path(name).name.startswith(BESIDE)


def _plain(found: Found) -> NDArray[np.uint8] | None:
    """An 8-bit grey or RGB picture (3, rows, columns), whole; None for what the reader has to look at."""
    if "://" in found.path or (found.path and _head(Path(found.path)) in TIFF):
        return None
    data = found.open() if found.open else Path(found.path).read_bytes()
    if data.startswith(TIFF):
        return None
    decode = next((one for start, one in DECODERS.items() if data.startswith(start)), None)
    if decode is None:
        raise SourceError(f"{found.name} is no PNG, JPEG or WebP picture; remove it from the training set")
    try:
        array = np.asarray(decode(data))
    except Exception as error:  # imagecodecs raises a class per codec
        raise SourceError(f"{found.name} cannot be decoded ({error}); remove it from the training set") from error
    webp = found.name.lower().endswith(".webp")
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[2] == 3 or webp):
        return None
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    return np.ascontiguousarray(array[..., :3].transpose(2, 0, 1))


@contextmanager
def _source(found: Found) -> Iterator[Source]:
    """The reader's view; a member of a tar file is laid down beside other temporary files for it."""
    if found.open is None:
        with open_source(found.path, expand_palette=True) as source:
            yield source
        return
    with tempfile.NamedTemporaryFile(suffix=Path(found.name).suffix) as file:
        file.write(found.open())
        file.flush()
        try:
            with open_source(file.name, expand_palette=True) as source:
                yield source
        except SourceError as error:  # it names the temporary file
            raise SourceError(f"{found.name}: {error}") from error


def _take(found: Found, kept: _Kept) -> None:
    """Offer the pictures of a file: an ordinary one whole, all else, and what is very large, by windows."""
    picture = _plain(found)
    if picture is not None:
        height, width = picture.shape[1:]
        if min(height, width) >= MIN_SIDE:
            side = WINDOW if picture.nbytes > kept.budget // 8 else max(height, width)
            for window in _windows(height, width, side):
                part = picture[(slice(None), *_slices(window))]
                kept.offer(lambda part=part: [torch.from_numpy(part.copy())])  # type: ignore[misc]
        return
    with _source(found) as source:
        height, width = source.height, source.width
        if min(height, width) >= MIN_SIDE:
            radiometry = survey(source)
            whole = not needs_survey(source) and 3 * height * width <= kept.budget // 8
            for window in _windows(height, width, max(height, width) if whole else WINDOW):
                kept.offer(lambda window=window: list(_valid_parts(source, radiometry, window)))  # type: ignore[misc]


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.row, window.row_end), slice(window.col, window.col_end)


def _windows(height: int, width: int, side: int = WINDOW) -> Iterator[Window]:
    """Windows that cover a picture, all of one size, the last ones moved back to end where it does."""
    tall, wide = min(side, height), min(side, width)
    for row in range(0, height, tall):
        for col in range(0, width, wide):
            yield Window(row=min(row, height - tall), col=min(col, width - wide), height=tall, width=wide)


def _valid_parts(source: Source, radiometry: Radiometry, window: Window) -> Iterator[Tensor]:
    """The window's groups of bands as pictures; its quarters, and theirs, where too much of it is invalid."""
    pixels, planes = read_window(source, window, radiometry)
    units = (to_network(pixels, planes, radiometry).clip(0, 1) * 255).round().astype(np.uint8)
    seen = np.logical_and.reduce(in_sight(planes, radiometry)) if radiometry.planes else np.ones(window.shape, bool)

    def parts(row: int, col: int, height: int, width: int) -> Iterator[Tensor]:
        here = slice(row, row + height), slice(col, col + width)
        if seen[here].mean() >= VALID:
            for group in units[(slice(None), slice(None), *here)]:
                yield torch.from_numpy(np.ascontiguousarray(group))
        elif min(height, width) >= 2 * MIN_SIDE:
            for top in (row, row + height // 2):
                for left in (col, col + width // 2):
                    yield from parts(top, left, height // 2, width // 2)

    yield from parts(0, 0, *window.shape)
