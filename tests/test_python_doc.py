"""docs/python.md: its lines run, in their order, on a real archive."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOC = Path(__file__).resolve().parents[1] / "docs" / "python.md"


def test_every_line_of_the_python_page_runs(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample.archive.parent)
    assert os.path.exists("scene.ditic")
    names: dict[str, Any] = {}
    pieces = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(pieces) == 5
    for piece in pieces:
        exec(compile(piece, str(DOC), "exec"), names)  # the page itself is what is tested
    assert names["pixels"].shape == (256, 256, 3)
    assert names["every_third"].shape == (200, 700)
    assert names["samples"].shape == (3, 256, 256)
    assert (names["samples"] == names["pixels"].transpose(2, 0, 1)).all()
    assert names["thumbnail"].shape == (3, 60, 70)
    assert names["region"].shape == (100, 150, 3)
    assert max(names["overview"].shape[1:]) <= 64
    assert np.ma.isMaskedArray(names["masked"])
    assert len(names["parts"]) == 8
