"""Where models lie that are too large for the package: a folder of safetensors files, each with a record beside it.

    $DITIC_MODELS, or $XDG_DATA_HOME/ditic-stream/models, or ~/.local/share/ditic-stream/models
        ditic-0.6b/q3.safetensors    the weights; what they are depends on their source alone, so that two imports on
                                     two machines give the same bytes and the same sha256
        ditic-0.6b/q3.json           the record: name, sha256, licence, where it came from and when

A file counts once its record is there; the record is written last.  `export` packs both into one zip file, the bundle,
and `unpack` reads it back where there is no network.  Loads no torch: names, bytes and hashes only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ditic_stream.errors import ConfigError, FormatError, StorageError, WeightsError

VARIABLE = "DITIC_MODELS"
RECORD_FORMAT = "ditic-model-1"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,63})?")
"""A model, and after a colon which of its weights: small-6, ditic-0.6b:q3."""
PARTIAL, ACCEPTED = ".partial", ".accepted"
FREE = ("CC-BY-SA-4.0", "CC-BY-4.0", "CC0-1.0", "Apache-2.0", "MIT")
"""Licences under which anyone may use weights for anything; others have to be accepted (`check_accepted`)."""
BLOCK = 1 << 22
MAX_RECORD_BYTES = 1 << 20
BUNDLE = ("record.json", "weights.safetensors", "LICENCE.txt")
"""Members of a bundle, all stored, in this order."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is written down beside a file of weights."""

    name: str
    """What users call it."""
    sha256: str
    """Of the safetensors file, hex."""
    size: int
    """Its bytes."""
    parameters: int
    """Values the networks hold."""
    licence: str
    """In a few words; archives record it."""
    licence_note: str = ""
    """What a user should know of it, in sentences."""
    source: dict[str, Any] = field(default_factory=dict)
    """Name, bytes and sha256 of the file it was made from, and what of that file was left out."""
    imported: str = ""
    """UTC, ISO 8601."""
    software: str = ""
    format: str = RECORD_FORMAT

    def __post_init__(self) -> None:
        texts = (self.name, self.sha256, self.licence, self.licence_note, self.imported, self.software)
        counts = (self.size, self.parameters)
        if self.format != RECORD_FORMAT:
            raise FormatError(f"a record of format {self.format!r}; this release reads {RECORD_FORMAT!r}")
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.source, dict):
            raise FormatError("a record whose fields are of other types; import the model again")
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
            raise FormatError("a record whose counts are no counts; import the model again")
        if not NAME.fullmatch(self.name) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise FormatError(f"a record of {self.name[:80]!r} with sha256 {self.sha256[:80]!r}: neither may look so")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Raises FormatError when the text is no record."""
        try:
            data = json.loads(text)
            return cls(**data)
        except (TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"no record of a model ({error}); import the model again") from error


def models_folder() -> Path:
    """The folder; it need not exist.  Reads the environment at every call."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or ""
    base = Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / "ditic-stream" / "models"


