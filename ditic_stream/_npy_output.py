"""Write a scene as a numpy array file: (rows, columns, samples), in C order, with nothing but its pixels.

In: blocks of rows.  Out: a .npy of format 1.0.  Coordinates, masks and the mark of lossy coding have no place in it.
"""

from __future__ import annotations

import os
from typing import IO

import numpy as np
import numpy.typing as npt

from ditic_stream._output import Array, Output


class NpyOutput(Output):
    """A .npy file.  Alpha is one of the samples; what else the metadata says is left out."""

    def _prepare(self) -> None:
        self._file: IO[bytes] | None = None

    def _start(self) -> None:
        self._file = open(self.partial, "wb")  # noqa: SIM115  closed by _finish or _abandon
        shape = (self.height, self.width, self.samples)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _block(self, row: int, pixels: Array, mask: npt.NDArray[np.uint8] | None) -> None:
        assert self._file is not None
        self._file.write(np.ascontiguousarray(pixels.transpose(1, 2, 0)).data)

    def _finish(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._abandon()

    def _abandon(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
