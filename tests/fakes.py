"""A codec without a network, for tests of everything around it; and tasks that fail in the ways tasks do.

FakeCodec codes the mean of each 32 x 32 cell and channel in 1/64 of the range.  It renders with a filter over
the whole window, so that a pixel depends on every latent and on the size of its window, as those of a network with
attention do: whoever moves a window, or decodes one with other neighbours, gets other pixels.

`install` puts it in the place of ditic_stream.codec; workers do it themselves (ProcessExecutor(initializer=install)).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ditic_stream.bitstream import CODED, Record, symbols_checksum
from ditic_stream.errors import DesyncError, FormatError
from ditic_stream.executors import Note, Shared
from ditic_stream.geometry import CELL, cells
from ditic_stream.latents import Cells

STEPS = 64


@dataclass(frozen=True)
class FakeInfo:
    name: str = "fake"
    config: dict[str, Any] = field(default_factory=lambda: {"steps": STEPS})
    weights: str = "0" * 64
    licence: str = "none"
    encode_halo: int = 32


@dataclass(frozen=True)
class FakeTile:
    words: bytes
    coded: int
    symbols_crc: int
    lanes_log2: int = 0
    escapes: bytes = b""


def _wait() -> None:
    """Take FAKE_SECONDS, and as long as the file FAKE_GATE is there."""
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    gate = os.environ.get("FAKE_GATE")
    while gate and os.path.exists(gate):
        time.sleep(0.01)


class FakeCodec:
    info = FakeInfo()

    def encode(self, pixels: np.ndarray, core: tuple[slice, slice], q: int) -> FakeTile:
        """Means of the core's cells, and a trace of the pixel above the core, so that the halo matters."""
        _wait()
        assert pixels.dtype == np.float32
        assert core[0].start % CELL == core[1].start % CELL == 0
        inner = pixels[:, :, core[0], core[1]]
        height, width = inner.shape[2:]
        padded = np.pad(inner, ((0, 0), (0, 0), (0, -height % CELL), (0, -width % CELL)), mode="edge")
        means = padded.reshape(*padded.shape[:2], cells(height), CELL, cells(width), CELL).mean(axis=(3, 5))
        values = np.rint(means * STEPS).astype("<i2")
        values[0, 0, 0, 0] += round(float(pixels[0, 0, 0, 0]) * 8) + q % 2
        # A record holds 4 bytes of state and at most 2 bytes a symbol.
        return FakeTile(bytes(4) + values.tobytes(), values.size, symbols_checksum(values))

    def encode_at(self, pixels: np.ndarray, core: tuple[slice, slice], qs: tuple[int, ...]) -> list[FakeTile]:
        return [self.encode(pixels, core, q) for q in qs]

    def decode_symbols(self, record: Record, groups: int, height: int, width: int, q: int) -> Cells:
        assert record.kind == CODED
        shape = (groups, 3, height, width)
        if record.coded != int(np.prod(shape)):
            raise FormatError(f"{record.coded} symbols for {shape}")
        values = np.frombuffer(record.words[4:], "<i2").reshape(shape)
        if symbols_checksum(values) != record.symbols_crc:
            raise DesyncError("symbols fail their checksum")
        return Cells(values.astype(np.int16), np.full(shape, q % 64, np.uint8))

    def zero_latent(self, groups: int, height: int, width: int) -> Cells:
        shape = (groups, 3, height, width)
        return Cells(np.zeros(shape, np.int16), np.zeros(shape, np.uint8))

    def render(self, values: np.ndarray, scales: np.ndarray, q: int, anchor: tuple[int, int]) -> np.ndarray:
        _wait()
        assert values.dtype == np.int16
        assert scales.dtype == np.uint8
        means = values.astype(np.float32) / STEPS
        pixels = means.repeat(CELL, 2).repeat(CELL, 3)
        # Of the whole window: its mean, a slope over its size, and where it lies.
        tone = means.mean(dtype=np.float32) * np.float32(0.1) + np.float32(scales.sum() % 97) * np.float32(1e-4)
        slope = np.linspace(0, 0.05, pixels.shape[2], dtype=np.float32)[:, None]
        return (pixels + tone + slope + np.float32(1e-4 * (anchor[0] % 7 + anchor[1] % 5))).astype(np.float32)


