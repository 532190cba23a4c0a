"""How the pixels of one TIFF picture are stored, or the sentence why they cannot be read.

In: an Ifd.  Out: Layout, a frozen value that has passed every bound, so that reading segments need not ask again.
Also sorts the pictures of a file: the scene, its mask, overviews, and what a whole slide carries along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ditic_stream._tiff_channels import channel_pages
from ditic_stream._tiff_tags import MAX_FIELD_BYTES, MAX_SEGMENTS, Ifd
from ditic_stream.errors import SourceError
from ditic_stream.tiling import MAX_SIDE

MAX_BANDS = 1024
"""Most samples of a pixel."""
MAX_SEGMENT_BYTES = 2**28
"""Largest strip or tile that is decoded, 256 MB: it has to be held whole."""

CODECS = {
    1: "none", 5: "LZW", 6: "old-style JPEG", 7: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate",
    33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC",
    34892: "lossy DNG JPEG", 34925: "LZMA", 34926: "Zstandard", 34927: "WebP", 50000: "Zstandard", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
"""Compressions that are read, by the number in field 259."""
PICTURE_CODECS = frozenset(code for code, name in CODECS.items() if "JPEG" in name or name in ("LERC", "WebP"))
"""Those that code pictures, not bytes: no predictor, no byte order, sizes of their own."""
UNREAD = {2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 34676: "SGI LogLuv", 34933: "PNG", 34934: "JPEG XR"}
PHOTOMETRICS = {4: "a mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a raw colour filter array",
                32844: "LogL", 32845: "LogLuv"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One picture: its size, its samples, and the strips or tiles ("segments") that hold it."""

    ifd: Ifd
    height: int
    width: int
    samples: int
    dtype: str
    """numpy name of a sample once decoded, native order."""
    bits: int
    """Bits a sample takes in the file: those of `dtype`, or 1 or 9..15 packed."""
    compression: int
    predictor: int
    photometric: int
    planar: bool
    """True when every sample has segments of its own."""
    tiled: bool
    segment_height: int
    segment_width: int
    lsb_first: bool
    extrasamples: tuple[int, ...]
    offsets: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint64]
    tables: bytes | None
    """JPEG tables shared by all segments."""

    @property
    def down(self) -> int:
        return -(-self.height // self.segment_height)

    @property
    def across(self) -> int:
        return -(-self.width // self.segment_width)

    @property
    def segment_samples(self) -> int:
        """Samples of a pixel inside one segment."""
        return 1 if self.planar else self.samples

    @property
    def row_bytes(self) -> int:
        """Stored bytes of a row of a segment, before compression."""
        return -(-self.segment_width * self.segment_samples * self.bits // 8)

    @property
    def raw(self) -> bool:
        """True when any run of pixels can be read straight from the file."""
        return self.compression == 1 and self.predictor == 1 and self.bits % 8 == 0 and not self.lsb_first


def layout_of(ifd: Ifd, *, mask: bool = False, palette: bool = False) -> Layout:
    """Check every field that says how pixels are stored.  `mask`: also accept one bit a sample.
    `palette`: also accept indexes, of 8 bits, to be expanded.

    Raises SourceError, one sentence with advice, for what cannot be read or could not be given back as it was.
    """
    height, width = _side(ifd, 257, "height"), _side(ifd, 256, "width")
    samples = ifd.number(277, 1)
    if not 1 <= samples <= MAX_BANDS:
        raise SourceError(f"{samples} samples a pixel are outside 1..{MAX_BANDS}; split the bands over several files")
    if ifd.number(32997, 1) > 1 or ifd.number(32998, 1) > 1:
        raise SourceError("the picture is a volume with depth; save its slices as files of their own")
    compression = ifd.number(259, 1)
    if compression not in CODECS:
        name = UNREAD.get(compression, f"number {compression}")
        raise SourceError(f"compression {name} is not read; convert first, e.g. gdal_translate -co COMPRESS=DEFLATE")
    photometric = ifd.number(262, 1)
    if photometric == 3 and not palette and not mask:
        raise SourceError("the picture has a palette, whose indexes a lossy codec would destroy; use --expand-palette")
    bits, dtype = _sample_type(ifd, samples, compression, mask)
    _check_photometric(photometric, compression, mask or (palette and bits == 8))
    planar = ifd.number(284, 1) == 2 and samples > 1
    tiled = 322 in ifd.fields or 324 in ifd.fields
    if tiled:
        segment_width, segment_height = ifd.number(322, 0), ifd.number(323, 0)
    else:
        segment_width, segment_height = width, min(ifd.number(278, height) or height, height)
    if segment_width < 1 or segment_height < 1:
        raise SourceError(f"tiles of {segment_height} x {segment_width} pixels; the file is damaged")
    predictor = 1 if compression in PICTURE_CODECS else ifd.number(317, 1)
    good = {1} | ({2} if bits in (8, 16, 32) else set()) | ({3} if dtype == "float32" else set())
    if predictor not in good:
        raise SourceError(
            f"predictor {predictor} with {bits}-bit samples is not read; convert first, without predictor"
        )
    layout = Layout(
        ifd=ifd, height=height, width=width, samples=samples, dtype=dtype, bits=bits, compression=compression,
        predictor=predictor, photometric=photometric, planar=planar, tiled=tiled, segment_height=segment_height,
        segment_width=segment_width, lsb_first=ifd.number(266, 1) == 2, extrasamples=ifd.ints(338)[:samples],
        offsets=np.empty(0, np.uint64), counts=np.empty(0, np.uint64),
        tables=ifd.raw(347, MAX_FIELD_BYTES) if 347 in ifd.fields else None,
    )  # fmt: skip
    decoded = segment_height * segment_width * layout.segment_samples * np.dtype(dtype).itemsize
    offsets, counts = _segments(layout)
    if decoded > MAX_SEGMENT_BYTES and (not layout.raw or not counts.all()):
        raise SourceError(
            f"one {'tile' if tiled else 'strip'} holds {decoded >> 20} MB of pixels, compressed or absent, "
            f"more than {MAX_SEGMENT_BYTES >> 20} MB; cut it first, e.g. gdal_translate -co TILED=YES"
        )
    object.__setattr__(layout, "offsets", offsets)
    object.__setattr__(layout, "counts", counts)
    return layout


def _side(ifd: Ifd, code: int, name: str) -> int:
    side = ifd.number(code, 0)
    if not 1 <= side <= MAX_SIDE:
        raise SourceError(f"{name} {side} px is outside 1..{MAX_SIDE}; the file is damaged, or is to be split")
    return side


def _sample_type(ifd: Ifd, samples: int, compression: int, mask: bool) -> tuple[int, str]:
    stated = set(ifd.ints(258)[:samples]) or {8 if compression == 6 else 1}
    forms = set(ifd.ints(339)[:samples]) or {1}
    if len(stated) != 1 or len(forms) != 1:
        raise SourceError(
            f"samples of mixed types (bits {sorted(stated)}) are not read; save each type as its own file"
        )
    bits, form = stated.pop(), forms.pop()
    if mask and (bits, form) == (1, 1):
        return 1, "uint8"
    if form in (5, 6):
        raise SourceError(
            f"complex samples of {bits} bits are not coded; save amplitude or the two parts as float32 bands first"
        )
    if form in (1, 4) and bits < 8:
        raise SourceError(
            f"samples of {bits} bit{'s' * (bits > 1)} hold classes or line art, which a lossy codec would destroy; "
            "keep the file as it is"
        )
    names = {
        (1, 8): "uint8",
        (1, 16): "uint16",
        (2, 16): "int16",
        (3, 32): "float32",
        (4, 8): "uint8",
        (4, 16): "uint16",
    }
    if form in (1, 4) and 8 < bits < 16:
        return bits, "uint16"
    if (form, bits) not in names:
        kind = {1: "uint", 2: "int", 3: "float"}.get(form, "type ")
        raise SourceError(
            f"samples of type {kind}{bits} could not come back as such; "
            "convert to uint8, uint16, int16 or float32 first, e.g. gdal_translate -ot Float32"
        )
    return bits, names[form, bits]


def _check_photometric(photometric: int, compression: int, mask: bool) -> None:
    if mask or photometric in (0, 1, 2, 5):
        return
    if photometric == 3:
        raise SourceError("a palette of other than 8-bit indexes is not expanded; convert to RGB first")
    if photometric == 6:
        if compression in (6, 7, 33003, 33005, 34712, 34927, 50001, 50002, 52546):
            return
        raise SourceError("YCbCr samples outside JPEG are not read; convert to RGB first, e.g. with gdal_translate")
    name = PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
    raise SourceError(f"colours given as {name} are not coded; convert to RGB first")


def _segments(layout: Layout) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Offsets and byte counts of all segments, each inside the file; offset and count 0 mark a sparse one."""
    ifd, total = layout.ifd, layout.down * layout.across * (layout.samples if layout.planar else 1)
    what = "tile" if layout.tiled else "strip"
    if total > MAX_SEGMENTS:
        raise SourceError(f"{total} {what}s are more than {MAX_SEGMENTS}; cut the scene into larger tiles first")
    offsets = _numbers(ifd, 324 if 324 in ifd.fields else 273, total)
    counts = _numbers(ifd, 325 if 325 in ifd.fields else 279, total)
    if layout.compression == 6 and not len(offsets) and 513 in ifd.fields and total == 1:
        offsets, counts = _numbers(ifd, 513, 1), _numbers(ifd, 514, 1)
    rows = np.full(layout.down, layout.segment_height, np.uint64)
    if not layout.tiled:
        rows[-1] = layout.height - (layout.down - 1) * layout.segment_height
    need = np.resize(np.repeat(rows, layout.across), total) * np.uint64(layout.row_bytes)
    if layout.compression == 1 and len(counts) != total:
        counts = need  # old writers leave the counts out, or give one for all
    if len(offsets) != total or len(counts) != total:
        raise SourceError(
            f"{total} {what}s need as many offsets and lengths, the file gives {len(offsets)} and {len(counts)}; "
            "it is damaged"
        )
    sparse = (offsets == 0) | (counts == 0)
    if layout.compression == 1:
        counts = np.where(sparse, np.uint64(0), need)
    size = np.uint64(ifd.file.size)
    beyond = ~sparse & ((offsets > size) | (counts > size) | (offsets + counts > size))
    if beyond.any():
        first = int(np.argmax(beyond))
        raise SourceError(
            f"{what} {first} of {total} ends beyond the file's {ifd.file.size} bytes; "
            "the file is truncated, fetch it again"
        )
    return offsets, np.where(sparse, np.uint64(0), counts)


def _numbers(ifd: Ifd, code: int, total: int) -> npt.NDArray[np.uint64]:
    if code not in ifd.fields:
        return np.empty(0, np.uint64)
    if ifd.fields[code].count > total + MAX_SEGMENTS:
        raise SourceError(f"TIFF field {code} claims {ifd.fields[code].count} values for {total}; the file is damaged")
    values = ifd.array(code, total + MAX_SEGMENTS)[:total]
    if values.dtype.kind not in "u":
        raise SourceError(f"TIFF field {code} holds other than whole numbers; the file is damaged")
    return values.astype(np.uint64)


def join_channels(layouts: list[Layout]) -> Layout:
    """One picture whose bands lie in pages of their own: to a reader, planes of a band-interleaved one.

    Raises SourceError unless the pages agree in all but where their strips or tiles lie.
    """
    first = layouts[0]
    if len(layouts) > MAX_BANDS:
        raise SourceError(f"{len(layouts)} channels are more than {MAX_BANDS}; split the bands over several files")
    for number, layout in enumerate(layouts):
        if layout.samples != 1 or _manner(layout) != _manner(first):
            raise SourceError(
                f"channel {number} is stored unlike the first (size, type, strips or compression) or is not one band; "
                "join the channels as bands of one picture first"
            )
    return replace(
        first, samples=len(layouts), planar=True, extrasamples=(),
        offsets=np.concatenate([layout.offsets for layout in layouts]),
        counts=np.concatenate([layout.counts for layout in layouts]),
    )  # fmt: skip


def _manner(layout: Layout) -> tuple[object, ...]:
    return (
        layout.height, layout.width, layout.dtype, layout.bits, layout.compression, layout.predictor,
        layout.photometric, layout.tiled, layout.segment_height, layout.segment_width, layout.lsb_first, layout.tables,
        layout.ifd.ints(50674),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pages:
    """The pictures of a file by what they are for."""

    scene: Ifd
    mask: Ifd | None
    notes: tuple[str, ...]
    channels: tuple[Ifd, ...] = ()
    """The page of each band where bands have pages of their own."""
    in_order: bool = False
    """True when these pages lie in the order of their bands, so that what is said of them stays true."""


def sort_pages(ifds: list[Ifd]) -> Pages:
    """Take the first picture as the scene, find its mask, and name what is left behind.

    Raises SourceError when another picture would be lost silently: a second page is somebody's data.
    """
    scene, mask = ifds[0], None
    size = (scene.number(257, 0), scene.number(256, 0))
    if _role(scene) & 1:
        raise SourceError(
            f"the first picture, {size[0]} x {size[1]} pixels, is marked as a reduced one, as in raw photos; "
            "save the full picture as a file of its own"
        )
    description = scene.text(270)
    slide = description.startswith("Aperio")
    full = [number for number, page in enumerate(ifds) if not _role(page)]
    order = channel_pages(description, len(full)) if full == list(range(len(full))) else ()
    overviews, extras = scene.branches(330), []
    for number, page in enumerate(ifds[1:], start=1):
        role = _role(page)
        if number in order:
            continue
        if role & 4:
            if not role & 1 and (page.number(257, 0), page.number(256, 0)) == size and mask is None:
                mask = page
            elif not role & 1:
                raise SourceError(
                    f"the mask in TIFF page {number} does not fit the scene; convert with gdal_translate first"
                )
        elif slide and 322 not in page.fields:
            extras.append({1: "label", 9: "macro"}.get(role, "thumbnail"))
        elif role & 1 or slide:
            overviews.append(page)
        else:
            raise SourceError(
                f"the file holds {len(ifds)} pictures, page {number} of {page.number(257, 0)} x {page.number(256, 0)} "
                "pixels beside the first; save each as a file of its own, or as bands of one picture"
            )
    notes = _notes_on(overviews, scene)
    if extras:
        notes.append(f"the slide's {', '.join(extras)} {'pictures are' if len(extras) > 1 else 'picture is'} not kept")
    return Pages(scene, mask, tuple(notes), tuple(ifds[number] for number in order), order == tuple(sorted(order)))


def _notes_on(overviews: list[Ifd], scene: Ifd) -> list[str]:
    """What to say of pictures that are left behind; SourceError when one cannot be an overview of the scene."""
    notes: dict[str, None] = {}
    height, width = scene.number(257, 0), scene.number(256, 0)
    for page in overviews:
        size = (page.number(257, 0), page.number(256, 0))
        if size[0] > height or size[1] > width or (size == (height, width) and not _role(page)):
            raise SourceError(
                f"the file holds a picture of {size[0]} x {size[1]} pixels beside the first of {height} x {width}, "
                "of which it is no overview; save each as a file of its own"
            )
        if _role(page) & 4 or _samples(page) == _samples(scene):
            notes["overviews are not kept: they can be built again from the scene"] = None
        else:
            notes["a small picture of other bands or another type beside the scene is not kept"] = None
    return list(notes)


def _samples(page: Ifd) -> tuple[int, set[int], set[int]]:
    return page.number(277, 1), set(page.ints(258)) or {1}, set(page.ints(339)) or {1}


def _role(page: Ifd) -> int:
    role = page.number(254, 0)
    if role == 0 and page.number(255, 1) == 2:  # the field's old form: 2 says reduced
        role = 1
    return role | (4 if page.number(262, 1) == 4 else 0)
