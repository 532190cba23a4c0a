"""The manifest: all that is to be known of an archive before its first record, as a frozen value and as JSON.

In: settings, or the JSON object `ditic` among the attributes of the archive's Zarr group.  Out: the other of the two.
Knows the schema (schemas/archive-1.json), the archive id and the digest; knows nothing of tiles, files or models.

No time, host or path enters, so the same scene under the same settings gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from ditic_stream import schemas
from ditic_stream.config import GridConfig
from ditic_stream.errors import ChecksumError, ConfigError, FormatError, UnsupportedVersionError

FORMAT = 3
"""The format that is written, and the latest that is read (docs/format.md)."""
SCHEMA = "archive-1"
"""The schema of manifests of all."""
SIXTEENTH = 99
"""Steps of q in a sixteenth of a rate level, which is what q counts in formats 1 and 2."""
KEY = "ditic"
"""Name of the manifest among the attributes of the Zarr group."""
MAX_MANIFEST = 2**24
"""Longest metadata document, bytes (16 MiB)."""
MIN_INFLATED, MAX_INFLATION = 2**20, 64
"""Source metadata inflates to at most a MiB or this many times its stored length, whichever is more: a document of
megabytes in memory costs megabytes on disk, too.  What deflates better (zeros, mostly) is stored as it is."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The scene as it comes back."""

    height: int
    width: int
    """Pixels, 1..2^24 each."""
    bands: int
    """Bands without alpha, 1..1024."""
    dtype: str
    """One of config.DTYPES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The network that coded the archive.  Another one is refused."""

    name: str
    config: Json
    weights: str
    """SHA-256 of the weights file, hex."""
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """The file the scene came from."""

    name: str
    """Base name, no path."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Of a file on the machine that compressed it, and of one elsewhere whose server gives no ETag."""
    etag: str | None = None
    """The strong ETag, without quotes, of a file elsewhere.  There is one of the two."""
    metadata: Json = field(default_factory=dict)
    """What a writer needs to give the file's tags back."""
    warnings: tuple[str, ...] = ()
    """What of the source is not kept, a sentence each."""

    @property
    def identity(self) -> str | None:
        """What tells the file from others of its name and size."""
        return self.sha256 or self.etag


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All fields of the manifest; the archive id and the digest are derived."""

    image: Image
    radiometry: Json
    """What `Radiometry.to_json` gives; docs/format.md, "Radiometry"."""
    grid: GridConfig
    shard: int
    """Tiles a side of a shard."""
    model: ModelRef
    quality: int
    """The user's quality, 1..100."""
    q: int
    """The integer rate the model sees, 0..11088."""
    source: SourceRef
    software: str
    """Name and version of the writer."""
    numerics: dict[str, str] = field(default_factory=dict)
    """Where the symbols were made (device kind, backend, ...): part of what a resumed run must share."""
    complete: bool = False
    """True once every shard is written."""
    attributes: Json = field(default_factory=dict)
    """Further attributes of the Zarr group, for other tools (georeferencing).  The digest covers them."""
    format: int = FORMAT
    """1 to 3."""

    @property
    def archive_id(self) -> bytes:
        """First 8 bytes of the SHA-256 of the settings that decide the symbols; repeated in every record."""
        settings = {
            "format": 1 if self.format < 3 else 3,  # q counts in other steps from 3 on
            "image": _plain(self.image),
            "radiometry": self.radiometry,
            "grid": {**_plain(self.grid), "shard": self.shard},
            "model": _plain(self.model),
            "q": self._q,
            "source": self.source.identity,
        }
        return hashlib.sha256(canonical_json(settings)).digest()[:8]

    @property
    def _q(self) -> int:
        """q as the document says it."""
        if self.format > 2:
            return self.q
        if self.q % SIXTEENTH:
            raise ConfigError(f"q {self.q} is no multiple of {SIXTEENTH}, which format {self.format} asks; write 3")
        return self.q // SIXTEENTH

    @property
    def planes(self) -> int:
        """Planes of the `mask` array; 0 when the scene has none."""
        return len(self.radiometry["planes"])

    def to_json(self) -> Json:
        """The JSON object `ditic`.  Raises ConfigError when a field breaks the schema."""
        source = {name: value for name, value in _plain(self.source).items() if value is not None}
        source["warnings"] = list(self.source.warnings)
        packed = _deflate(self.source.metadata)
        if packed is not None:
            del source["metadata"]
            source["metadata_deflate"] = packed
        document: Json = {
            "format": self.format,
            "complete": self.complete,
            "archive_id": self.archive_id.hex(),
            "image": _plain(self.image),
            "radiometry": self.radiometry,
            "grid": {**_plain(self.grid), "shard": self.shard},
            "model": _plain(self.model),
            "quality": {"quality": self.quality, "q": self._q},
            "source": source,
            "software": self.software,
            "numerics": dict(self.numerics),
        }
        document["digest"] = digest(document, self.attributes)
        problem = _problem(document) or _metadata_problem(self.source.metadata)
        if problem is not None:
            raise ConfigError(f"manifest: {problem}")
        return document

    @classmethod
    def from_json(cls, document: object, attributes: Mapping[str, Any] | None = None) -> Manifest:
        """The manifest in `document`, as `to_json` gave it; `attributes`: the group's others, which the digest covers.

        Raises UnsupportedVersionError for a later format, FormatError when the schema is broken, ChecksumError when
        the digest or the archive id does not fit.
        """
        found = document.get("format") if isinstance(document, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise UnsupportedVersionError(
                f"archive has format {found}; this release reads up to {FORMAT}: install a later one"
            )
        problem = _problem(document)
        if problem is not None:
            raise FormatError(f"manifest: {problem}")
        assert isinstance(document, dict)
        others = dict(attributes or {})
        if document["digest"] != digest(document, others):
            raise ChecksumError("manifest fails its digest: its bytes are damaged or were edited")
        try:
            manifest = _build(document, others)
        except ConfigError as error:
            raise FormatError(f"manifest: {error.message}") from error
        named, given = document["archive_id"], manifest.archive_id.hex()
        if named != given:
            raise ChecksumError(f"manifest names archive {named}, its settings give {given}")
        return manifest

    def differences(self, other: Manifest) -> list[str]:
        """What keeps a run with the settings of `other` from going on with this archive, a phrase each."""
        found = []
        for name in (one.name for one in fields(self) if one.name != "complete"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{name} ({_short(mine)} there, {_short(theirs)} here)")
        return found

    def finished(self) -> Manifest:
        return replace(self, complete=True)


def canonical_json(document: object) -> bytes:
    """Sorted keys, no spaces, ASCII: the one spelling that is hashed and stored.  ConfigError for what JSON has not."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f'not JSON: {error}; write NaN and infinities as "nan", "inf", "-inf"') from error


def digest(document: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """SHA-256, hex, of the group's attributes in canonical JSON; the manifest `document` is one, without its digest."""
    bare = {name: value for name, value in document.items() if name != "digest"}
    try:
        return hashlib.sha256(canonical_json({**attributes, KEY: bare})).hexdigest()
    except ConfigError as error:
        raise FormatError(f"manifest: {error.message}") from error


def parse_json(data: bytes) -> Any:
    """The JSON value in `data` (at most 16 MiB); FormatError when it is none."""
    if len(data) > MAX_MANIFEST:
        raise FormatError(f"metadata of {len(data)} bytes; at most {MAX_MANIFEST} are allowed")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"metadata is not JSON: {error}") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def _build(document: Json, attributes: Json) -> Manifest:
    image, grid, source, model = document["image"], document["grid"], document["source"], document["model"]
    packed, version = source.get("metadata_deflate"), int(document["format"])
    # int(): a schema lets 1024.0 pass for an integer
    return Manifest(
        image=Image(
            height=int(image["height"]), width=int(image["width"]), bands=int(image["bands"]), dtype=image["dtype"]
        ),
        radiometry=document["radiometry"],
        grid=GridConfig(tile=int(grid["tile"]), overlap=int(grid["overlap"])),
        shard=int(grid["shard"]),
        model=ModelRef(**model),
        quality=int(document["quality"]["quality"]),
        q=int(document["quality"]["q"]) * (1 if version > 2 else SIXTEENTH),
        source=SourceRef(
            name=source["name"],
            size=int(source["size"]),
            sha256=source.get("sha256"),
            etag=source.get("etag"),
            metadata=source["metadata"] if packed is None else _inflate(packed),
            warnings=tuple(source["warnings"]),
        ),
        software=document["software"],
        numerics=document["numerics"],
        complete=document["complete"],
        attributes=attributes,
        format=version,
    )


def _problem(document: object) -> str | None:
    """What is wrong with a manifest, by the schema and beyond it; None when nothing is."""
    try:
        error = next(_validator().iter_errors(document), None)
    except RecursionError:
        return "it is nested too deeply"
    if error is not None:
        return f"{'/'.join(map(str, error.path)) or 'it'}: {error.message[:200]}"
    assert isinstance(document, dict)
    image, radiometry = document["image"], document["radiometry"]
    if len(radiometry["bands"]) != image["bands"] or radiometry["dtype"] != image["dtype"]:
        bands, dtype = len(radiometry["bands"]), radiometry["dtype"]
        return f"radiometry of {bands} bands of {dtype} for an image of {image['bands']} of {image['dtype']}"
    return None


def _metadata_problem(metadata: Json) -> str | None:
    """What is wrong with the source's metadata, which the schema of a manifest does not see while it is deflated."""
    try:
        error = next(_validator("metadata").iter_errors(metadata), None)
    except RecursionError:
        return "source metadata is nested too deeply"
    return error and f"source/metadata/{'/'.join(map(str, error.path))}: {error.message[:200]}"


@cache
def _validator(part: str | None = None) -> Any:
    """The validator of a whole manifest, or of one of the schema's definitions."""
    import jsonschema  # 60 ms, and not every import of this module reads a manifest

    whole = schemas.load(SCHEMA)
    schema = whole if part is None else {"$ref": f"#/$defs/{part}", "$defs": whole["$defs"]}
    return jsonschema.Draft202012Validator(schema)


def _plain(value: Any) -> Json:
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _deflate(metadata: Json) -> str | None:
    """`metadata` as base64 of zlib, where that is shorter: GeoTIFF tags and profiles run to kilobytes of text."""
    plain = canonical_json(metadata)
    packed = base64.b64encode(zlib.compress(plain, 9)).decode("ascii")
    return packed if len(packed) < len(plain) <= _inflated_limit(packed) else None


def _inflated_limit(packed: str) -> int:
    return min(max(MIN_INFLATED, MAX_INFLATION * len(packed)), MAX_MANIFEST)


def _inflate(packed: str) -> Json:
    inflater, limit = zlib.decompressobj(), _inflated_limit(packed)
    try:
        plain = inflater.decompress(base64.b64decode(packed, validate=True), limit)
    except (ValueError, zlib.error) as error:
        raise FormatError(f"source metadata does not inflate: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise FormatError(f"source metadata is cut short or longer than {limit} bytes")
    metadata = parse_json(plain)
    problem = _metadata_problem(metadata)
    if problem is not None:
        raise FormatError(f"manifest: {problem}")
    assert isinstance(metadata, dict)
    return metadata