def module() -> types.ModuleType:
    """A module to stand for ditic_stream.codec; its `load_codec` gives the fake one, whatever the name."""
    fake = types.ModuleType("ditic_stream.codec")
    fake.load_codec = lambda name, *, device="cpu", weights=None: FakeCodec()  # type: ignore[attr-defined]
    return fake


def install() -> None:
    """Put the fake codec in place, in a worker."""
    sys.modules["ditic_stream.codec"] = module()


def install_slow() -> None:
    """The same, a tenth of a second a tile: time enough to be killed."""
    os.environ["FAKE_SECONDS"] = "0.1"
    install()


def poison() -> None:
    """Let this process die of reading the scene whose name POISON says, as of a fault in a decoder."""
    install()
    from ditic_stream import reader

    opened = reader.open_source

    def open_source(uri: Any, **settings: Any) -> Any:
        if str(uri).endswith(os.environ.get("POISON", "bad.tif")):
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(uri, **settings)

    reader.open_source = open_source


Count = Callable[[int], int]


@dataclass(frozen=True)
class Square:
    """Squares a number; files in `folder` count what was done.  Numbers in `failing` fail `times` times first."""

    folder: Path
    failing: tuple[int, ...] = ()
    times: int = 0
    how: str = "error"

    @contextlib.contextmanager
    def open(self, note: Note) -> Iterator[Count]:
        (self.folder / f"open-{os.getpid()}").touch()

        def run(number: int) -> int:
            note(f"tile {number}")
            if number in self.failing and len(list(self.folder.glob(f"try-{number}-*"))) < self.times:
                (self.folder / f"try-{number}-{time.monotonic_ns()}").touch()
                self._fail()
            with open(self.folder / f"record-{number}", "a") as file:
                file.write(f"{number * number}\n")
            return number * number

        yield run
        (self.folder / f"closed-{os.getpid()}").touch()

    def _fail(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            os._exit(7)
        if self.how == "memory":
            raise MemoryError
        if self.how == "sleep":
            time.sleep(60)
        if self.how == "ours":
            raise FormatError("broken", key="5,6")
        raise OSError(errno.EIO, "a lens cap")


@dataclass(frozen=True)
class Crowd:
    """Gives numbers back; a process that works on more than `most` of them at once has no memory for another."""

    folder: Path
    most: int

    @contextlib.contextmanager
    def open(self, note: Note) -> Iterator[Count]:
        def run(number: int) -> int:
            mark = self.folder / f"at-{os.getpid()}-{number}"
            mark.touch()
            try:
                time.sleep(0.2)
                if len(list(self.folder.glob(f"at-{os.getpid()}-*"))) > self.most:
                    raise MemoryError
            finally:
                mark.unlink()
            return number

        yield run


@dataclass(frozen=True)
class Fill:
    """Writes into shared bytes at 4096 x number: six floats, and 1024 further a run of integers."""

    store: Shared

    @contextlib.contextmanager
    def open(self, note: Note) -> Iterator[Callable[[int], str]]:
        def run(number: int) -> str:
            self.store.floats(number * 4096, (2, 3))[:] = number
            self.store.write(number * 4096 + 1024, np.arange(number, dtype=np.int16))
            return os.environ.get("OMP_NUM_THREADS", "")

        yield run


@dataclass(frozen=True)
class Sleep:
    """Tells its pid, as if it were units of work, and sleeps for a minute."""

    @contextlib.contextmanager
    def open(self, note: Note) -> Iterator[Callable[[int], None]]:
        def run(_: int) -> None:
            note("asleep", os.getpid())
            time.sleep(60)

        yield run


def start_slowly() -> None:
    """Take a few seconds to start: time enough for the node to be lost."""
    time.sleep(4)
