"""The errors of ditic-stream, drawn by what the catcher will do.

    DiticError                       .kind: stable code, append-only    .key: the tile, when there is one
      ConfigError    ValueError      fix the call           WindowError: the window lies outside the scene
      SourceError    OSError         look at the input, or at the place written to
        StorageError                 make room or fix the permissions, then run the same command again
      FormatError    ValueError      distrust the file      UnsupportedVersionError  ChecksumError
      DesyncError                    symbols disagree with their checksum: decode where the numerics match, or report
      MissingTileError  LookupError  encode that tile
      WeightsError                   fetch the named weights
        CheckpointError              take the file as its makers released it; carries what differs
      LockedError                    wait for the other run, or stop it
      TaskError                      retry or report; carries key, attempt, and the worker's own words

Messages hold the value, the bound and the remedy.  Every error survives pickling, so that a worker can send it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = "out of memory; use fewer --workers, to compress a smaller --tile, to decode `region` in parts"
"""What is said wherever memory runs out, by a worker or by the command itself."""


class DiticError(Exception):
    """Base of all errors raised on purpose.  `kind` is a stable code, `key` names the tile ("row,col") if there is
    one."""

    kind = "error"

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only facts are lost by the default reduction, which replays positional arguments alone.
        return (_rebuild, (type(self), self.message, self.__dict__))

    def __str__(self) -> str:
        return f"tile {self.key}: {self.message}" if self.key else self.message


def _rebuild(cls: type[DiticError], message: str, state: dict[str, object]) -> DiticError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class ConfigError(DiticError, ValueError):
    """A setting or an argument is out of its bounds: fix the call."""

    kind = "config"


class WindowError(ConfigError):
    """A window lies outside its scene or is empty."""

    kind = "window"


class SourceError(DiticError, OSError):
    """The input cannot be read as asked; errors of foreign readers are translated into this at the door."""

    kind = "source"


class StorageError(SourceError):
    """The output cannot be written (disk full, permissions); what is written so far stays resumable."""

    kind = "storage"


class FormatError(DiticError, ValueError):
    """A file breaks the written format: distrust it."""

    kind = "format"


class UnsupportedVersionError(FormatError):
    """The file was written by a later format than this release knows."""

    kind = "version"


class ChecksumError(FormatError):
    """Stored bytes do not match their checksum."""

    kind = "checksum"


class DesyncError(DiticError):
    """Decoded symbols disagree with their checksum, or this device fails the known-answer test of the entropy
    networks."""

    kind = "desync"


class MissingTileError(DiticError, LookupError):
    """A tile the grid promises has no record."""

    kind = "missing"


class WeightsError(DiticError):
    """The weights an archive names are not here, or are not the ones it names."""

    kind = "weights"


class CheckpointError(WeightsError):
    """A file is not a checkpoint of the model it is imported as; `differences` says in which ways, a line each."""

    kind = "checkpoint"

    def __init__(self, message: str, *, key: str | None = None, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message, key=key)
        self.differences = differences


class LockedError(DiticError):
    """Another run holds the archive."""

    kind = "locked"


class TaskError(DiticError):
    """A worker failed on a task; `attempt` counts from 1, the message holds the worker's own words."""

    kind = "task"

    def __init__(self, message: str, *, key: str | None = None, attempt: int = 1) -> None:
        super().__init__(message, key=key)
        self.attempt = attempt


@contextmanager
def naming(key: object) -> Iterator[None]:
    """Give any DiticError that passes the name of its tile, unless it has one."""
    try:
        yield
    except DiticError as error:
        if error.key is None:
            error.key = str(key)
        raise
