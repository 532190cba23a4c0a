"""The rate-quality benchmark takes any folder, and its contact sheets compare at equal bytes."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pictures import landscape, write_scene
from rate_quality import SETTINGS, Bytes, at_bytes, classical, kinds, pictures_of


def test_a_folder_may_hold_gray_16_bit_and_many_bands_in_folders_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    pixels = landscape(260, 300)
    (tmp_path / "colour.jpg").write_bytes(imagecodecs.jpeg_encode(pixels))
    (tmp_path / "gray.png").write_bytes(imagecodecs.png_encode(pixels[..., 0].copy()))
    (tmp_path / "small.png").write_bytes(imagecodecs.png_encode(pixels[:100].copy()))
    (tmp_path / "notes.md").write_text("no picture")
    write_scene(tmp_path / "deep/bands.tif", np.repeat(pixels[..., :1], 5, 2).astype(np.uint16) * 9)
    found = pictures_of([tmp_path])
    assert [one.name for one in found] == ["colour.jpg", "bands.tif:0", "bands.tif:1", "gray.png"]
    for one in found:
        assert one.pixels().shape == (260, 300, 3) and one.pixels().dtype == np.uint8
        assert np.ptp(one.pixels()) > 100
    (tmp_path / "gray.png").rename(tmp_path / "deep/colour.jpg")
    with pytest.raises(SystemExit, match="rename one"):
        pictures_of([tmp_path])
    with pytest.raises(SystemExit, match="no pictures"):
        pictures_of([])


def test_kinds_go_by_names_or_by_what_is_said() -> None:
    names = ["sat_a.png", "aerial_b.png", "c.png"]
    assert kinds(names) == {"earth observation": names[:2], "photos": names[2:]}
    assert kinds(names, earth_only=True) == {"earth observation": names}


@pytest.mark.parametrize("codec", ["jpeg2000", "webp"])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_a_setting_is_found_that_meets_a_rate(codec: str, rate: float) -> None:
    pixels = landscape(256, 256)

    def encode(setting: float) -> tuple[float, Bytes]:
        size, decoded = classical(codec, pixels, setting)
        return 8 * size / 256**2, decoded

    points = [{"setting": setting, "bpp": encode(setting)[0]} for setting in SETTINGS[codec]]
    bpp, decoded = at_bytes(encode, points, rate, whole=False)
    assert bpp == pytest.approx(rate, rel=0.04)
    assert decoded.shape == pixels.shape
    for far in (1e-4, 50.0):
        assert at_bytes(encode, points, far, whole=False)[0] in {point["bpp"] for point in points}


def test_whole_settings_stay_whole() -> None:
    asked: list[float] = []

    def encode(setting: float) -> tuple[float, Bytes]:
        asked.append(setting)
        return 2 ** (setting / 8), np.zeros((1, 1, 3), np.uint8)

    points = [{"setting": float(q), "bpp": 2 ** (q / 8)} for q in (0, 8, 16)]
    assert at_bytes(encode, points, 3.0, whole=True)[0] == pytest.approx(3.0, rel=0.05)
    assert all(setting == int(setting) for setting in asked) and len(asked) == len(set(asked))
