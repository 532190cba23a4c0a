"""IIIF Image API 3: what an address asks for, and what info.json promises.

In: the five parts of an address (region, size, rotation, quality, format) and the size of a picture.  Out: a Request
of plain numbers; the info.json object.  Knows the words of the API (level 2, with upscaling and mirroring); nothing of
pixels but turning them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditic_stream.doors.server.display import MAX_AREA, MAX_SIDE, check_size
from ditic_stream.doors.server.encoding import checked_format
from ditic_stream.doors.server.resampling import Rgba
from ditic_stream.errors import ConfigError

CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"
TILE = 512
QUALITIES = ("default", "color", "gray", "bitonal")
NUMBER = r"(?:\d{1,9}(?:\.\d{1,12})?|\.\d{1,12})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A picture: pixels left..right, top..bottom of the scene, made `width` x `height`, mirrored, turned clockwise."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    mirrored: bool
    turns: int
    """Quarter turns clockwise, 0..3."""
    quality: str
    form: str

    def canonical(self, width: int, height: int) -> str:
        """The one spelling of this request, after the address of the image."""
        whole = (self.left, self.top, self.right, self.bottom) == (0, 0, width, height)
        wide, high = self.right - self.left, self.bottom - self.top
        region = "full" if whole else f"{self.left},{self.top},{wide},{high}"
        up = "^" if self.width > wide or self.height > high else ""
        size = (
            "max" if (self.width, self.height) == largest(wide, high) and not up else f"{up}{self.width},{self.height}"
        )
        return f"{region}/{size}/{'!' * self.mirrored}{90 * self.turns}/{self.quality}.{self.form}"


def info(address: str, width: int, height: int) -> dict[str, Any]:
    """info.json.  address: that of the image, without a slash at its end."""
    factors = [2**power for power in range(max((max(width, height) - 1).bit_length() - 8, 0) + 1)]
    sizes = [(-(-width // factor), -(-height // factor)) for factor in reversed(factors)]
    return {
        "@context": CONTEXT,
        "id": address,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": width,
        "height": height,
        "maxWidth": MAX_SIDE,
        "maxHeight": MAX_SIDE,
        "maxArea": MAX_AREA,
        "sizes": [
            {"width": wide, "height": high}
            for wide, high in sizes
            if wide <= MAX_SIDE and high <= MAX_SIDE and wide * high <= MAX_AREA
        ],
        "tiles": [{"width": TILE, "height": TILE, "scaleFactors": factors}],
        "preferredFormats": ["webp", "png", "jpg"],
        "extraFormats": ["webp"],
        "extraQualities": list(QUALITIES[1:]),
        "extraFeatures": ["canonicalLinkHeader", "mirroring", "profileLinkHeader", "sizeUpscaling"],
    }


def parse(region: str, size: str, rotation: str, last: str, *, width: int, height: int) -> Request:
    """The request that an address means for a scene of `width` x `height`.

    last: quality and format, "default.jpg".  Raises ConfigError in one sentence where the API has no such word, the
    region lies outside, the size is larger than the region without ^, or larger than is made at once.
    """
    left, top, right, bottom = _region(region, width, height)
    wide, high = _size(size, right - left, bottom - top)
    check_size(wide, high)
    turned = re.fullmatch(rf"(!?)({NUMBER})", rotation)
    if turned is None or float(turned[2]) > 360:
        raise ConfigError(f"rotation {rotation!r} is none; use 0, 90, 180 or 270, with ! before it to mirror")
    quarters = float(turned[2]) / 90
    if not quarters.is_integer():
        raise UnsupportedError(f"rotation {rotation!r} is not made; use 0, 90, 180 or 270, with ! before it to mirror")
    quality, dot, form = last.rpartition(".")
    if not dot or quality not in QUALITIES:
        raise ConfigError(f"{last!r} is no quality and format; use {', '.join(QUALITIES)}, then .jpg, .png or .webp")
    return Request(
        left=left, top=top, right=right, bottom=bottom, width=wide, height=high, mirrored=bool(turned[1]),
        turns=int(quarters) % 4, quality=quality, form=checked_format(form),
    )  # fmt: skip


class UnsupportedError(ConfigError):
    """The API has the word, this server does not do it."""

    kind = "unsupported"


def largest(wide: int, high: int) -> tuple[int, int]:
    """The size "max" of a region: its own, or the largest of its shape that is made at once."""
    scale = min(1.0, MAX_SIDE / wide, MAX_SIDE / high, math.sqrt(MAX_AREA / (wide * high)))
    return max(math.floor(wide * scale + 1e-9), 1), max(math.floor(high * scale + 1e-9), 1)


def finished(rgba: Rgba, request: Request) -> Rgba:
    """Quality, then mirror, then turn."""
    if request.quality in ("gray", "bitonal"):
        red, green, blue = (rgba[..., channel].astype(np.uint32) for channel in range(3))
        grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # 0.299, 0.587, 0.114
        if request.quality == "bitonal":
            grey = np.where(grey < 128, 0, 255)
        rgba = rgba.copy()
        rgba[..., :3] = grey[..., None].astype(np.uint8)
    if request.mirrored:
        rgba = rgba[:, ::-1]
    return np.ascontiguousarray(np.rot90(rgba, -request.turns))


def _region(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    if text == "full":
        return 0, 0, width, height
    if text == "square":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    found = re.fullmatch(rf"(pct:)?({NUMBER}),({NUMBER}),({NUMBER}),({NUMBER})", text)
    if found is None or (not found[1] and "." in text):
        raise ConfigError(f"region {text!r} is none; use full, square, x,y,w,h or pct:x,y,w,h")
    x, y, w, h = (float(value) for value in found.groups()[1:])
    if found[1]:
        x, y, w, h = (value * side / 100 for value, side in zip((x, y, w, h), (width, height) * 2, strict=True))
    left, top = round(x), round(y)
    right, bottom = min(round(x + w), width), min(round(y + h), height)
    if left >= right or top >= bottom:
        raise ConfigError(f"region {text!r} is empty or lies outside the picture of {width} x {height} pixels")
    return left, top, right, bottom


def _size(text: str, wide: int, high: int) -> tuple[int, int]:
    up = text.startswith("^")
    bare = text.removeprefix("^")
    if bare == "max":
        if not up:
            return largest(wide, high)
        scale = min(MAX_SIDE / wide, MAX_SIDE / high, math.sqrt(MAX_AREA / (wide * high)))
        return max(math.floor(wide * scale), 1), max(math.floor(high * scale), 1)
    if found := re.fullmatch(rf"pct:({NUMBER})", bare):
        share = float(found[1]) / 100
        result = round(wide * share), round(high * share)
    elif found := re.fullmatch(r"!(\d{1,9}),(\d{1,9})", bare):
        bound_w, bound_h = int(found[1]), int(found[2])
        scale = min(bound_w / wide, bound_h / high)
        if not up:
            scale = min(scale, 1.0)
        result = (
            (0, 0) if 0 in (bound_w, bound_h) else (max(round(wide * scale), 1), max(round(high * scale), 1))
        )  # fmt: skip
    elif (found := re.fullmatch(r"(\d{0,9}),(\d{0,9})", bare)) and (found[1] or found[2]):
        w = int(found[1]) if found[1] else max(round(wide * int(found[2]) / high), 1 if int(found[2]) else 0)
        h = int(found[2]) if found[2] else max(round(high * int(found[1]) / wide), 1 if int(found[1]) else 0)
        result = w, h
    else:
        raise ConfigError(
            f"size {text!r} is none; use max, w, or ,h or pct:n or w,h or !w,h, with ^ before it to enlarge"
        )
    if not up and (result[0] > wide or result[1] > high):
        raise ConfigError(f"size {text!r} is larger than the region of {wide} x {high}; put ^ before it to enlarge")
    return result
