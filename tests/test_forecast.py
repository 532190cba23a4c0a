"""Rate control and dry runs: what is expected comes, and a rate or a size that is asked for is met."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import landscape, write_scene

from ditic_stream import _forecast, compare, compression
from ditic_stream._forecast import _crossing, _error, sample, spread
from ditic_stream.archive import open_archive
from ditic_stream.compression import Estimate, Result
from ditic_stream.config import Q_MAX, GridConfig, q_of_quality
from ditic_stream.errors import ConfigError
from ditic_stream.tiling import Grid


def grid(height: int, width: int) -> Grid:
    return Grid(height=height, width=width, config=GridConfig(tile=256))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (700, 810), (256 * 40, 256 * 3), (256, 256 * 900), (9000, 9000)])
@pytest.mark.parametrize("count", [1, 64, 500])
def test_a_sample_is_spread_and_repeats(height: int, width: int, count: int) -> None:
    tiles = grid(height, width)
    keys = spread(tiles, count)
    assert keys == spread(tiles, count)
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(tiles.keys())
    everything = tiles.rows * tiles.cols
    assert len(keys) == everything if everything <= count else 0.6 * count <= len(keys) <= 1.6 * count
    if len(keys) == 64 < everything:
        assert max(key.row for key in keys) >= 0.8 * (tiles.rows - 1)
        assert max(key.col for key in keys) >= 0.8 * (tiles.cols - 1)


@pytest.mark.parametrize(("height", "width"), [(256 * 18, 256 * 30), (700, 810), (256 * 40, 256 * 3)])
@pytest.mark.parametrize("count", [48, 227])
def test_the_parts_of_a_sample_make_up_the_whole(height: int, width: int, count: int) -> None:
    tiles = grid(height, width)
    assert sum(part for _, part in sample(tiles, count)) == tiles.rows * tiles.cols


def test_a_sample_of_unequal_parts_is_not_biased() -> None:
    """18 rows in 12 parts: every third row is drawn always, the others half of the time."""
    tiles, cost = grid(256 * 18, 256 * 30), np.where(np.arange(18) % 3 == 0, 9.0, 1.0)
    drawn = sample(tiles, 227)
    assert np.mean([cost[key.row] for key, _ in drawn]) > 1.1 * cost.mean()
    weighed = sum(cost[key.row] * part for key, part in drawn) / sum(part for _, part in drawn)
    assert weighed == pytest.approx(cost.mean(), rel=0.03)


def test_the_error_of_a_sample_is_that_of_its_total() -> None:
    """On random fields, nine of ten totals lie within 1.645 standard errors."""
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        sums = random.gamma(2.0, 50.0, 64)
        inside += abs(sums.mean() / 100 - 1) < 1.645 * _error(sums, np.ones(64))
    assert 0.85 < inside / 400 < 0.95


def test_the_error_of_a_slope_across_the_scene_is_small() -> None:
    assert _error(np.linspace(1, 9, 64), np.ones(64)) < 0.01


def test_a_crossing_is_found_on_a_curve_and_beyond_its_ends() -> None:
    qs = np.array([1000, 2000, 3000])
    sizes = np.exp(np.array([1.0, 2.0, 4.0]))
    for q, log in ((1500, 1.5), (2500, 3.0), (500, 0.5), (3500, 5.0)):
        assert _crossing(qs, sizes, math.exp(log)) == pytest.approx(q)
    assert _crossing(qs, sizes, 1e30) == Q_MAX


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half fields, a quarter noise, a quarter flat: windows differ by a factor of a hundred."""
    pixels = landscape(1536, 2048)
    random = np.random.default_rng(1)
    pixels[768:, :1024] = random.integers(0, 255, (768, 1024, 3))
    pixels[768:, 1024:] = 90
    return write_scene(tmp_path_factory.mktemp("forecast") / "scene.tif", pixels)


def run(scene: Path, out: Path, **options: Any) -> Any:
    return compression.compress(scene, out, **{"model": "tiny", "tile": 512, "workers": 1, **options})


