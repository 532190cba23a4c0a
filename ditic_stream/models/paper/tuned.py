"""Sets of weights that were tuned here from a released one: written as a file, and brought into the model folder.

In: the networks' tensors after a run (`training.paper`), and the set they started from.  Out: a file of the same format
as an imported checkpoint's, with tables and fixed-point integers made again from the new values, and in its metadata
what it was tuned from; then its place in the folder.

A file names no model until it is imported.  Its integers are not believed: import makes them once more by the recipe
and refuses a file that holds others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditic_stream import __version__
from ditic_stream.errors import CheckpointError, ConfigError, StorageError, WeightsError
from ditic_stream.models import folder
from ditic_stream.models.folder import Record
from ditic_stream.models.paper.config import MODEL
from ditic_stream.models.paper.weights_file import (
    ORIGIN,
    TABLE_PARTS,
    TABLE_PREFIXES,
    WEIGHTS_FORMAT,
    WIDTHS_NAME,
    Checkpoint,
    complete,
    open_file,
    table_arrays,
    write,
)

SUFFIX = ".safetensors"
_STORED = ("_quantized_cdf", "_cdf_length", "_offset")


def write_tuned(path: Path, base: Checkpoint, tensors: Mapping[str, Tensor], origin: Mapping[str, Any]) -> None:
    """Write a tuned set.

    tensors: all that the networks hold, under a checkpoint's names, on the CPU.  origin: what it was tuned from, plain
    values (`name`, `sha256`, `licence`, `licence_note` of that set, and what a user should know of the run).
    Raises CheckpointError when a value is too large for fixed point, StorageError when the file cannot be written.
    """
    if missing := base.tensors.keys() ^ tensors.keys():
        raise WeightsError(f"{len(missing)} tensors are missing or unknown, the first {min(missing)}")
    keep = complete(tensors, _arrays(tensors, base.scales), name=path.name)
    metadata = {"format": WEIGHTS_FORMAT, "model": MODEL, "config": base.config.to_json()}
    metadata[ORIGIN] = json.dumps(dict(origin), sort_keys=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file, keep, metadata)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path} ({error.strerror}); make room or choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


def is_weights(path: Path) -> bool:
    """True for a file that `write_tuned` may have written, by its name."""
    return path.suffix == SUFFIX


def import_tuned(path: Path, *, name: str | None = None, overwrite: bool = False) -> tuple[Path, Record]:
    """Bring a tuned set into the model folder; gives where it lies and its record.

    name: what to call it, ditic-0.6b:NAME; a file has no name of its own.
    Raises ConfigError without a fitting name, WeightsError when the file is no tuned set, CheckpointError when its
    integers are not those that its weights make.
    """
    if name is None or not name.startswith(f"{MODEL}:"):
        raise ConfigError(f"say what to call the weights in {path.name}: --name {MODEL}:NAME")
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give the weights.safetensors of a run")
    with folder.Incoming(name, overwrite=overwrite) as incoming, open(path, "rb") as file:
        while block := file.read(folder.BLOCK):
            incoming.write(block)
        incoming.flush()
        opened = open_file(incoming.partial)
        origin = opened.origin
        if not origin:
            raise WeightsError(
                f"{path.name} does not say what it was tuned from; import the released checkpoint, or a bundle"
            )
        _check_integers(path.name, opened)
        record = Record(
            name=name,
            sha256=incoming.sha256,
            size=incoming.size,
            parameters=sum(tensor.numel() for tensor in opened.tensors.values()),
            licence=str(origin.get("licence", "unknown")),
            licence_note=str(origin.get("licence_note", "")),
            source={"file": path.name, "bytes": incoming.size, "sha256": incoming.sha256, "tuned": origin},
            imported=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"ditic-stream {__version__}",
        )
        return incoming.keep(record), record


def _check_integers(name: str, opened: Checkpoint) -> None:
    due = complete(opened.tensors, _arrays(opened.tensors, opened.scales), name=name)
    held = {
        **{
            f"tables.{of}.{part}": torch.from_numpy(getattr(flat, part))
            for of, flat in (("z", opened.z), ("y", opened.y))
            for part in TABLE_PARTS
        },
        WIDTHS_NAME: torch.from_numpy(opened.scales),
        **opened.fixed,
        **opened.tensors,
    }
    wrong = sorted(due.keys() ^ held.keys()) or sorted(one for one in due if not torch.equal(due[one], held[one]))
    if wrong:
        raise CheckpointError(
            f"{name} holds other integers than its weights make: {len(wrong)} tensors differ, the first {wrong[0]}; "
            "take the file as the run wrote it",
            differences=tuple(f"{one} differs" for one in wrong),
        )


def _arrays(tensors: Mapping[str, Tensor], scales: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What tables are made from: the prior as it is, no table as stored, the widths of the set it started from."""
    empty = {prefix + name: np.empty(0, np.int32) for prefix in TABLE_PREFIXES for name in _STORED}
    return {**table_arrays(tensors), **empty, TABLE_PREFIXES[1] + "scale_table": scales}
