"""How the bands of a scene map to network units, and which planes of bytes lie beside them; as JSON and back.

In: numbers, or a manifest that may be hostile.  Out: Radiometry, a frozen value that has passed every bound.
Knows nothing of pixels; `radiometry` applies it, `_survey` chooses it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ditic_stream.config import DTYPES
from ditic_stream.errors import FormatError

MAX_BANDS = 1024
"""Most bands of a scene."""
Number = float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """How one band maps to network units: u = (x - offset) / scale."""

    offset: float = 0.0
    scale: float = 255.0
    low: Number = 0
    """True minimum of the coded pixels; output is clipped to it."""
    high: Number = 255
    """True maximum of the coded pixels."""
    nodata: Number | None = None
    """The value that marks a pixel without data; a coded pixel never comes back as it."""
    hidden: Number | None = None
    """The one value of all pixels under the mask or under alpha 0, restored exactly; None when they differ: then they
    are coded like the others, so that colours just outside the mask stay for those who resample (GDAL issue 11583)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One plane of the archive's `mask` array.

    kind: "validity" (codes above, of `bands`), "mask" (0 or 255), "alpha_0".."alpha_3" (bytes of alpha, lowest first).
    """

    kind: str
    bands: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiometry:
    """The maps of all bands, the planes beside them, and where alpha lies among the samples of the file."""

    dtype: str
    bands: tuple[Band, ...]
    planes: tuple[Plane, ...] = ()
    alpha: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or not 1 <= len(self.bands) <= MAX_BANDS:
            raise FormatError(
                f"radiometry of {len(self.bands)} bands of type {self.dtype!r:.20}; 1..{MAX_BANDS} of {DTYPES}"
            )
        for number, band in enumerate(self.bands):
            self._check_band(number, band)
        self._check_planes()

    @property
    def groups(self) -> int:
        """Groups of three bands the networks see; the last band is repeated to fill the last group."""
        return -(-len(self.bands) // 3)

    @property
    def samples(self) -> int:
        """Samples of a pixel in the file: bands and alpha."""
        return len(self.bands) + (self.alpha is not None)

    def _check_band(self, number: int, band: Band) -> None:
        kind = np.dtype(self.dtype)
        values = [value for value in (band.low, band.high, band.nodata, band.hidden) if value is not None]
        if not all(type(value) in (int, float) for value in (band.offset, band.scale, *values)):
            raise FormatError(f"band {number}: a number of its radiometry is not one; distrust the archive")
        if not (math.isfinite(band.offset) and math.isfinite(band.scale) and band.scale > 0):
            raise FormatError(f"band {number}: offset {band.offset}, scale {band.scale}; both finite, scale above 0")
        for value in values:
            if kind.kind != "f" and not (type(value) is int and np.iinfo(kind).min <= value <= np.iinfo(kind).max):
                raise FormatError(f"band {number}: {value} is not a value of type {self.dtype}; distrust the archive")
        if not band.low <= band.high or not (math.isfinite(band.low) and math.isfinite(band.high)):
            raise FormatError(f"band {number}: range {band.low}..{band.high} is empty; distrust the archive")

    def _check_planes(self) -> None:
        size, served = np.dtype(self.dtype).itemsize, set[int]()
        alpha = [plane.kind for plane in self.planes if plane.kind.startswith("alpha_")]
        want = [f"alpha_{byte}" for byte in range(size)] if self.alpha is not None else []
        if alpha != want or (self.alpha is not None and not 0 <= self.alpha <= len(self.bands)):
            raise FormatError(f"alpha band {self.alpha} with planes {alpha[:8]}; distrust the archive")
        if sum(plane.kind == "mask" for plane in self.planes) > 1:
            raise FormatError("two mask planes; distrust the archive")
        for plane in self.planes:
            if plane.kind == "validity":
                fits = bool(plane.bands) and all(0 <= band < len(self.bands) for band in plane.bands)
                if not fits or served & set(plane.bands) or len(set(plane.bands)) != len(plane.bands):
                    raise FormatError(
                        f"validity plane of bands {plane.bands[:8]}; each of {len(self.bands)} once at most"
                    )
                served |= set(plane.bands)
            elif plane.bands or not (plane.kind == "mask" or plane.kind in want):
                raise FormatError(f"plane of kind {plane.kind!r:.20} is unknown; distrust the archive")

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest; NaN and infinities as text, as JSON has none."""
        return {
            "dtype": self.dtype,
            "bands": [{key: _write_number(value) for key, value in asdict(band).items()} for band in self.bands],
            "planes": [{"kind": plane.kind, "bands": list(plane.bands)} for plane in self.planes],
            "alpha": self.alpha,
        }

    @classmethod
    def from_json(cls, data: Any) -> Radiometry:
        """The value `to_json` wrote; FormatError on anything else, since manifests may be hostile."""
        try:
            bands, planes = list(data["bands"]), list(data["planes"])
            if len(bands) > MAX_BANDS or len(planes) > MAX_BANDS + 8:
                raise FormatError(f"{len(bands)} bands and {len(planes)} planes; {MAX_BANDS} and a few are the bounds")
            if type(data["alpha"]) not in (int, type(None)):
                raise FormatError("the place of alpha is not a whole number; distrust the archive")
            return cls(
                dtype=str(data["dtype"]),
                bands=tuple(Band(**{key: _read_number(value) for key, value in band.items()}) for band in bands),
                planes=tuple(Plane(kind=str(plane["kind"]), bands=_indexes(plane["bands"])) for plane in planes),
                alpha=data["alpha"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"the radiometry is not readable ({error!r:.80}); distrust the archive") from error


def _indexes(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise FormatError("the bands of a plane are not whole numbers; distrust the archive")
    return tuple(values)


def _write_number(value: Number | None) -> Number | str | None:
    return value if value is None or math.isfinite(value) else str(float(value))


def _read_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
