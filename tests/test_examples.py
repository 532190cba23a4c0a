"""Every example runs, on small scenes and with the `tiny` model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pictures import landscape, write_scene

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here_and_has_a_line_in_the_readme():
    tested = Path(__file__).read_text()
    lines = (EXAMPLES / "README.md").read_text().splitlines()
    for script in EXAMPLES.glob("*.py"):
        assert f'run("{script.name}"' in tested
        assert sum(line.startswith(f"- `{script.name}`: ") for line in lines) == 1


def test_window_reads_part_of_an_archive(sample):
    out = run("window.py", sample.archive, "--window", "100,200,300,150")
    assert "rows, columns, bands (600, 700, 3), uint8" in out
    assert "window: (150, 300, 3)" in out


def test_rate_and_quality_prints_a_line_a_quality_and_rates_rise(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", landscape(300, 400))
    out = run("rate_and_quality.py", scene, "--quality", "10", "90", "--model", "tiny", "--tile", "256")
    low, high = (line.split() for line in out.splitlines()[1:])
    assert (low[0], high[0]) == ("10", "90")
    assert float(low[1]) < float(high[1])


def test_demo_leaves_archive_region_and_side_by_side(tmp_path):
    pytest.importorskip("skimage")
    import imagecodecs

    out = run("demo.py", tmp_path / "demo", "--model", "tiny")
    assert "no problem in 9 tiles" in out
    assert "PSNR" in out
    beside = imagecodecs.png_decode((tmp_path / "demo" / "side-by-side.png").read_bytes())
    assert beside.shape == (512, 1032, 3)
