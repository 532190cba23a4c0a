"""The authors' checkpoints: read safely, checked name by name, written once as safetensors.

In: a released file (`q1_merge_ema.pt` .. `q4_merge_ema.pt`), a pickle.  It is loaded with `weights_only`, so that
nothing in it runs, and mapped from disk, so that memory stays flat; nothing else is ever unpickled.
Out: a file in the model folder (`ditic_stream.models.folder`) with its record.

Every tensor of the model has to be there under its name and in its shape, finite, and equal under its second name if it
has one.  What belongs to training only (`loss.*`, anything outside the model's five parts) is left out.  The new file
holds the networks' tensors in the precision they had, under the names they had, and the entropy coder's integer tables
(see `tables`).  It is a function of those alone: no date, no file name, so that every import of a checkpoint has the
same sha256.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditic_stream import __version__
from ditic_stream.errors import CheckpointError, ConfigError, WeightsError
from ditic_stream.models import folder
from ditic_stream.models.folder import Record
from ditic_stream.models.paper import layout, network
from ditic_stream.models.paper.config import MODEL, OFFICIAL, PaperConfig
from ditic_stream.models.paper.tables import tables_of
from ditic_stream.models.paper.weights_file import (
    FLOATS,
    INTEGERS,
    TABLE_PREFIXES,
    WEIGHTS_FORMAT,
    Checkpoint,
    complete,
    open_file,
    table_arrays,
    write,
)

LICENCE = "not stated by the authors"
LICENCE_NOTE = (
    "The authors of DiT-IC released these weights without a licence: by default all rights are theirs, so ask them "
    "before you pass the weights on or put them to commercial use. The weights are tuned from those of SANA 0.6B, "
    "whose model cards name the NVIDIA licence NSCL v2-custom, and of DC-AE; the terms of both bind too. "
    "The licence of ditic-stream does not cover them."
)
WRAPPERS = ("state_dict", "model", "ema", "params", "params_ema")
"""Keys under which training programs keep a model's tensors."""


def import_checkpoint(
    path: Path, *, name: str | None = None, config: PaperConfig = OFFICIAL, overwrite: bool = False
) -> tuple[Path, Record]:
    """Bring a released file into the model folder; gives where it lies and its record.

    name: what to call it; by default ditic-0.6b:NAME, NAME what the file's name begins with up to the first "_".
    config: the sizes it has to have; only tests need others than the released ones, and diffusers for it.
    Raises CheckpointError, with all that differs, when the file is no checkpoint of that size or is not whole;
    WeightsError when it cannot be read or holds more than tensors; ConfigError when the name is taken.
    """
    name = name or default_name(path)
    if not name.startswith(f"{MODEL}:"):
        raise ConfigError(f"{name!r} is no name for weights of {MODEL}; choose one like {MODEL}:q3")
    folder.place_of(name)
    tensors, left_out = read_pickle(path)
    shapes = network.shapes_of(config)
    if found := differences(tensors, shapes):
        raise CheckpointError(
            f"{path.name} is not a whole checkpoint of {MODEL}: {len(found)} "
            f"{'difference' if len(found) == 1 else 'differences'}, the first: {found[0]}; take the file as its "
            "authors released it",
            differences=tuple(found),
        )
    kept = {one: tensors[one] for one in shapes if layout.used(one)}
    keep = complete(kept, table_arrays(tensors), name=path.name)
    with folder.Incoming(name, overwrite=overwrite) as incoming:
        write(incoming, keep, {"format": WEIGHTS_FORMAT, "model": MODEL, "config": config.to_json()})
        record = Record(
            name=name,
            sha256=incoming.sha256,
            size=incoming.size,
            parameters=sum(tensor.numel() for one, tensor in keep.items() if one in shapes),
            licence=LICENCE,
            licence_note=LICENCE_NOTE,
            source={
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": folder.hash_of(path),
                "left_out": left_out,
                "tables": "as stored" if tensors[TABLE_PREFIXES[1] + "_quantized_cdf"].numel() else "built",
            },
            imported=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"ditic-stream {__version__}",
        )
        return incoming.keep(record), record


