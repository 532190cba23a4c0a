"""Rectangles of pixels and names of tiles: the small frozen values that travel between processes.

Rows grow downwards, columns to the right; order is (row, column) everywhere inside the library.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from ditic_stream.errors import ConfigError, WindowError

CELL = 32
"""Pixels a latent cell covers a side: the factor between the pixel grid and the latent grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The steps a model counts pixels in."""

    cell: int = CELL
    """Pixels a cell of the stored latent covers a side; overlaps are multiples of it."""
    align: int = CELL
    """A tile's core is padded to a multiple of this, right and down; a multiple of `cell`."""

    def cells(self, pixels: int) -> int:
        """Cells that cover `pixels` pixels."""
        return -(-pixels // self.cell)

    def core_cells(self, pixels: int) -> int:
        """Cells that are stored of a core of `pixels` pixels: those of the padded core."""
        return -(-pixels // self.align) * (self.align // self.cell)


CELLS = Units()
"""Of a model without others of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """A rectangle of pixels.  `row`, `col`: its upper left corner, 0 or more; `height`, `width`: 1 or more."""

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("row", "col", "height", "width"):
            value = getattr(self, name)
            if type(value) is not int:  # numpy's integers overflow where a window is reckoned with
                object.__setattr__(self, name, whole(value, f"{name} of a window", WindowError))
        if self.height < 1 or self.width < 1 or self.row < 0 or self.col < 0:
            raise WindowError(
                f"window at row {self.row}, column {self.col} of {self.height} x {self.width} px is empty or starts "
                "before the scene; row and column start at 0, height and width at 1"
            )

    @classmethod
    def of(cls, window: Any) -> Window:
        """A Window, or what rasterio calls one where it begins and ends with whole pixels; ConfigError otherwise."""
        if isinstance(window, Window):
            return window
        try:
            sides = [float(getattr(window, name)) for name in ("row_off", "col_off", "height", "width")]
            if not all(map(float.is_integer, sides)):
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"{window!r:.80} is no window of whole pixels; give Window(row=, col=, height=, width=) or rasterio's"
            ) from None
        row, col, height, width = map(int, sides)
        return cls(row=row, col=col, height=height, width=width)

    @property
    def row_end(self) -> int:
        return self.row + self.height

    @property
    def col_end(self) -> int:
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        return (self.height, self.width)

    def meets(self, other: Window) -> bool:
        """True when the two share a pixel."""
        return (
            self.row < other.row_end
            and other.row < self.row_end
            and self.col < other.col_end
            and other.col < self.col_end
        )

    def intersect(self, other: Window) -> Window:
        """The pixels both hold; WindowError when there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(
            row=row,
            col=col,
            height=min(self.row_end, other.row_end) - row,
            width=min(self.col_end, other.col_end) - col,
        )

    def grown(self, margin: int, *, height: int, width: int) -> Window:
        """The window with `margin` pixels more a side, clipped to a scene of `height` x `width`."""
        row, col = max(self.row - margin, 0), max(self.col - margin, 0)
        return Window(
            row=row,
            col=col,
            height=min(self.row_end + margin, height) - row,
            width=min(self.col_end + margin, width) - col,
        )

    def slices(self, origin: Window) -> tuple[slice, slice]:
        """Row and column slices of this window inside an array that holds `origin`."""
        return (
            slice(self.row - origin.row, self.row_end - origin.row),
            slice(self.col - origin.col, self.col_end - origin.col),
        )

    def within(self, height: int, width: int) -> Window:
        """The window itself; WindowError when it leaves a scene of `height` x `width`."""
        if self.row_end > height or self.col_end > width:
            raise WindowError(
                f"window rows {self.row}..{self.row_end}, columns {self.col}..{self.col_end} leaves the scene of "
                f"{height} x {width} pixels; choose one inside it"
            )
        return self


@dataclass(frozen=True, slots=True, order=True)
class TileKey:
    """The place of a tile in the grid, counted in tiles from the upper left."""

    row: int
    col: int

    def __str__(self) -> str:
        return f"{self.row},{self.col}"


def whole(value: Any, what: str, error: type[ConfigError] = ConfigError) -> int:
    """An int of any kind of integer; ConfigError, or `error`, that names it for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise error(f"{what} is {value!r:.40}; give a whole number") from None


def cells(pixels: int) -> int:
    """Latent cells that cover `pixels` pixels: the ragged rest takes a whole cell."""
    return -(-pixels // CELL)