@pytest.fixture(params=["tiles", "windows"])
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of sampling: the tiles of a small scene, and windows, as in a large one."""
    if request.param == "windows":
        monkeypatch.setattr(_forecast, "SMALL", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("bpp", [0.1, 0.25])
def test_a_rate_that_is_asked_for_is_met(scene: Path, tmp_path: Path, bpp: float) -> None:
    result: Result = run(scene, tmp_path / "a.ditic", bpp=bpp)
    assert result.bpp == pytest.approx(bpp, rel=0.05)


def test_a_rate_between_two_qualities_that_lie_apart_is_met_too(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", landscape(512, 512))
    low, high = (run(scene, tmp_path / f"{quality}.ditic", quality=quality).bpp for quality in (42, 43))
    assert high / low > 1.02
    result: Result = run(scene, tmp_path / "a.ditic", bpp=math.sqrt(low * high))
    assert result.bpp == pytest.approx(math.sqrt(low * high), rel=0.005)
    with open_archive(tmp_path / "a.ditic") as found:
        assert q_of_quality(42) < found.manifest.q < q_of_quality(43) and found.manifest.quality in (42, 43)
    assert run(scene, tmp_path / "a.ditic", bpp=math.sqrt(low * high)).resumed == result.shards


@pytest.mark.parametrize("name", ["a.ditic.zip", pytest.param("a.ditic", marks=pytest.mark.slow)])
def test_a_size_that_is_asked_for_is_met(scene: Path, tmp_path: Path, name: str) -> None:
    run(scene, tmp_path / name, size=50_000)
    files = [tmp_path / name] if name.endswith("zip") else [p for p in (tmp_path / name).rglob("*") if p.is_file()]
    assert sum(file.stat().st_size for file in files) == pytest.approx(50_000, rel=0.05)


@pytest.mark.parametrize("name", ["a.ditic.zip", "a.ditic"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_what_an_archive_holds_beside_records_is_known_before(tmp_path: Path, name: str, nodata: int | None) -> None:
    """So that a size is met by a small archive too, of which metadata are a quarter."""
    pixels = landscape(300, 600)
    pixels[:90, :200] = 0
    source = write_scene(tmp_path / "scene.tif", pixels, nodata=nodata)
    archive = tmp_path / name
    result: Result = run(source, archive, tile=256, quality=40)
    files = [archive] if name.endswith("zip") else [path for path in archive.rglob("*") if path.is_file()]
    with open_archive(archive) as found:
        expected = compression._fixed(found.manifest, archive)
    assert expected == pytest.approx(sum(file.stat().st_size for file in files) - result.bytes, abs=200)


@pytest.mark.usefixtures("sampled")
def test_what_a_dry_run_expects_comes(scene: Path, tmp_path: Path) -> None:
    expected: Estimate = run(scene, tmp_path / "a.ditic", quality=40, dry_run=True)
    result: Result = run(scene, tmp_path / "a.ditic", quality=40)
    assert expected.bytes_low <= result.bytes <= expected.bytes_high
    psnr = compare.compare(scene, tmp_path / "a.ditic", workers=1).psnr
    assert psnr is not None and expected.psnr_low is not None and expected.psnr_high is not None
    assert expected.psnr_low <= psnr <= expected.psnr_high
    assert expected.seconds_low <= expected.seconds <= expected.seconds_high


def test_a_dry_run_says_the_quality_a_rate_leads_to_and_the_rate_is_met(scene: Path, tmp_path: Path) -> None:
    expected: Estimate = run(scene, tmp_path / "a.ditic", bpp=0.2, dry_run=True)
    assert expected.bpp == pytest.approx(0.2, rel=0.05)
    result: Result = run(scene, tmp_path / "a.ditic", bpp=0.2)
    assert result.quality == expected.quality
    assert result.bpp == pytest.approx(0.2, rel=0.05)


def test_more_than_the_scene_needs_gives_the_best(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path / "a.ditic", bpp=60, dry_run=True).quality == 100


@pytest.mark.parametrize("size", [9000, 100])
def test_less_than_the_scene_needs_is_refused_with_what_it_does(scene: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{size} bytes .* needs at quality 1, \d+ of them for metadata and preview"
    ):
        run(scene, tmp_path / "a.ditic", size=size)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_the_scene_cannot_have_is_refused_with_the_one_it_can(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(0\.0001 bits per pixel\) .* needs at quality 1; give it more"):
        run(scene, tmp_path / "a.ditic", bpp=0.0001)


@pytest.mark.parametrize(
    "options", [{"quality": 5, "bpp": 1}, {"bpp": 1, "size": 5000}, {"bpp": 0}, {"size": 0}, {"quality": 0}]
)
def test_contradictions_are_refused(scene: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run(scene, tmp_path / "a.ditic", **options)


def test_a_first_sample_that_leads_astray_does_not_lead_to_an_end() -> None:
    """Where the curve is flat below and steep above, straight lines lead from each end to the other."""
    curve = {0: 100.0, 9000: 110.0, 9900: 2000.0, 11088: 9000.0}
    tiles = 16

    def code(count: int, qs: tuple[int, ...], *, render: bool = False) -> list[_forecast.Probed]:
        sizes = np.exp(np.interp(qs, list(curve), np.log(list(curve.values()))))
        if len(qs) == len(_forecast.LADDER):  # the first tiles are not like the others
            sizes = sizes**0.3
        return [_forecast.Probed(pixels=2**16, sizes=tuple(round(size) for size in sizes))] * tiles

    forecaster = _forecast.Forecaster.__new__(_forecast.Forecaster)
    forecaster._grid = forecaster._windows = grid(1024, 1024)
    forecaster._small, forecaster._count = True, tiles
    forecaster._beside = 0
    forecaster._code = code  # type: ignore[method-assign]
    for target in (4_000, 9_000, 20_000, 40_000, 60_000, 120_000):
        (one, *_) = code(tiles, (forecaster.q_for(target),))
        assert tiles * one.sizes[0] == pytest.approx(target, rel=0.05)


def test_a_rate_of_a_masked_scene_of_small_tiles_is_met(tmp_path: Path) -> None:
    """Indexes of masks and sizes of chunks are a tenth of it."""
    pixels = landscape(768, 768)
    pixels[:90, :200] = 0
    scene = write_scene(tmp_path / "scene.tif", pixels, nodata=0)
    low: Result = run(scene, tmp_path / "low.ditic", tile=256, quality=10)
    result: Result = run(scene, tmp_path / "a.ditic", tile=256, bpp=1.1 * low.bpp)
    assert result.bpp == pytest.approx(1.1 * low.bpp, rel=0.02)
