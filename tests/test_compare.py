"""Figures of a scene and its tiles against those of whole arrays.  No network is run: decoded strips are planted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import landscape, write_scene

from ditic_stream import metrics, regions
from ditic_stream.archive import create_archive
from ditic_stream.bitstream import EMPTY, Record, pack_record
from ditic_stream.compare import SceneQuality, TileQuality, compare
from ditic_stream.config import GridConfig
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import Window
from ditic_stream.manifest import Image, Manifest, ModelRef, SourceRef
from ditic_stream.radiometry import planes, survey
from ditic_stream.reader import open_source
from ditic_stream.tiling import Grid


def archive_of(scene: Path, archive: Path, tile: int = 256) -> Path:
    """An archive with true masks and no coded tile: records are EMPTY."""
    with open_source(scene) as source:
        grid = Grid(height=source.height, width=source.width, config=GridConfig(tile=tile, overlap=32))
        radiometry = survey(source)
        manifest = Manifest(
            image=Image(height=source.height, width=source.width, bands=source.bands, dtype=source.dtype),
            radiometry=radiometry.to_json(), grid=grid.config, shard=grid.shard,
            model=ModelRef(name="tiny", config={}, weights="0" * 64, licence="none"), quality=50, q=5488,
            source=SourceRef(name=scene.name, size=source.size, sha256=source.digest(), metadata=source.metadata),
            software="test",
        )  # fmt: skip
        with create_archive(archive, manifest) as writer:
            for shard in grid.shards():
                keys = list(grid.tiles_of(shard))
                records = {
                    key: pack_record(Record(kind=EMPTY, key=key, archive_id=manifest.archive_id)) for key in keys
                }
                masks = None
                if radiometry.planes:
                    masks = {key: planes(source, grid.core(key), radiometry) for key in keys}
                channels, height, width = writer.layout.preview_part(shard)
                writer.put_shard(shard, records, masks, np.zeros((channels, height, width), np.uint8))
            writer.finish()
    return archive


def plant(monkeypatch: pytest.MonkeyPatch, decoded: np.ndarray, rows: int) -> None:
    """Let `regions.strips` give `decoded` (bands, rows, columns) in strips of `rows`."""

    def strips(*_: Any, **__: Any) -> Iterator[tuple[Window, np.ndarray]]:
        for top in range(0, decoded.shape[1], rows):
            part = decoded[:, top : top + rows]
            yield Window(row=top, col=0, height=part.shape[1], width=part.shape[2]), part

    monkeypatch.setattr(regions, "strips", strips)


def noisy(pixels: np.ndarray, scale: float, seed: int = 3) -> np.ndarray:
    limits = np.iinfo(pixels.dtype)
    noise = np.random.default_rng(seed).normal(0, scale, pixels.shape)
    return np.clip(pixels + noise, limits.min, limits.max).round().astype(pixels.dtype)


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A path and its pixels, (bands, rows, columns)."""
    pixels = landscape(619, 845)
    return write_scene(tmp_path / "scene.tif", pixels), pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("rows", [256, 100, 619])
def test_scene_figures_equal_those_of_whole_arrays(
    scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    path, pixels = scene
    decoded = noisy(pixels, 9)
    plant(monkeypatch, decoded, rows)
    found = compare(path, archive_of(path, tmp_path / "a.ditic"))
    assert found.psnr == pytest.approx(metrics.psnr(pixels, decoded, peak=255), rel=1e-12)
    assert found.ms_ssim == pytest.approx(metrics.ms_ssim(pixels, decoded, peak=255), abs=1e-7)
    assert found.max_error == np.abs(pixels.astype(int) - decoded).max()
    assert (found.exact, found.exact_wrong) == (0, 0)


def test_every_tile_is_measured_once_and_the_worst_is_named(
    scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pixels = scene
    decoded = noisy(pixels, 5)
    decoded[:, 300:400, 600:700] = 0  # in tile 1,2
    plant(monkeypatch, decoded, 256)
    tiles: list[TileQuality] = []
    found = compare(path, archive_of(path, tmp_path / "a.ditic"), on_tile=tiles.append)
    assert [tile.tile for tile in tiles] == [f"{row},{col}" for row in range(3) for col in range(4)]
    assert found.worst_tiles[0] == "1,2"
    first = tiles[0]
    assert first.psnr == pytest.approx(metrics.psnr(pixels[:, :256, :256], decoded[:, :256, :256], peak=255))
    assert (first.record_bytes, first.bpp) == (22, 8 * 22 / 256**2)
    assert found.bpp == 8 * found.record_bytes / (619 * 845)


def test_equal_pictures_have_no_psnr_and_ms_ssim_of_one(
    scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pixels = scene
    plant(monkeypatch, pixels, 256)
    found = compare(path, archive_of(path, tmp_path / "a.ditic"))
    assert (found.psnr, found.max_error) == (None, 0)
    assert found.ms_ssim == pytest.approx(1, abs=1e-6)
    assert found.violations(min_psnr=99, max_error=0) == []


def test_nodata_counts_in_no_figure_and_must_come_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = (landscape(300, 400)[..., 0].astype(np.uint16) + 1) * 200
    pixels[50:120, 200:330] = 0
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, metadata=None, extratags=[(42113, "s", 2, "0", True)])
    archive = archive_of(path, tmp_path / "a.ditic")
    decoded = np.where(pixels == 0, 0, noisy(pixels, 300))
    plant(monkeypatch, decoded[None], 256)
    found = compare(path, archive)
    valid = pixels != 0
    mean = np.square(decoded[valid].astype(float) - pixels[valid]).mean()
    assert found.psnr == pytest.approx(10 * np.log10(65535**2 / mean))
    assert (found.exact, found.exact_wrong) == (70 * 130, 0)
    decoded[60, 210] = 7
    plant(monkeypatch, decoded[None], 256)
    wrong = compare(path, archive)
    assert wrong.exact_wrong == 1
    assert wrong.violations() == ["samples of nodata or masks that came back otherwise: 1; none may"]


def test_scene_of_another_shape_is_refused(
    scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pixels = scene
    plant(monkeypatch, pixels, 256)
    other = write_scene(tmp_path / "other.tif", landscape(619, 844))
    with pytest.raises(ConfigError, match="619 x 844 pixels, 3 bands, uint8, the archive 619 x 845"):
        compare(other, archive_of(path, tmp_path / "a.ditic"))


def test_bounds_that_do_not_hold_are_named() -> None:
    found = SceneQuality(
        height=100, width=100, bands=3, dtype="uint8", peak=255, psnr=29.5, rmse=8.5, ms_ssim=None, max_error=40,
        exact=0, exact_wrong=0, bpp=0.1, record_bytes=125, fixed_bytes=10, worst_tiles=(),
    )  # fmt: skip
    assert found.violations(min_psnr=29, max_error=40) == []
    assert found.violations(min_psnr=30, min_ms_ssim=0.9, max_error=39) == [
        "PSNR 29.50 dB is below 30",
        "MS-SSIM needs 161 pixels a side, the scene has 100 x 100",
        "largest error 40 is above 39",
    ]
