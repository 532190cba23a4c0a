"""A file of weights of ditic-0.6b: safetensors that hold networks, coding tables and the integers of the entropy
networks.

In: the tensors of the networks, and what the coder's tables are made from.  Out: a file, and back a Checkpoint.  Knows
nothing of where a set came from (`checkpoint` makes one from a released pickle, `training.paper` from a run) nor where
it is kept (`models.folder`).  A file is a function of its tensors and its metadata: the same ones give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditic_stream.errors import CheckpointError, ConfigError, WeightsError
from ditic_stream.models.paper import fixed, layout, network, recipe
from ditic_stream.models.paper.config import MODEL, PaperConfig
from ditic_stream.models.paper.tables import FlatTables, tables_of

WEIGHTS_FORMAT = "ditic-paper-2"
FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INTEGERS = {torch.int32: "I32", torch.int64: "I64"}
SMALL_INTEGERS = {torch.int16: "I16", torch.int8: "I8"}
"""Types of integers made here; no checkpoint has them."""
TABLE_PARTS = ("counts", "sizes", "lows")
WIDTHS_NAME = "tables.y.scales"
TABLE_PREFIXES = ("codec.entropy_bottleneck.", "codec.gaussian_conditional.")
ORIGIN = "origin"
"""Key of the metadata under which a tuned file says in JSON what it was made from; released ones have none."""
MAX_HEADER_BYTES = 1 << 20


class Out(Protocol):
    """Where bytes go."""

    def write(self, data: Any, /) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    """A file of the folder, opened: networks' `tensors` by name (mapped from disk, in the file's precision), and the
    coder's tables of `z` and `y` with the 64 `scales` that y's tables are for, and the fixed-point networks' integers
    `fixed` (see `fixed.Integers`)."""

    config: PaperConfig
    tensors: dict[str, Tensor]
    z: FlatTables
    y: FlatTables
    scales: NDArray[np.float32]
    fixed: dict[str, Tensor]
    origin: dict[str, Any]
    """What a tuned set was made from; empty for a released one."""


def complete(tensors: Mapping[str, Tensor], arrays: Mapping[str, NDArray[Any]], *, name: str) -> dict[str, Tensor]:
    """All tensors of a file: the networks' own, the coder's tables, the integers of the fixed-point networks.

    arrays: what `tables_of` takes.  name: of the file they came from, for errors.
    Raises CheckpointError when the values make no tables or are too large for fixed point.
    """
    try:
        z, y, scales = tables_of(arrays)
        keep = dict(tensors)
        for of, flat in (("z", z), ("y", y)):
            keep |= {f"tables.{of}.{part}": torch.from_numpy(getattr(flat, part)) for part in TABLE_PARTS}
        keep[WIDTHS_NAME] = torch.from_numpy(scales)
        return keep | recipe.build(keep, z, y, scales)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}", differences=(str(error),)) from error


def table_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """What `tables_of` takes, of a checkpoint's tensors."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in tensors.items()
        if name.startswith(TABLE_PREFIXES)
    }


def write(out: Out, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, tensor by tensor: the library's own writer would hold all of them at once.

    Header: 8 bytes of its length, little-endian, then JSON, padded by spaces to a multiple of 8; then the values,
    widest types first and by name, so that each is aligned.
    """
    if sys.byteorder != "little":
        raise ConfigError("weights can be written on little-endian machines only")
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in order:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = {**FLOATS, **INTEGERS, **SMALL_INTEGERS}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in order:
        if tensor.numel():
            out.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def open_file(path: Path) -> Checkpoint:
    """Open a file that `write` wrote.  Raises WeightsError when it is anything else."""
    try:
        with open(path, "rb") as opened:  # the library would map and parse a header of any length
            length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != WEIGHTS_FORMAT:
                raise ValueError(f"format {metadata.get('format')!r}; this release reads {WEIGHTS_FORMAT!r}")
            config = PaperConfig.from_json(json.loads(metadata["config"]))
            origin = dict(json.loads(metadata.get(ORIGIN, "{}")))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        z, y = (FlatTables(*(tensors.pop(f"tables.{of}.{part}").numpy() for part in TABLE_PARTS)) for of in ("z", "y"))
        scales = tensors.pop(WIDTHS_NAME).numpy()
        integers = {key: tensors.pop(key) for key in list(tensors) if key.startswith(fixed.PREFIX)}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as weights of {MODEL} ({error}); import it again") from error
    wanted = {one: shape for one, shape in network.shapes_of(config).items() if layout.used(one)}
    if {one: tuple(tensor.shape) for one, tensor in tensors.items()} != wanted:
        raise WeightsError(f"{path} does not hold the tensors of {MODEL}; import it again")
    return Checkpoint(config, tensors, z, y, scales, integers, origin)
