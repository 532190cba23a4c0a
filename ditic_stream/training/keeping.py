"""Write and read what a run leaves in its folder, so that a kill or a full disk costs the time since the last
checkpoint and nothing else.

In: state, lines and tensors.  Out: files that are whole or not there; a log whose last line may have been cut off.
Knows files; knows nothing of networks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ditic_stream._lock import hold, release
from ditic_stream.errors import StorageError, WeightsError

PARTIAL = ".partial"


@contextmanager
def folder_of_a_run(folder: Path) -> Iterator[None]:
    """The folder of a run, made if absent, held against any other run; LockedError while there is one in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made ({error.strerror}); name another folder with --out") from error
    lock = folder / "run.lock"
    handle = hold(lock, folder)
    try:
        yield
    finally:
        release(lock, handle)


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Replace the checkpoint at `path`.  StorageError where it cannot be written: then the earlier one stays."""
    _replace(path, lambda partial: torch.save(dict(state), partial))


def load_checkpoint(path: Path, device: torch.device, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint, tensors on `device`; nothing in it runs.  WeightsError when it is damaged or something else."""
    try:
        state = torch.load(path, weights_only=True, map_location=device, mmap=mmap)
        if not isinstance(state, dict) or "config" not in state:
            raise ValueError("it holds no state of a run")
    except Exception as error:  # torch raises errors of many kinds, some of which advise to load unsafely
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:120] or "it is cut off"
        raise WeightsError(
            f"{path} cannot be read as a checkpoint ({reason}); put back a copy, or take it away to begin anew"
        ) from error
    return state


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add an object to a log, on a line of its own even where a kill has cut off the one before.

    JSON has no NaN and no infinity: null stands for them.
    """
    with path.open("ab+") as log:
        if log.seek(0, os.SEEK_END):
            log.seek(-1, os.SEEK_END)
            if log.read(1) != b"\n":
                log.write(b"\n")
        log.write(json.dumps(_finite(line), allow_nan=False).encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, less lines that were cut off."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def save_weights(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write safetensors: the same tensors and metadata give the same bytes, so that one run done twice gives one set.

    safetensors orders metadata anew each time; here the header is sorted.  StorageError where it cannot be written.
    """
    data = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    whole = len(header).to_bytes(8, "little") + header + data[end:]
    _replace(path, lambda partial: partial.write_bytes(whole))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when a disk is full
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise StorageError(
            f"{path} cannot be written ({reason}); make room and run the same command again, which goes on from the "
            "last checkpoint"
        ) from error
