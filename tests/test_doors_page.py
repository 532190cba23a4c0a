"""Each part of docs/doors.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ditic_stream.doors._shared import scenes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "doors.md"
PARTS = re.findall(r"^## ([^\n]+)\n.*?(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
CODE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.mark.parametrize("code", CODE, ids=[str(number) for number in range(len(CODE))])
def test_each_part_of_the_page_runs(
    sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    (tmp_path / "scene.ditic").symlink_to(sample.archive)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/doors.md", "exec"), {})
    scenes.close()
    assert capsys.readouterr().out or "app" in code


def test_every_door_has_a_part() -> None:
    assert PARTS == ["xarray", "dask", "Zarr, and what opens Zarr", "rio-tiler and titiler", "Files"]