def import_bundle(path: Path, *, name: str | None = None, overwrite: bool = False) -> tuple[Path, Record]:
    """Bring a bundle, as `models export` writes it, into the model folder; gives where it lies and its record.

    Raises FormatError when it is damaged, WeightsError when its weights cannot be used by this release.
    """
    if name is not None:
        raise ConfigError("a bundle has its name inside; leave --name out")
    return folder.unpack(path, open_file, overwrite=overwrite)


def default_name(path: Path) -> str:
    """ditic-0.6b:q3 for q3_merge_ema.pt."""
    stem = path.name.partition(".")[0].partition("_")[0].lower()
    name = f"{MODEL}:{stem}"
    if not folder.NAME.fullmatch(name):
        raise ConfigError(f"{path.name} does not say what to call its weights; add --name {MODEL}:NAME")
    return name


def read_pickle(path: Path) -> tuple[dict[str, Tensor], int]:
    """The model's tensors in a file of torch, mapped from disk where its format allows, and how many others it holds.

    Raises WeightsError when there is no such file, when it cannot be read, or when it holds more than plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give a checkpoint such as q3_merge_ema.pt, or a bundle")
    try:
        # Every door of torch.load raises errors of its own, and what they say ends in advice to load unsafely.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise WeightsError(
            f"{path.name} cannot be read as a checkpoint, or holds more than tensors ({type(error).__name__}: "
            f"{reason}); fetch it again: a checkpoint from its authors, a bundle from who exported it"
        ) from error
    for _ in range(2):
        if isinstance(data, Mapping) and not any(_part(key) for key in data):
            inner = [data[key] for key in WRAPPERS if isinstance(data.get(key), Mapping)]
            data = inner[0] if inner else data
    if not isinstance(data, Mapping):
        raise WeightsError(f"{path.name} holds a {type(data).__name__}, not tensors by name; it is no checkpoint")
    ours = {
        # A file may hold parameters, which ask for gradients; their values are what counts.
        key: value.detach() if isinstance(value, Tensor) else value
        for key, value in data.items()
        if _part(key)
    }
    return ours, len(data) - len(ours)


def _part(key: object) -> bool:
    return isinstance(key, str) and key.partition(".")[0] in layout.PARTS


def differences(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """All ways in which `tensors` are no checkpoint of `shapes`, a line each, ordered by name; empty when they are."""
    found = []
    for name, shape in shapes.items():
        if name not in tensors:
            found.append(f"{name} is missing; it is {_text(shape)}")
        elif problem := _problem(name, tensors[name], shape):
            found.append(f"{name} {problem}")
    found += [f"{name} is unknown" for name in tensors if name not in shapes]
    if found:
        return sorted(found)
    for name in shapes:
        first = layout.alias_of(name)
        if first is not None and not torch.equal(tensors[name], tensors[first]):
            found.append(f"{name} and {first} differ; they are two names of one tensor")
    try:
        tables_of(table_arrays(tensors))
    except ValueError as error:
        found.append(str(error))
    return found


def _problem(name: str, tensor: object, shape: tuple[int, ...]) -> str | None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        return f"is a {type(tensor).__name__}, not a plain tensor"
    if tensor.device.type != "cpu":
        return "has no values"
    table = shape == (0,)  # a table: empty, or of the size it was built with; `tables_of` looks into it
    kinds = INTEGERS if table and not name.endswith("scale_table") else FLOATS
    if tensor.dtype not in kinds:
        return f"is of {_kind(tensor.dtype)}, not {' or '.join(map(_kind, kinds))}"
    if not table and tuple(tensor.shape) != shape:
        return f"is {_text(tuple(tensor.shape))}, not {_text(shape)}"
    if kinds is FLOATS and not bool(torch.isfinite(tensor).all()):
        return "holds values that are not finite"
    return None


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single value"


def load(name: str, *, check: bool = False) -> Checkpoint:
    """Open weights of the folder by name (ditic-0.6b:q3).

    check: also hash the file and compare with its record.
    Raises ConfigError for a name that is not there, WeightsError for a file that is damaged or of another format.
    """
    found = folder.find(name)
    if found is None:
        known = ", ".join(folder.names()) or "none"
        raise ConfigError(f"no weights are named {name!r} in {folder.models_folder()}; it has {known}")
    path, record = found
    if check and folder.hash_of(path) != record.sha256:
        raise WeightsError(f"{path} does not have the sha256 of its record, {record.sha256}; import it again")
    return open_file(path)
