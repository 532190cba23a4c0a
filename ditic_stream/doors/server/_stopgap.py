"""Levels over the present Scene, until it has them itself."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ditic_stream.doors.server.original import box_means
from ditic_stream.geometry import Window


class Stopgap:
    def __init__(self, scene: Any) -> None:
        self.scene, self.archive, self._lock = scene, scene.archive, threading.Lock()
        self.shape, self.dtype, self.crs, self.transform = scene.shape, scene.dtype, scene.crs, scene.transform
        self.alpha = scene.archive.manifest.radiometry["alpha"]
        sizes = [(self.shape[1], self.shape[0])]
        while max(sizes[-1]) > 64:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        self.level_dimensions = tuple(sizes)
        self.bounds = None
        if self.transform:
            a, _, c, _, e, f = self.transform
            self.bounds = (c, f + e * self.shape[0], c + a * self.shape[1], f)

    def _full(self, window: Window, level: int) -> Window:
        k = 2**level
        row, col = window.row * k, window.col * k
        return Window(
            row=row,
            col=col,
            height=min(window.row_end * k, self.shape[0]) - row,
            width=min(window.col_end * k, self.shape[1]) - col,
        )

    def read(self, window: Window, *, level: int = 0) -> Any:
        with self._lock:
            pixels = self.scene.read(self._full(window, level))
        return box_means(pixels, np.full(pixels.shape[1:], 255, np.uint8), 2**level)[0]

    def valid(self, window: Window, *, level: int = 0) -> Any:
        full = self._full(window, level)
        planes = self.archive.mask(full)
        valid = np.full(full.shape, 255, np.uint8)
        if planes is not None:
            for plane, kind in zip(planes, self.archive.manifest.radiometry["planes"], strict=False):
                if kind["kind"] == "validity":
                    valid[plane != 0] = 0
                else:
                    valid[plane == 0] = 0
        return box_means(valid[None], valid, 2**level)[1]

    def close(self) -> None:
        self.scene.close()
