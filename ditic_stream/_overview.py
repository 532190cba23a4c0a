"""Small pictures straight from latents: a linear readout of the coarse channels, fitted to what the networks render.

In: the leading latent channels of cells, int16.  Out: means of 8, 16 or 32 pixels a side, in network units.  Knows
numbers and one small file a set of weights, `weights/NAME.overview`; decoding is the codec's.

A cell's means come from its own channels and those of its eight neighbours, since the networks lap over borders.  All
sums are of integers and exact in float64, so a pixel has the same bits whichever window it is read in.

The file is safetensors: `weight` float16 (9 channels + 1, 48).  Rows: the neighbours' channels, row by row from the
upper left, and a constant; columns: (3, 4, 4), a colour's 4 x 4 means of 8 pixels.  Its metadata names the weights.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream.errors import WeightsError

FORMAT = "ditic-overview-1"
FOLDER = Path(__file__).resolve().parent / "weights"
PARTS = 4
"""Means a cell has a side, at most: those of 8 pixels."""
MAX_BYTES = 2**22
EXACT = 2.0**53
VALUE_MAX = 32768


class Readout:
    """The readout of one set of weights at one rate.

    weight: float (9 channels + 1, 48), for latents in units of features.  gain: steps a feature has, a channel each.
    """

    def __init__(self, weight: NDArray[Any], gain: NDArray[Any]) -> None:
        self.channels = len(gain)
        scale = np.repeat(1 / (16 * gain.astype(np.float64))[None], 9, 0).reshape(-1)
        self._weight = weight[:-1].astype(np.float64) * scale[:, None]
        self._bias = weight[-1].astype(np.float64)
        self._integers: dict[int, tuple[NDArray[np.float64], NDArray[np.float64], float]] = {}

    def means(self, values: NDArray[np.int16], parts: int) -> NDArray[np.float32]:
        """Means in network units, float32 (3 groups, parts rows, parts columns), of the inner cells.

        values: (groups, channels, rows + 2, columns + 2), a cell more a side.  parts: 4, 2 or 1 means a cell's side.
        """
        weight, bias, scale = self._of(parts)
        groups, channels, height, width = values.shape
        height, width = height - 2, width - 2
        out = np.empty((groups, 3, height, parts, width, parts), np.float32)
        for group in range(groups):
            cells = np.ascontiguousarray(values[group].transpose(1, 2, 0), dtype=np.float64)
            total = np.zeros((height * width, weight.shape[2]))
            for place in range(9):
                row, col = divmod(place, 3)
                near = cells[row : row + height, col : col + width].reshape(-1, channels)
                total += near @ weight[place]
            units = total * scale + bias
            out[group] = units.reshape(height, width, 3, parts, parts).transpose(2, 0, 3, 1, 4)
        return out.reshape(3 * groups, parts * height, parts * width)

    def _of(self, parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Whole-numbered weights (9, channels, outputs), the constant, and what a unit of the weights is worth."""
        if parts not in self._integers:
            side = PARTS // parts
            weight = _pooled(self._weight, parts, side)
            largest = np.abs(weight).sum(0).max() * VALUE_MAX or 1.0
            shift = np.floor(np.log2(EXACT / 4 / largest))
            whole = np.rint(weight * 2.0**shift).reshape(9, self.channels, -1)
            self._integers[parts] = whole, _pooled(self._bias[None], parts, side)[0], 2.0**-shift
        return self._integers[parts]


def _pooled(weight: NDArray[np.float64], parts: int, side: int) -> NDArray[np.float64]:
    """Columns (3, 4, 4) averaged to (3, parts, parts)."""
    split = weight.reshape(len(weight), 3, parts, side, parts, side)
    return np.asarray(split.mean((3, 5))).reshape(len(weight), -1)


def path_of(name: str) -> Path:
    """Where the readout of the weights called `name` lies, if there is one."""
    return FOLDER / f"{name}.overview"


@lru_cache(maxsize=8)
def weight_of(name: str, sha256: str) -> NDArray[np.float16] | None:
    """The readout's weights for these weights; None when there are none.  WeightsError when the file is damaged."""
    path = path_of(name)
    if "/" in name or not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, at most {MAX_BYTES}")
        with safe_open(path, "np") as file:
            metadata, weight = file.metadata() or {}, file.get_tensor("weight")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} cannot be read as a readout ({error}); install the package again") from error
    if metadata.get("format") != FORMAT or metadata.get("weights") != sha256:
        return None
    if weight.ndim != 2 or weight.shape[1] != 3 * PARTS**2 or len(weight) % 9 != 1 or weight.dtype != np.float16:
        raise WeightsError(f"{path.name} holds {weight.dtype} {weight.shape}; install the package again")
    return np.asarray(weight)


def save(weight: NDArray[Any], name: str, sha256: str, licence: str, path: Path | None = None) -> Path:
    """Write the readout of the weights called `name`; float16 is near enough."""
    from safetensors.numpy import save_file

    place = path or path_of(name)
    metadata = {"format": FORMAT, "weights": sha256, "licence": licence}
    save_file({"weight": np.ascontiguousarray(weight, np.float16)}, place, metadata)
    return place
