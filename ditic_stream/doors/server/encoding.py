"""Pictures as bytes: what a browser takes.

In: RGBA, uint8 (rows, columns, 4).  Out: PNG, JPEG or WebP.
Knows formats; knows nothing of scenes or HTTP.  One input gives the same bytes each time, so that ETags hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ditic_stream.errors import ConfigError

Rgba = npt.NDArray[np.uint8]
MEDIA = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Names of formats, as they end an address, and their media types."""
PAPER = 255
"""What lies under transparent pixels in a JPEG, which has none: white."""
JPEG_LEVEL, WEBP_LEVEL, WEBP_METHOD, PNG_LEVEL = 85, 85, 2, 1


def checked_format(name: str) -> str:
    """`name` in small letters, "jpeg" as "jpg".  ConfigError when it is none of the formats."""
    small = name.lower()
    if small not in MEDIA:
        raise ConfigError(f"format {name!r} is not served; use png, jpg or webp")
    return "jpg" if small == "jpeg" else small


def encode(rgba: Rgba, form: str) -> bytes:
    """The bytes of a picture.  form: "png", "jpg" or "webp".

    Opaque pictures are stored without alpha, grey ones (png and jpg) as one channel.  PNG is lossless.
    """
    import imagecodecs

    codecs: Any = imagecodecs
    opaque = bool((rgba[..., 3] == 255).all())
    if form == "jpg" and not opaque:
        share = rgba[..., 3:].astype(np.uint16)
        rgba = ((rgba[..., :3] * share + PAPER * (255 - share) + 127) // 255).astype(np.uint8)
        opaque = True
    pixels = rgba[..., :3] if opaque else rgba
    grey = opaque and bool((pixels[..., :1] == pixels[..., 1:3]).all())
    # A copy has the strides the codecs insist on, where a slice one pixel wide or high has not.
    if form == "webp":
        return bytes(codecs.webp_encode(pixels.copy(), level=WEBP_LEVEL, lossless=False, method=WEBP_METHOD))
    pixels = (pixels[..., 0] if grey else pixels).copy()
    if form == "jpg":
        return bytes(codecs.jpeg8_encode(pixels, level=JPEG_LEVEL))
    return bytes(codecs.png_encode(pixels, level=PNG_LEVEL))
