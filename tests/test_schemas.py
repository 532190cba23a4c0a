"""The JSON Schemas: sound themselves, shipped with the package, and of the same mind as the code."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from ditic_stream import bitstream, config, manifest, schemas, tiling

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["archive-1", "record-1"]


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.load(name))


def test_every_schema_file_can_be_loaded() -> None:
    found = {place.name.removesuffix(".json") for place in files("ditic_stream.schemas").iterdir()}
    assert set(NAMES) <= found
    with pytest.raises(FileNotFoundError):
        schemas.load("archive-0")


def test_golden_manifests_validate_and_damaged_ones_do_not() -> None:
    schema = schemas.load(manifest.SCHEMA)
    for place in sorted(GOLDEN.glob("manifest-1*.json")):
        document = json.loads(place.read_text())[manifest.KEY]
        jsonschema.validate(document, schema)
        for name in schema["required"]:
            damaged = {field: value for field, value in document.items() if field != name}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(damaged, schema)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**document, name: [None]}, schema)


def test_schema_bounds_are_those_of_the_code() -> None:
    properties = schemas.load("archive-1")["properties"]
    definitions = schemas.load("archive-1")["$defs"]
    assert definitions["side"]["maximum"] == tiling.MAX_SIDE
    assert definitions["dtype"]["enum"] == list(config.DTYPES)
    assert properties["quality"]["properties"]["q"]["maximum"] == config.Q_MAX
    earlier = schemas.load("archive-1")["then"]["properties"]["quality"]["properties"]["q"]["maximum"]
    assert earlier * manifest.SIXTEENTH == config.Q_MAX
    assert properties["quality"]["properties"]["quality"]["maximum"] == config.QUALITY_MAX
    assert properties["grid"]["properties"]["shard"]["enum"] == sorted(tiling.SHARD_SIDES)
    record = schemas.load("record-1")["properties"]
    assert record["row"]["maximum"] == bitstream.MAX_INDEX
    assert record["coded"]["maximum"] == bitstream.MAX_CODED
    assert record["lanes"]["enum"][-1] == 1 << bitstream.MAX_LANES_LOG2
