"""Integer tables of the entropy coder: taken from a checkpoint that has them, or built once, at import.

Out: for z (160 tables, one a channel) and y (64, one a known width) flat int32 arrays: `counts` of all tables in a row,
`sizes` (entries a table), `lows` (the value of a table's first entry).  Counts are >= 1 and sum to 65536 a table; the
last entry of each belongs to the escape.  That is what `ditic_stream.rans.Tables` takes.

How they are built, in numpy's float64, from parameters as the checkpoint holds them:

    y   width s; values -c..c, c = ceil(6.109410205 s), which leaves 1e-9 outside; probability of k:
        F((0.5 - |k|) / s) - F((-0.5 - |k|) / s), F(x) = erfc(-x / sqrt 2) / 2; escape: 2 F((-0.5 - c) / s)
    z   median m, quantiles a < m < b; values -ceil(m - a) .. ceil(b - m), about m; cumulative sigmoid(f), f the chain
        of the factorised prior; probability of v: difference of the cumulative at v + 0.5 and v - 0.5, both mirrored
        below zero where they lie above it; escape: what is left on both sides

    counts of a table: probabilities are scaled so that they sum to 65536; those that come out below 1 get 1, and the
    others are scaled again, to what these leave, until none is below 1; the others are rounded down, and what is left
    goes, one each, to those with the largest fractions, the lower entry first among equals
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditic_stream.models.paper.config import HYPER, SCALES
from ditic_stream.models.paper.entropy import scale_table

TOTAL = 1 << 16
"""Sum of a table's counts: that of CompressAI's tables and of this package's coder."""
TAIL_WIDTHS = 6.109410205
"""Standard deviations beyond which a Gaussian has 1e-9 of its mass, both sides together."""
MAX_REACH = 1 << 14
"""Farthest value a table may hold; quantiles beyond it are no quantiles."""
_FLOATS = NDArray[np.float64]
_PRIOR, _GAUSSIAN = "codec.entropy_bottleneck.", "codec.gaussian_conditional."


@dataclass(frozen=True, slots=True)
class FlatTables:
    """Tables in a row; see the head of this file."""

    counts: NDArray[np.int32]
    sizes: NDArray[np.int32]
    lows: NDArray[np.int32]


def tables_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[FlatTables, FlatTables, NDArray[np.float32]]:
    """Tables of z and of y, and the 64 widths, of a checkpoint.

    arrays: its tensors whose names begin with `codec.entropy_bottleneck.` or `codec.gaussian_conditional.`.
    Raises ValueError, one sentence, when what the checkpoint holds makes no tables.
    """
    scales = np.asarray(arrays[_GAUSSIAN + "scale_table"], np.float32)
    if not scales.size:
        scales = scale_table()
    if scales.shape != (SCALES,) or not np.isfinite(scales).all() or scales[0] <= 0 or (np.diff(scales) <= 0).any():
        raise ValueError(f"{_GAUSSIAN}scale_table: no {SCALES} rising widths above zero")
    z = stored(arrays, _PRIOR, HYPER) or _flat(prior_rows(arrays))
    y = stored(arrays, _GAUSSIAN, SCALES) or _flat([gaussian_row(float(scale)) for scale in scales])
    return z, y, scales


def stored(arrays: Mapping[str, NDArray[Any]], prefix: str, number: int) -> FlatTables | None:
    """The tables a checkpoint holds, or None where it was saved before they were built.

    A row of `_quantized_cdf` is the running sum 0..65536 of `_cdf_length` values, then zeros; `_offset` is the lowest
    value.  Raises ValueError when they are something else.
    """
    cdf, lengths, lows = (
        np.asarray(arrays[prefix + name]).astype(np.int64) for name in ("_quantized_cdf", "_cdf_length", "_offset")
    )
    if not cdf.size and not lengths.size and not lows.size:
        return None
    lengths, lows = lengths.reshape(-1), lows.reshape(-1)
    if cdf.ndim != 2 or not len(cdf) == len(lengths) == len(lows) == number:
        raise ValueError(f"{prefix}_quantized_cdf: tables of shape {cdf.shape}, not {number} of them")
    if (lengths < 3).any() or (lengths > cdf.shape[1]).any() or (np.abs(lows) > MAX_REACH).any():
        raise ValueError(f"{prefix}_cdf_length: lengths outside 3..{cdf.shape[1]}, or offsets beyond {MAX_REACH}")
    rows = [np.diff(row[:length]) for row, length in zip(cdf, lengths, strict=True)]
    for index, (row, first) in enumerate(zip(rows, cdf[:, 0], strict=True)):
        if first or (row < 1).any() or row.sum() != TOTAL:
            raise ValueError(f"{prefix}_quantized_cdf: row {index} does not rise from 0 to {TOTAL}")
    return _flat(list(zip(rows, (int(low) for low in lows), strict=True)))


