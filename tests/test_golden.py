"""Archives of every format number so far: they verify, and give the latents they were made with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import ditic_stream
from ditic_stream.verify import verify

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["archive-1", "archive-2", "archive-3"])
def test_golden_archive_decodes_to_the_latents_it_was_made_with(name: str) -> None:
    path = GOLDEN / f"{name}.ditic.zip"
    assert verify(path).ok
    spec = importlib.util.spec_from_file_location("make_archive", GOLDEN / "make_archive.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    assert recipe.latents(path) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["archive-1", "archive-2", "archive-3"])
def test_golden_archive_reads_as_the_scene_it_was(name: str) -> None:
    with ditic_stream.open(GOLDEN / f"{name}.ditic.zip") as scene:
        assert scene.shape == (300, 420, 4) and scene.dtype == np.uint16
        corner, rest = scene[:90, :130], scene[100:200, 200:300]
    assert not corner.any()
    assert 1000 < rest.mean() < 3500 and (rest > 0).all()
