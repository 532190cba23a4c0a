"""The JSON Schemas other readers of the format can build on, as package data: `schemas/NAME.json`."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def load(name: str) -> dict[str, Any]:
    """The schema of that name ("archive-1", "record-1"), read once.  Treat it as frozen."""
    schema: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return schema
