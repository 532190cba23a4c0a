"""OME-Zarr: ome-zarr-models accepts it, zarr reads the pixels, levels lie where they belong, units are those stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import zarr
from test_cog import GEO, picture, write

from ditic_stream import _ome_output
from ditic_stream._ome import pixel_size
from ditic_stream.errors import ConfigError, StorageError

UM = "micrometer"
DEGREES = {"code": 34735, "kind": 3, "values": [1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326]}


def text(words: str) -> dict[str, Any]:
    return {"code": 270, "kind": 2, "text": words}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("samples", "height", "width"), [(1, 1, 1), (3, 1100, 601), (5, 37, 1100), (2, 300, 9000)])
def test_the_models_accept_it_and_zarr_reads_the_pixels(
    tmp_path: Path, dtype: str, samples: int, height: int, width: int
) -> None:
    pixels = picture(samples, height, width, dtype)
    write(tmp_path / "a.ome.zarr", pixels, lossy="by x")
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert type(image).__module__.startswith("ome_zarr_models.v05")
    np.testing.assert_array_equal(group["0"][...], pixels)
    assert group.attrs["ditic_lossy"] == "by x" and group.attrs["proj:code"] == "EPSG:32633"
    sizes = [(height, width)]
    while max(sizes[-1]) > 512:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    assert [group[str(level)].shape for level in range(len(sizes))] == [(samples, *size) for size in sizes]
    assert len(list(group.members())) == len(sizes)


def test_levels_are_means_and_lie_where_their_pixels_do(tmp_path: Path) -> None:
    pixels = picture(3, 1200, 1024)
    write(tmp_path / "a.ome.zarr", pixels)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    means = np.rint(pixels.reshape(3, 600, 2, 512, 2).mean(axis=(2, 4)))
    np.testing.assert_array_equal(group["1"][...], means)
    (entry,) = group.attrs["ome"]["multiscales"]
    assert [(axis["name"], axis.get("unit")) for axis in entry["axes"]] == [("c", None), ("y", "meter"), ("x", "meter")]
    assert entry["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1, 10, 10]}]
    assert entry["datasets"][2]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1, 40, 40]}, {"type": "translation", "translation": [0, 15, 15]},
    ]  # fmt: skip
    assert [channel["color"] for channel in group.attrs["ome"]["omero"]["channels"]] == ["FF0000", "00FF00", "0000FF"]


def test_the_mask_is_a_label_image_with_as_many_levels(tmp_path: Path) -> None:
    pixels, mask = picture(3, 1100, 601), np.where(picture(1, 1100, 601)[0] > 90, 255, 0).astype(np.uint8)
    write(tmp_path / "a.ome.zarr", pixels, mask)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert ome_zarr_models.open_ome_zarr(group).labels is not None
    labels = ome_zarr_models.open_ome_zarr(group["labels/mask"])
    assert type(labels).__name__ == "ImageLabel"
    np.testing.assert_array_equal(group["labels/mask/0"][...], mask)
    four = np.pad(mask, ((0, 0), (0, 1)), mode="edge").reshape(550, 2, 301, 2)
    np.testing.assert_array_equal(group["labels/mask/1"][...], four.max(axis=(1, 3)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], (1, 1, None)),
        (GEO, (10, 10, "meter")),
        ([*GEO[:2], DEGREES], (10, 10, None)),
        ([text('<OME><Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.25" SizeX="9"/></OME>')], (0.25, 0.5, UM)),
        ([text('<OME><Pixels PhysicalSizeX="2" PhysicalSizeXUnit="nm" PhysicalSizeY="3" PhysicalSizeYUnit="nm"/>')],
         (3, 2, "nanometer")),
        ([text('<OME><Pixels PhysicalSizeX="-2" PhysicalSizeY="3"/></OME>')], (1, 1, None)),
        ([text("Aperio Image |AppMag = 20|MPP = 0.499")], (0.499, 0.499, UM)),
        ([{"code": 282, "kind": 5, "values": [20000, 1]}, {"code": 283, "kind": 5, "values": [40000, 1]},
          {"code": 296, "kind": 3, "values": [3]}], (0.25, 0.5, UM)),
        ([{"code": 282, "kind": 5, "values": [72, 1]}, {"code": 283, "kind": 5, "values": [72, 1]},
          {"code": 296, "kind": 3, "values": [2]}], (1, 1, None)),
        ([text("ImageJ=1.53\nunit=micron\n"), {"code": 282, "kind": 5, "values": [4, 1]},
          {"code": 283, "kind": 5, "values": [4, 1]}], (0.25, 0.25, UM)),
    ],
)  # fmt: skip
def test_the_size_of_a_pixel_is_the_one_the_source_states(fields: list[dict[str, Any]], expected: tuple[Any]) -> None:
    assert pixel_size({"fields": fields}) == pytest.approx(expected)


def test_an_ome_zarr_is_replaced_when_asked_and_another_folder_never(tmp_path: Path) -> None:
    write(tmp_path / "a.ome.zarr", picture(1, 700, 600))
    with pytest.raises(ConfigError, match="--overwrite"):
        write(tmp_path / "a.ome.zarr", picture(1, 30, 40))
    write(tmp_path / "a.ome.zarr", picture(1, 30, 40), overwrite=True)
    assert zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["0"].shape == (1, 30, 40)
    (tmp_path / "a.ome.zarr" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not an output"):
        write(tmp_path / "a.ome.zarr", picture(1, 30, 40), overwrite=True)
    assert (tmp_path / "a.ome.zarr" / "mine.txt").exists()


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_ome_output.OmeZarrOutput, "_shards", full)
    with pytest.raises(StorageError, match="make room"):
        write(tmp_path / "a.ome.zarr", picture(1, 600, 600))
    assert list(tmp_path.iterdir()) == []
