"""benchmarks/full_size.py: it times every part, and compiled graphs against eager ones; here at a small size."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from paper_weights import reduced

pytestmark = pytest.mark.skipif(not find_spec("diffusers"), reason="the extra `paper` is not installed")


@pytest.mark.slow
def test_every_part_is_timed_there_and_back_and_written_as_a_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out.json"
    config.write_text(reduced().to_json())
    monkeypatch.setattr(torch, "compile", lambda plain, **_: plain)  # the real one takes a minute a graph
    options = ["--size", str(config), "--side", "256", "--repeat", "0", "--device", "cpu", "--dtype", "float32"]
    options += ["--graphs", "eager", "compiled", "--batch", "2", "--check", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["full_size", *options])
    monkeypatch.setenv("DITIC_ATTENTION", "")  # the benchmark sets it
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    before, full_size = torch.get_num_threads(), import_module("benchmarks.full_size")
    full_size.main()
    torch.set_num_threads(before)
    rows = json.loads(out.read_text())
    eager, compiled = ({row["part"] for row in rows if row["graphs"] == way} for way in ("eager", "compiled"))
    more = {"render, all", "entropy decode, 2 tiles", "SANA, 2 windows", "DC-AE decoder, 2 windows"}
    assert eager == {*full_size.ENCODE, *full_size.DECODE, *more, "encode, all"}
    assert compiled == {*full_size.DECODE, *more}
    assert all(row["seconds"] >= 0 and row["peak_gb"] > 0.3 for row in rows)
    shown = capsys.readouterr().out
    assert "largest difference from the first way 0\n" in shown and "| 256 | float32 | compiled | auto |" in shown
    assert "symbols, values and scales: as on the CPU" in shown and "DC-AE decoder, 2 windows: " in shown
