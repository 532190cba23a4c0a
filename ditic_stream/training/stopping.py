"""Let Ctrl-C and SIGTERM wait for the end of a step, so that what was trained can be kept.

In: signals of the process.  Out: whether one came.  Knows nothing of training.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Gives what says whether the run has been asked to stop; a second signal is KeyboardInterrupt at once.

    Outside the main thread signals are not ours, nor is one that is ignored (as by what a script runs in the
    background): it says no.
    """
    asked = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    with suppress(ValueError):
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not of Python, and could not be set back
                before[number] = signal.signal(number, hear)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
