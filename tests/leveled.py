"""A scene by levels that lies in memory: what the server's tests show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ditic_stream.doors.server.original import box_means
from ditic_stream.geometry import Window


class InMemory:
    """Pixels (samples, rows, columns) and what is valid (rows, columns) as levels; remembers what was read."""

    def __init__(self, pixels: np.ndarray, valid: np.ndarray | None = None, alpha: int | None = None) -> None:
        self.alpha, self.dtype = alpha, pixels.dtype
        self.shape = (*pixels.shape[1:], len(pixels))
        seen = np.full(pixels.shape[1:], 255, np.uint8) if valid is None else valid
        self.levels = [(pixels, seen)]
        while max(self.levels[-1][1].shape) > 64:
            self.levels.append(box_means(*self.levels[-1], 2))
        self.asked: list[tuple[Window, int]] = []

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return tuple((valid.shape[1], valid.shape[0]) for _, valid in self.levels)

    def read(self, window: Window, *, level: int, bands: Sequence[int] | None = None) -> Any:
        self.asked.append((window, level))
        pixels, valid = self.levels[level]
        window.within(*valid.shape)
        return pixels[
            slice(None) if bands is None else list(bands), window.row : window.row_end, window.col : window.col_end
        ]

    def valid(self, window: Window, *, level: int) -> Any:
        return self.levels[level][1][window.row : window.row_end, window.col : window.col_end]