def place_of(name: str) -> Path:
    """Where the weights called `name` lie, or would.  Raises ConfigError for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} cannot be a model's name; use a-z, 0-9, '.', '_', '-', and one ':'")
    return models_folder().joinpath(*name.split(":")).with_name(f"{name.split(':')[-1]}.safetensors")


def find(name: str) -> tuple[Path, Record] | None:
    """The weights called `name` and their record, or None.

    Raises WeightsError when the record is damaged, or the file is gone or of another size; hashes nothing.
    """
    path = place_of(name)
    record = path.with_suffix(".json")
    try:
        with open(record, "rb") as file:
            text = file.read(MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{record} cannot be read ({error.strerror})") from error
    try:
        found = Record.from_json(text)
    except FormatError as error:
        raise WeightsError(f"{record}: {error}") from error
    here = path.stat().st_size if path.is_file() else None
    if found.name != name or here != found.size:
        raise WeightsError(
            f"{path} has {'no file' if here is None else f'{here} bytes'}, its record says {found.size} bytes of "
            f"{found.name}; import it again with --overwrite"
        )
    return path, found


def check_accepted(name: str, *, accept: bool = False) -> None:
    """ConfigError for weights of this folder that are not free, until a user has accepted their licence.

    accept: the user accepts it now.  That is remembered beside the weights, for these weights alone.
    """
    found = find(name)
    if found is None or found[1].licence in FREE:
        return
    path, record = found
    mark = path.with_suffix(ACCEPTED)
    with _storing(mark):
        if mark.is_file() and mark.read_text().strip() == record.sha256:
            return
        if accept:
            partial = mark.with_name(f".{mark.name}.{os.getpid()}{PARTIAL}")
            partial.write_text(f"{record.sha256}\n")
            partial.replace(mark)
            return
    raise ConfigError(
        f"{name} is not under a free licence ({record.licence}). {record.licence_note} "
        "To use it all the same, say once --accept-licence (accept_licence=True)"
    )


def at_hand(name: str, sha256: str) -> str:
    """What weights of that hash are called here: `name`, or another name they were imported under.

    WeightsError when they are not here.
    """
    same = [one for one in names() if one.partition(":")[0] == name.partition(":")[0]]
    for one in sorted(same, key=lambda other: other != name):
        with contextlib.suppress(WeightsError):  # damaged, and so not these
            if (found := find(one)) is not None and found[1].sha256 == sha256:
                return one
    raise WeightsError(
        f"the archive needs weights {sha256[:16]}... of {name}, which are not in {models_folder()}; import them with "
        "`ditic-stream models import`"
    )


def names() -> list[str]:
    """The names of all records in the folder, sorted."""
    root = models_folder()
    found = [*root.glob("*.json"), *root.glob("*/*.json")]
    texts = [":".join(path.relative_to(root).with_suffix("").parts) for path in found]
    # with_suffix cuts what follows the last dot, and a model's folder may have one (ditic-0.6b)
    return sorted(text for text in texts if NAME.fullmatch(text))


class Incoming:
    """A file of weights on its way in: bytes by `write`, then `keep` with its record, or nothing stays.

    Use as a context manager.  overwrite: replace what has the name already; without it the name has to be free.
    Raises ConfigError when it is not, StorageError when the folder cannot be written.
    """

    def __init__(self, name: str, *, overwrite: bool = False) -> None:
        self.path = place_of(name)
        if not overwrite and self.path.with_suffix(".json").exists():
            raise ConfigError(f"{name} is in {self.path.parent} already; --overwrite replaces it")
        self.size, self._digest = 0, hashlib.sha256()
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}{PARTIAL}")
        with _storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._file: IO[bytes] = self._begin()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def _begin(self) -> IO[bytes]:
        """The partial file, locked: so `_sweep` of others knows it from one whose process was killed."""
        while True:
            file = open(self.partial, "wb")  # noqa: SIM115  (closed by __exit__)
            with contextlib.suppress(OSError):  # a file system without locks has no sweeps either
                fcntl.flock(file, fcntl.LOCK_SH)
            if self.partial.exists():  # no sweep came between
                return file
            file.close()

    def _sweep(self) -> None:
        """Take away what imports of this name left that were killed: the kernel dropped their locks."""
        for left in self.path.parent.glob(f".{self.path.name}.*{PARTIAL}"):
            with contextlib.suppress(OSError), open(left, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with _storing(self.path):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """What was written can be read at `partial`."""
        with _storing(self.path):
            self._file.flush()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def keep(self, record: Record) -> Path:
        """Put weights and record in their place, the record last."""
        beside = self.path.with_name(f".{self.path.stem}.json.{os.getpid()}{PARTIAL}")
        with _storing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self.path.with_suffix(".json").unlink(missing_ok=True)
            os.replace(self.partial, self.path)
            beside.write_text(record.to_json())
            os.replace(beside, self.path.with_suffix(".json"))
        return self.path


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path} ({error.strerror}); make room, or name a folder by {VARIABLE}") from (
            error
        )


def export(weights: Path, record: Record, out: Path, *, overwrite: bool = False) -> int:
    """Pack a file of weights and its record into a bundle; gives its bytes.

    Raises ConfigError when `out` exists, WeightsError when the weights are not those of the record, StorageError when
    `out` cannot be written.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; --overwrite replaces it")
    partial = out.with_name(f".{out.name}.{os.getpid()}{PARTIAL}")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as bundle:
            bundle.writestr(zipfile.ZipInfo(BUNDLE[0], _EPOCH), record.to_json())
            with (
                open(weights, "rb") as file,
                bundle.open(zipfile.ZipInfo(BUNDLE[1], _EPOCH), "w", force_zip64=True) as member,
            ):
                while block := file.read(BLOCK):
                    digest.update(block)
                    member.write(block)
            notice = f"{record.name}\n{record.licence}\n\n{record.licence_note}\n"
            bundle.writestr(zipfile.ZipInfo(BUNDLE[2], _EPOCH), notice)
        if digest.hexdigest() != record.sha256:
            raise WeightsError(
                f"{weights} has sha256 {digest.hexdigest()}, its record says {record.sha256}: it is damaged; import "
                "the model again with --overwrite"
            )
        os.replace(partial, out)
    except OSError as error:
        raise StorageError(f"cannot write {out} ({error.strerror}); make room or choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
    return out.stat().st_size


def is_bundle(path: Path) -> bool:
    """True for what `export` writes.  (A checkpoint of torch is a zip file too.)"""
    try:
        with zipfile.ZipFile(path) as bundle:
            return BUNDLE[0] in bundle.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def unpack(path: Path, check: Callable[[Path], object], *, overwrite: bool = False) -> tuple[Path, Record]:
    """Take a bundle into the folder, under the name of its record; gives the weights' place and the record.

    The weights have to have the bytes and the sha256 of the record.  What they mean is for `check` to say: it is given
    the file before it has its name, and what it raises keeps the file out.
    Raises FormatError when the bundle is damaged or has another hash, ConfigError when the name is taken.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            entries = {entry.filename: entry for entry in bundle.infolist()}
            if tuple(entries) != BUNDLE or any(entry.compress_type for entry in entries.values()):
                raise FormatError(f"{path} holds {sorted(entries)[:5]}; a bundle holds {', '.join(BUNDLE)}, stored")
            if entries[BUNDLE[0]].file_size > MAX_RECORD_BYTES:
                raise FormatError(f"{path}: the record has {entries[BUNDLE[0]].file_size} bytes; no record is so long")
            record = Record.from_json(bundle.read(BUNDLE[0]))
            if entries[BUNDLE[1]].file_size != record.size:
                raise FormatError(f"{path}: {entries[BUNDLE[1]].file_size} bytes of weights, {record.size} recorded")
            with Incoming(record.name, overwrite=overwrite) as incoming, bundle.open(BUNDLE[1]) as member:
                while block := member.read(BLOCK):
                    incoming.write(block)
                if incoming.sha256 != record.sha256:
                    raise FormatError(
                        f"{path}: sha256 {incoming.sha256}, the record says {record.sha256}; fetch it again"
                    )
                incoming.flush()
                check(incoming.partial)
                return incoming.keep(record), record
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise FormatError(f"{path} cannot be read as a bundle ({error}); fetch it again") from error


def hash_of(path: Path) -> str:
    """sha256 of a file, hex, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
