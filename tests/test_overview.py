"""The readout: exact in any window, fitted to the weights it names, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import landscape

from ditic_stream import _overview
from ditic_stream._overview import Readout, path_of, save, weight_of
from ditic_stream.errors import WeightsError
from ditic_stream.models.config import Q_STEPS
from ditic_stream.models.names import PUBLISHED
from ditic_stream.models.weights import load_weights
from ditic_stream.training import overview

CHANNELS = 5


def random_readout(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((9 * CHANNELS + 1, 48)) * 0.02).astype(np.float16)
    return weight, rng.uniform(0.5, 90, CHANNELS).astype(np.float32)


def random_values(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-32768, 32768, (2, CHANNELS, height, width)).astype(np.int16)


@pytest.mark.parametrize("parts", [4, 2, 1])
def test_means_are_a_linear_function_of_nine_cells(parts: int) -> None:
    weight, gain = random_readout()
    values = random_values(6, 7)
    means = Readout(weight, gain).means(values, parts)
    assert means.shape == (6, 4 * parts, 5 * parts)
    features = values / (16 * gain[:, None, None].astype(float))
    for group in range(2):
        for row in range(4):
            for col in range(5):
                near = features[group, :, row : row + 3, col : col + 3].transpose(1, 2, 0).reshape(-1)
                every = (near @ weight[:-1].astype(float) + weight[-1]).reshape(3, 4, 4)
                expected = every.reshape(3, parts, 4 // parts, parts, 4 // parts).mean((2, 4))
                got = means[3 * group : 3 * group + 3, row * parts : (row + 1) * parts, col * parts : (col + 1) * parts]
                np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parts", [4, 2, 1])
def test_means_have_the_same_bits_in_any_window(parts: int) -> None:
    weight, gain = random_readout()
    values, readout = random_values(40, 33), Readout(weight, gain)
    whole = readout.means(values, parts)
    for row, col, height, width in [(0, 0, 1, 1), (5, 3, 20, 7), (37, 30, 1, 1), (1, 0, 37, 31)]:
        part = readout.means(values[:, :, row : row + height + 2, col : col + width + 2], parts)
        rows, cols = slice(row * parts, (row + height) * parts), slice(col * parts, (col + width) * parts)
        assert (part == whole[:, rows, cols]).all()


@pytest.mark.parametrize("name", sorted(PUBLISHED.values()))
def test_every_published_set_has_a_readout_that_names_it(name: str) -> None:
    weights = load_weights(name)
    weight = weight_of(name, weights.sha256)
    assert weight is not None
    assert len(weight) == 9 * (weights.config.context or weights.config.latent) + 1
    assert path_of(name).stat().st_size < 300_000


def test_the_readout_of_other_weights_is_none_and_a_damaged_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_overview, "FOLDER", tmp_path)
    weight, _ = random_readout()
    save(weight, "mine", "a" * 64, "CC0-1.0")
    assert (weight_of("mine", "a" * 64) == weight).all()
    assert weight_of("mine", "b" * 64) is None
    assert weight_of("nobody", "a" * 64) is None
    assert weight_of("../mine", "a" * 64) is None
    place = path_of("mine")
    place.write_bytes(place.read_bytes()[:-7])
    with pytest.raises(WeightsError, match=r"mine\.overview cannot be read"):
        weight_of("mine", "c" * 64)
    save(weight[:, :40], "short", "a" * 64, "CC0-1.0")
    with pytest.raises(WeightsError, match=r"\(46, 40\)"):
        weight_of("short", "a" * 64)


def test_fitting_finds_the_readout_that_made_the_means() -> None:
    weight, gain = random_readout()
    rng = np.random.default_rng(2)

    def pairs() -> overview.Pair:
        values = rng.integers(-900, 900, (1, CHANNELS, 12, 9)).astype(np.int16)
        return values, gain, Readout(weight, gain).means(overview.padded(values), 4)

    found = overview.fit(pairs() for _ in range(20))
    np.testing.assert_allclose(found, weight.astype(float), atol=3e-4)


def test_the_command_fits_a_readout_and_says_how_near_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import imagecodecs

    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(landscape(520, 520)))
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(landscape(256, 256, seed=1)))
    out = tmp_path / "tiny-1.overview"
    arguments = ["overview", "tiny", str(tmp_path / "a.png"), "--check", str(tmp_path / "b.png"), "--crops", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out)])
    overview.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: {out.stat().st_size} bytes"
    assert len(lines) == 1 + 4 * 3
    assert [int(line.split()[1]) / Q_STEPS for line in lines[1::3]] == [0.5, 2.5, 4, 5.5]  # rates of all the range
    assert float(lines[-1].split()[-2]) > 25
