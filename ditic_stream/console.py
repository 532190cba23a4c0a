"""What every verb shares at the terminal: progress on stderr, one-line errors, exit codes, numbers for people.

Results go to stdout, everything else to stderr.  Knows nothing of what a verb does.

    exit 0  done        1  a DiticError (or the system) said no, in one line with its kind
         2  usage     130  interrupted, with a line that says how to go on
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from ditic_stream.errors import OUT_OF_MEMORY, DiticError

LINE_SECONDS = 5.0
"""Without a terminal, progress is one line at most this often."""
BAR_SECONDS = 0.2
INTERRUPTED = 130


class Progress:
    """A bar with ETA and MP/s on a terminal, one line every few seconds otherwise, nothing when quiet.

    Call it with (done, in all), in pixels or in bytes; use it as a context manager, so that the bar leaves the terminal
    clean.  unit: "MP" or "MB", a million of what is counted; "min" counts seconds of work, of which no speed is shown.
    """

    def __init__(self, label: str, *, quiet: bool = False, unit: str = "MP") -> None:
        self._label, self._quiet, self._unit = label, quiet, unit
        self._bar: Any = None
        self._first: tuple[float, int] | None = None
        self._shown = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, words: str) -> None:
        """Show `words` from now on in place of the label."""
        self._label = words

    def __call__(self, done: int, total: int) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if self._first is None:
            # A resumed run starts with what is already there, which says nothing of its speed.
            self._first = (now, done)
            self._shown = now - LINE_SECONDS if _is_terminal() else now
        interval = BAR_SECONDS if _is_terminal() else LINE_SECONDS
        if now - self._shown < interval and done < total:
            return
        self._shown = now
        began, start = self._first
        speed = (done - start) / max(now - began, 1e-6)
        if _is_terminal():
            self._draw(done, total, speed)
        else:
            share = 100 * done / total if total else 100.0
            per = 60 if self._unit == "min" else 1e6
            amount = f"{done / per:.1f} of {total / per:.1f} {self._unit}"
            _complain(f"{self._label} {share:.0f} %  {amount}{self._pace(done, total, speed)}")

    def _draw(self, done: int, total: int, speed: float) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            label, pace = TextColumn("{task.description}"), TextColumn("{task.fields[pace]}")
            self._bar = Bar(
                label, BarColumn(), TaskProgressColumn(), pace, console=Console(stderr=True), transient=True
            )
            self._bar.add_task(self._label, total=total, pace="")
            self._bar.start()
        words = {"description": self._label, "pace": self._pace(done, total, speed).strip()}
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, **words)

    def _pace(self, done: int, total: int, speed: float) -> str:
        if speed <= 0:
            return ""
        eta = f"  ETA {duration((total - done) / speed)}" if done < total else ""
        return eta if self._unit == "min" else f"  {speed / 1e6:.2f} {self._unit}/s{eta}"


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _complain(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed stderr must not become the error that is reported
        print(line, file=sys.stderr, flush=True)


def note(line: str, *, quiet: bool = False) -> None:
    """Say something on stderr."""
    if not quiet:
        _complain(line)


def emit(result: Mapping[str, Any], *, as_json: bool, lines: Iterable[str], quiet: bool = False) -> None:
    """Print a result on stdout: as one JSON object on one line, or as lines for people (none when quiet)."""
    if as_json:
        print(json.dumps(result, sort_keys=True, allow_nan=False), flush=True)
    elif not quiet:
        for line in lines:
            print(line)
        sys.stdout.flush()


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """On Ctrl-C (or SIGTERM) say how to go on, and leave with 130."""
    import signal

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # outside the main thread, as in some tests, signals are not ours
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _complain(f"ditic-stream: interrupted: {advice}")
        raise Interrupted(INTERRUPTED) from None


class Interrupted(SystemExit):
    """Leaves after an interruption of which the user has been told."""


def guarded(action: Callable[[], object]) -> int:
    """Run `action` and turn whatever leaves it into an exit code; DITIC_DEBUG=1 lets the traceback through."""
    try:
        try:
            action()
        except SystemExit as leaving:
            if leaving.code == INTERRUPTED and not isinstance(leaving, Interrupted):  # typer's, before a verb began
                raise KeyboardInterrupt from None
            sys.stdout.flush()
            return leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader of our output left (`| head`).  Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        _complain("ditic-stream: interrupted: run the same command again")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("DITIC_DEBUG"):
            raise
        _complain(f"ditic-stream: {describe(error)}")
        return 1


def describe(error: BaseException) -> str:
    """One line: the kind, then what happened.  Foreign errors get a kind of their own."""
    if isinstance(error, DiticError):
        return " ".join(f"{error.kind}: {error}".split())
    if isinstance(error, MemoryError):
        return f"memory: {OUT_OF_MEMORY}"
    if isinstance(error, OSError):
        return " ".join(f"system: {error}".split())
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal: {words} (a fault of ours: DITIC_DEBUG=1 shows where; please report it)"


def plain(value: Any) -> Any:
    """A frozen result as what JSON can hold: dataclasses become objects, keys and paths text, tuples lists."""
    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__str__ is not object.__str__:  # a TileKey reads "row,col"
            return str(value)
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def size(count: int | float) -> str:
    """Bytes for people: 1536 becomes '1.54 kB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
