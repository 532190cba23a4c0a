"""What executors and tasks agree on: the shape of a task, what it tells, and what becomes of its errors.

A task may run twice (its worker died, or something foreign went wrong), so it must write the same bytes again.
A DiticError is an answer and is raised at once; anything else is tried up to ATTEMPTS times, then becomes a TaskError.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Protocol, TypeVar

from ditic_stream.errors import OUT_OF_MEMORY, DiticError, TaskError

ATTEMPTS = 3
"""Times a key is tried before it is given up."""
WORDS = 400
"""Characters of a foreign error, or of a dead worker's last words, that are passed on."""
NO_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says in a RuntimeError, on a CPU and on a GPU."""

K_contra = TypeVar("K_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
K = TypeVar("K")
R = TypeVar("R")
C = TypeVar("C")
OnNote = Callable[[object, int], None]
OnFailure = Callable[[K, DiticError], R]
"""Takes a key that is given up and its error, and gives what stands for its result."""


@lru_cache(maxsize=2)
def loaded(load: Callable[..., C], name: str, device: str) -> C:
    """What `load` makes of a model's name on a device, kept: a process codes one scene after another with it."""
    return load(name, device=device)


class Note(Protocol):
    """Tells the parent what a task is at: something small and picklable, and how many units more it has done."""

    def __call__(self, what: object, units: int = 0) -> None: ...


class Task(Protocol[K_contra, R_co]):
    """What to do with a key.  Frozen, picklable, a few hundred bytes; the work happens inside `open`."""

    def open(self, note: Note) -> AbstractContextManager[Callable[[K_contra], R_co]]:
        """Load what every key needs (codec, files) and give the function that does one key.

        note: says which tile is being worked on, which names the tile should the worker die, and what is done.
        """
        ...


class CallersError(BaseException):
    """Carries what the caller's own callback raised through a task, which must not take it for its own failure."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def described(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:WORDS] if str(error) else type(error).__name__


def translated(error: Exception) -> Exception:
    """What may travel and be shown: DiticErrors as they are, others as a TaskError in their own words."""
    if isinstance(error, DiticError):
        return error
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return TaskError(OUT_OF_MEMORY)
    told = TaskError(f"failed with {described(error)}; run the same command again, or report it")
    told.add_note("".join(traceback.format_exception(error)))  # a cause would not survive pickling, a note does
    return told


def name_of(key: object) -> str | None:
    return None if key is None else str(key)


def named(error: Exception, key: object, attempt: int) -> Exception:
    """Say of a TaskError where and at which attempt it happened; tasks name the tile in errors of their own."""
    if isinstance(error, TaskError):
        error.attempt = attempt
        error.key = error.key or name_of(key)
    return error