def gaussian_row(scale: float) -> tuple[NDArray[np.int64], int]:
    """Counts and lowest value of the table of one width."""
    reach = math.ceil(TAIL_WIDTHS * scale)
    if not 0 < reach <= MAX_REACH:
        raise ValueError(f"{_GAUSSIAN}scale_table: width {scale} makes a table of {reach} values a side")
    distance = np.abs(np.arange(-reach, reach + 1, dtype=np.float64))
    mass = _normal((0.5 - distance) / scale) - _normal((-0.5 - distance) / scale)
    return _counts(np.append(mass, 2 * _normal(np.array([(-0.5 - reach) / scale])))), -reach


def prior_rows(arrays: Mapping[str, NDArray[Any]]) -> list[tuple[NDArray[np.int64], int]]:
    """Counts and lowest value a channel of the hyper-latent."""
    quantiles = np.asarray(arrays[_PRIOR + "quantiles"], np.float64)[:, 0]
    below, above = np.ceil(quantiles[:, 1] - quantiles[:, 0]), np.ceil(quantiles[:, 2] - quantiles[:, 1])
    if not np.isfinite(quantiles).all() or (np.minimum(below, above) < 0).any():
        raise ValueError(f"{_PRIOR}quantiles: the median of a channel is not between its tails")
    if (np.maximum(below, above) > MAX_REACH).any():
        raise ValueError(f"{_PRIOR}quantiles: tails farther than {MAX_REACH} from the median")
    rows = []
    for channel in range(len(quantiles)):
        low = -int(below[channel])
        values = np.arange(low, int(above[channel]) + 1) + quantiles[channel, 1]
        lower, upper = (_chain(arrays, channel, values + shift) for shift in (-0.5, 0.5))
        side = np.where(lower + upper > 0, -1.0, 1.0)  # where a sigmoid is near 1 its mirror image keeps the digits
        mass = np.abs(_sigmoid(side * upper) - _sigmoid(side * lower))
        rows.append((_counts(np.append(mass, _sigmoid(lower[:1]) + _sigmoid(-upper[-1:]))), low))
    return rows


def _chain(arrays: Mapping[str, NDArray[Any]], channel: int, values: _FLOATS) -> _FLOATS:
    x = values[None]
    layers = sum(name.startswith(_PRIOR + "matrices.") for name in arrays)
    for layer in range(layers):
        matrix, bias = (
            np.asarray(arrays[f"{_PRIOR}{kind}.{layer}"][channel], np.float64) for kind in ("matrices", "biases")
        )
        x = np.logaddexp(0, matrix) @ x + bias
        if layer < layers - 1:
            x = x + np.tanh(np.asarray(arrays[f"{_PRIOR}factors.{layer}"][channel], np.float64)) * np.tanh(x)
    return np.asarray(x[0])


def _sigmoid(x: _FLOATS) -> _FLOATS:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _normal(x: _FLOATS) -> _FLOATS:
    return np.array([0.5 * math.erfc(-value * math.sqrt(0.5)) for value in x])


def _counts(mass: _FLOATS) -> NDArray[np.int64]:
    if not np.isfinite(mass).all() or mass.sum() <= 0:
        raise ValueError(f"{_PRIOR}matrices: a channel's distribution has no mass between its tails")
    small = np.zeros(mass.size, bool)
    while True:
        share = np.where(small, 1.0, mass / mass[~small].sum() * (TOTAL - int(small.sum())))
        if not (share < 1).any():
            break
        small |= share < 1
    counts = np.floor(share).astype(np.int64)
    rest = TOTAL - int(counts.sum())
    counts[np.argsort(counts - share, kind="stable")[:rest]] += 1
    return counts


def _flat(rows: list[tuple[NDArray[np.int64], int]]) -> FlatTables:
    counts, lows = zip(*rows, strict=True)
    return FlatTables(
        np.concatenate(counts).astype(np.int32),
        np.array([len(row) for row in counts], np.int32),
        np.array(lows, np.int32),
    )
