"""Pictures at other sizes and in other places: exact area means, and bilinear samples at given points.

In: RGBA, uint8 (rows, columns, 4).  Out: the same, of another size.
Knows arrays; knows nothing of scenes.  Colours count by their alpha, so that nothing bleeds out of what is transparent.

    area     out[i] = mean of the input between edges[i] and edges[i + 1], parts of pixels by their share
    sample   out[i] = what lies at (row, col), between the four centres around it; outside: transparent
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rgba = npt.NDArray[np.uint8]
Edges = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float64]


def area(rgba: Rgba, rows: Edges, cols: Edges) -> Rgba:
    """Means over the boxes between `rows` (n + 1 rising edges, in pixels of `rgba`) and `cols` (m + 1): (n, m, 4).

    Edges may lie between pixels, and must lie within the picture.
    """
    height, width = rgba.shape[:2]
    if (rows[0], rows[-1], len(rows)) == (0, height, height + 1) and (cols[0], cols[-1], len(cols)) == (
        0,
        width,
        width + 1,
    ):
        return rgba  # its own pixels: nothing to do
    opaque = bool((rgba[..., 3] == 255).all())
    values = rgba[..., :3].astype(np.float64) if opaque else _weighted(rgba)
    values = _means(_means(values, rows, 0), cols, 1)
    if opaque:
        alpha = np.full((*values.shape[:2], 1), 255.0)
        return _bytes(np.concatenate([values, alpha], axis=2))
    return _unweighted(values)


def sample(rgba: Rgba, rows: Floats, cols: Floats) -> Rgba:
    """The picture at points: `rows`, `cols` (h, w) in pixels, 0.5 being the centre of the first; (h, w, 4).

    A point outside the picture (or nan) is transparent; within half a pixel of its border it has the border's colour.
    """
    height, width = rgba.shape[:2]
    with np.errstate(invalid="ignore"):
        inside = (rows >= 0) & (rows <= height) & (cols >= 0) & (cols <= width)
    y, x = (np.where(inside, values, 0.5) - 0.5 for values in (rows, cols))
    top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    down, right = (y - top)[..., None], (x - left)[..., None]
    above, below = np.clip(top, 0, height - 1), np.clip(top + 1, 0, height - 1)
    before, after = np.clip(left, 0, width - 1), np.clip(left + 1, 0, width - 1)
    values = _weighted(rgba)
    upper = values[above, before] * (1 - right) + values[above, after] * right
    lower = values[below, before] * (1 - right) + values[below, after] * right
    result = _unweighted(upper * (1 - down) + lower * down)
    result[~inside] = 0
    return result


def _means(values: Floats, edges: Edges, axis: int) -> Floats:
    """Means between edges along an axis: differences of the running sum, which is linear inside a pixel."""
    length = values.shape[axis]
    sums = np.zeros((*values.shape[:axis], length + 1, *values.shape[axis + 1 :]))
    np.cumsum(values, axis=axis, out=sums[(slice(None),) * axis + (slice(1, None),)])
    whole = np.minimum(np.floor(edges).astype(np.intp), length - 1)
    shape = [1] * values.ndim
    shape[axis] = len(edges)
    at = sums.take(whole, axis) + (edges - whole).reshape(shape) * values.take(whole, axis)
    shape[axis] -= 1
    means: Floats = np.diff(at, axis=axis) / np.diff(edges).reshape(shape)
    return means


def _weighted(rgba: Rgba) -> Floats:
    """Colours times alpha, and alpha itself, which `_unweighted` turns back."""
    values = rgba.astype(np.float64)
    values[..., :3] *= values[..., 3:] / 255
    return values


def _unweighted(values: Floats) -> Rgba:
    alpha = values[..., 3:]
    out = values.copy()
    np.divide(255 * values[..., :3], alpha, out=out[..., :3], where=alpha > 0.5)
    out[..., :3][np.broadcast_to(alpha <= 0.5, out[..., :3].shape)] = 0
    return _bytes(out)


def _bytes(values: Floats) -> Rgba:
    # A hair above the half: a mean that is half a level must not depend on the order of its sum.
    result: Rgba = np.clip(np.floor(values + (0.5 + 1e-6)), 0, 255).astype(np.uint8)
    return result
