"""Sets of weights that a user has trained, in the model folder, so that archives that name them open again.

In: the `weights.safetensors` of a run.  Out: the same file under a name, and a record beside it (see `folder`).
An archive names its weights by their sha256; whatever they are called here, they are found by it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from ditic_stream import __version__
from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.models.folder import BLOCK, Incoming, Record
from ditic_stream.models.names import FOLDER, PUBLISHED, WEIGHTS_FORMAT
from ditic_stream.models.weights import load_weights


def is_set(path: Path) -> bool:
    """True for a safetensors file that says it is a set of the package's own networks."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), BLOCK)))
        return bool(header.get("__metadata__", {}).get("format") == WEIGHTS_FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def import_set(path: Path, *, name: str | None = None, overwrite: bool = False) -> tuple[Path, Record]:
    """Copy a set into the model folder; gives where it lies and its record.

    name: what to call it; every run's file has the same name, so it has to be said.
    Raises ConfigError without a name that is free, WeightsError when the file cannot be read as weights.
    """
    if name is None or ":" in name or name in PUBLISHED or (FOLDER / f"{name}.safetensors").exists():
        raise ConfigError(f"{path.name} needs a name that no set of the package has, not {name!r}; say --name NAME")
    weights = load_weights(str(path))
    with Incoming(name, overwrite=overwrite) as incoming:
        incoming.write(path.read_bytes())
        if incoming.sha256 != weights.sha256:
            raise WeightsError(f"{path} changed while it was read; run the same command again")
        record = Record(
            name=name,
            sha256=incoming.sha256,
            size=incoming.size,
            parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
            licence=weights.licence,
            source={"name": path.name, "bytes": incoming.size, "sha256": incoming.sha256},
            imported=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"ditic-stream {__version__}",
        )
        return incoming.keep(record), record
