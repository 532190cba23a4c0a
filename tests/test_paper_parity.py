"""ditic-0.6b against golden files of the paper's system: `benchmarks/parity.py` passes, and fails when it should."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(not find_spec("diffusers"), reason="the extra `paper` is not installed")

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("DITIC_SHARED", ROOT.parent / "shared")) / "reference"
CONFIG = REFERENCE / "golden-reduced-config.json"


def golden(size: str) -> Path:
    path = REFERENCE / f"golden-reduced-{size}.npz"
    if not path.is_file() or not CONFIG.is_file():
        pytest.skip(f"no golden files in {REFERENCE}; name the folder above it by DITIC_SHARED")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.parity", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [pytest.param("512x768", marks=pytest.mark.slow), "300x420"])
def test_every_tensor_of_the_golden_file_comes_out(size: str) -> None:
    done = run("--config", CONFIG, "--golden", golden(size), "--seed", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 15 tensors pass" in done.stdout


@pytest.mark.slow
def test_weights_of_another_seed_fail() -> None:
    done = run("--config", CONFIG, "--golden", golden("300x420"), "--seed", 1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: latent, aux, y, z, z_symbols, symbols, indexes, mean" in done.stdout


def test_a_file_that_is_no_golden_file_is_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", image=np.zeros((4, 4, 3), np.uint8))
    config = tmp_path / "config.json"
    config.write_text('{"vae": {}}')
    done = run("--config", config, "--golden", tmp_path / "none.npz")
    assert done.returncode == 2 and done.stderr.startswith("parity: none.npz lacks aux, latent")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def parity() -> Any:
    sys.path.insert(0, str(ROOT))
    try:
        return import_module("benchmarks.parity")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def report(parity: Any) -> Any:
    random = np.random.default_rng(5)
    values = random.normal(0, 1, (1, 8, 4, 4))
    tensors = {"y": (2 * values / values.std()).astype(np.float32), "symbols": np.arange(6, dtype=np.int32)}
    return parity.Report(tensors)


@pytest.mark.parametrize(("error", "passes"), [(1.9e-4, True), (2.1e-4, False), (float("nan"), False)])
def test_one_element_off_by_more_than_the_bound_fails(report: Any, error: float, passes: bool) -> None:
    here = torch.from_numpy(report.golden["y"].copy())
    here[0, 3, 2, 1] += error
    report.floats("y", here)
    assert (report.failed == []) == passes


def test_a_tensor_of_another_shape_fails(report: Any) -> None:
    report.floats("y", torch.zeros(1, 8, 4, 5))
    report.integers("symbols", torch.zeros(7, dtype=torch.int32), np.zeros(7))
    assert report.failed == ["y", "symbols"]


@pytest.mark.parametrize(
    ("moved", "margin", "passes"),
    [(1, 9e-5, True), (1, 1.1e-4, False), (2, 0.0, False)],
    ids=["tie", "no tie", "too far for a tie"],
)
def test_only_ties_may_differ(report: Any, moved: int, margin: float, passes: bool) -> None:
    margins = np.full(6, 0.3)
    margins[2] = margin
    here = torch.from_numpy(report.golden["symbols"].copy())
    here[2] += moved
    report.integers("symbols", here, margins)
    assert (report.failed == []) == passes
