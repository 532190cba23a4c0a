"""Which pages of a TIFF are the channels of one picture, as its description says: OME-XML, or that of ImageJ.

In: the description of the first page, and how many pages the file has.  Out: the page of each channel, in order of
channels.  Knows the two kinds of description; knows nothing of fields or pixels.

Channels become bands.  Planes in depth and moments in time are pictures of their own, and are refused.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ditic_stream.errors import SourceError


def channel_pages(description: str, pages: int) -> tuple[int, ...]:
    """The page of each channel, () where the description says nothing of pages.

    pages: pictures in the file, without masks and overviews.
    Raises SourceError for a stack in depth or time, and for channels that are not in the file.
    """
    if description.startswith("ImageJ="):
        return _imagej_pages(description, pages)
    if "<OME" in description[:4096] and pages > 1:
        return _ome_pages(description, pages)
    return ()


def _imagej_pages(description: str, pages: int) -> tuple[int, ...]:
    stated = {key: int(value) for key, value in re.findall(r"^(\w+)=([0-9]{1,9})\s*$", description, re.MULTILINE)}
    images, depth, times = (stated.get(key, 1) for key in ("images", "slices", "frames"))
    if images <= 1 and pages == 1:
        return ()
    _no_stack(depth, times)
    if images != pages:
        raise SourceError(f"ImageJ says that the file holds {images} pictures, {pages} are listed in it; save it anew")
    return tuple(range(pages)) if stated.get("channels", 1) == pages else ()


def _ome_pages(description: str, pages: int) -> tuple[int, ...]:
    pixels = _pixels_of(description)
    if len(pixels) != 1:
        return ()
    try:
        count, depth, times = (int(pixels[0].get(key, "1")) for key in ("SizeC", "SizeZ", "SizeT"))
        blocks = [block for block in pixels[0] if _name(block) == "TiffData"] or [ElementTree.Element("TiffData")]
        _no_stack(depth, times)
        found: dict[int, int] = {}
        for block in blocks:
            whole = "1" if "IFD" in block.attrib else str(count)  # OME-TIFF: one plane where a page is named, else all
            channel, page = int(block.get("FirstC", "0")), int(block.get("IFD", "0"))
            for step in range(min(int(block.get("PlaneCount", whole)), pages + 1)):
                found[channel + step] = page + step
    except ValueError as error:
        raise SourceError("the OME-XML holds words where numbers belong; the file is damaged") from error
    order = tuple(found.get(channel, -1) for channel in range(min(max(count, 1), pages + 1)))
    if sorted(order) != list(range(pages)):
        raise SourceError(
            f"the OME-XML says {count} channels and places them in other pages than the {pages} of the file; "
            "join the channels as bands of one picture first"
        )
    return order


def _pixels_of(description: str) -> list[ElementTree.Element]:
    """The elements that describe pixels, one a picture."""
    if "<!" in re.sub(r"<!--.*?-->|<!\[CDATA\[", "", description, flags=re.DOTALL):
        raise SourceError("the OME-XML declares types or entities of its own; save the file anew without them")
    try:
        root = ElementTree.fromstring(description.strip().encode("utf-8"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise SourceError(f"the OME-XML cannot be read ({error!s:.80}); the file is damaged") from error
    return [element for element in root.iter() if _name(element) == "Pixels"]


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _no_stack(depth: int, times: int) -> None:
    if depth > 1 or times > 1:
        raise SourceError(
            f"the file is a stack of {depth} plane{'s' * (depth != 1)} in depth and {times} moment{'s' * (times != 1)} "
            "in time; save each as a file of its own"
        )
