"""What a run trains on: pictures and scenes as the codec sees them, from folders, tar files and lists."""

from __future__ import annotations

import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from pictures import landscape

from ditic_stream.archive import open_archive
from ditic_stream.compare import compare
from ditic_stream.compression import compress
from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.models.folder import hash_of
from ditic_stream.models.own import import_set, is_set
from ditic_stream.radiometry import survey
from ditic_stream.reader import open_source
from ditic_stream.regions import decompress
from ditic_stream.summary import weight_sets
from ditic_stream.training import train
from ditic_stream.training.scenes import load_pictures
from ditic_stream.training.settings import TrainConfig
from ditic_stream.training.train import run


def sensor(height: int, width: int, bands: int = 4, seed: int = 0) -> np.ndarray:
    """A made-up 16-bit scene (bands, rows, columns) of 12-bit levels above an offset."""
    grey = landscape(height, width, seed=seed).astype(np.float64)
    mixed = [grey[..., band % 3] * (0.6 + 0.1 * band) for band in range(bands)]
    return (np.stack(mixed) * 12 + 300).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, nodata: str | None = None) -> Path:
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    form = {"planarconfig": "separate"} if len(pixels) > 1 else {}
    pixels = pixels if len(pixels) > 1 else pixels[0]
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="minisblack", extratags=tags, **form)
    return path


def test_an_ordinary_picture_comes_as_it_is_from_folder_tar_and_list(tmp_path: Path) -> None:
    pixels = landscape(300, 320, seed=1)
    (tmp_path / "folder").mkdir()
    picture = tmp_path / "folder/one.png"
    picture.write_bytes(imagecodecs.png_encode(pixels))
    (tmp_path / "folder/notes.md").write_text("no picture")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(picture, "deep/one.png")
    (tmp_path / "list.txt").write_text("# scenes of spring\n\nfolder/one.png\n" + str(picture) + "\n")
    expected = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    for given, count in (("folder", 1), ("all.tar", 1), ("list.txt", 2)):
        found = load_pictures([tmp_path / given])
        assert len(found) == count and all(torch.equal(one, expected) for one in found)


def test_a_scene_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    scene = write(tmp_path / "some/slide.svs", sensor(300, 310, bands=3))
    for name in ("some/big.btf", "some/wrong.png", "some/unknown.xyz"):
        (tmp_path / name).write_bytes(scene.read_bytes())
    assert len(load_pictures([tmp_path / "some"])) == 3
    assert len(load_pictures([tmp_path / "some/unknown.xyz"])) == 1  # asked for by its name


def test_16_bit_bands_come_in_threes_stretched_as_the_codec_does(tmp_path: Path) -> None:
    pixels = sensor(400, 500)
    write(tmp_path / "scene.tif", pixels)
    with tarfile.open(tmp_path / "scenes.tar", "w") as tar:
        tar.add(tmp_path / "scene.tif", "scene.tif")
    first, second = load_pictures([tmp_path / "scene.tif"])
    assert first.shape == second.shape == (3, 400, 500)
    assert torch.equal(second[0], second[1]) and torch.equal(second[0], second[2])  # the fourth band, three times
    with open_source(tmp_path / "scene.tif") as source:
        maps = survey(source).bands
    for band, found in enumerate((first[0], first[1], first[2], second[0])):
        expected = np.clip((pixels[band] - maps[band].offset) / maps[band].scale, 0, 1) * 255
        assert np.abs(expected - found.numpy()).max() < 0.51 and int(found.max()) - int(found.min()) > 200
    again = load_pictures([tmp_path / "scenes.tar"])
    assert all(torch.equal(a, b) for a, b in zip(again, (first, second), strict=True))


def test_floats_with_nan_and_masks_are_taken_where_they_are_valid(tmp_path: Path) -> None:
    pixels = sensor(1100, 1100, bands=1).astype(np.float32) / 7
    pixels[:, :, :300] = np.nan
    pixels[:, 600, 700] = np.nan  # one dead pixel costs nothing
    write(tmp_path / "scene.tif", pixels)
    found = load_pictures([tmp_path / "scene.tif"])
    assert sum(one.shape[1] * one.shape[2] for one in found) > 0.4 * 1100 * 1100
    assert max(one.shape[2] for one in found) == 512  # every window of 1024 px has some of the missing columns
    spans = [int(one.max()) - int(one.min()) for one in found]
    assert min(spans) > 20  # a filled window would be flat


def test_nodata_is_left_out_and_a_scene_of_nothing_else_is_refused(tmp_path: Path) -> None:
    pixels = sensor(300, 600, bands=3)
    pixels[:, :, 200:] = 0
    write(tmp_path / "scene.tif", pixels, nodata="0")
    with pytest.raises(ConfigError, match="valid pixels"):
        load_pictures([tmp_path / "scene.tif"])


def test_more_than_the_memory_holds_is_drawn_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.tif", sensor(1024, 2048, bands=1, seed=number))
    every = load_pictures([tmp_path])
    assert len(every) == 6
    budget = 3.5 * 3 * 1024 * 1024 / 1e9
    some, again, other = (load_pictures([tmp_path], budget, seed) for seed in (1, 1, 2))
    assert len(some) == 3 and all(any(torch.equal(one, whole) for whole in every) for one in some)
    assert all(torch.equal(a, b) for a, b in zip(some, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(some, other, strict=True))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        load_pictures([tmp_path / "nothing"])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(SourceError, match=r"broken\.png"):
        load_pictures([tmp_path])


def pictures_in(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(imagecodecs.png_encode(landscape(260, 270, seed=number)))
    return folder


@pytest.mark.parametrize("data", [b"", b"\0\5\x16\7", b"GIF89a"])
@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.webp"])
def test_a_file_that_is_no_picture_is_named_with_its_folder_among_good_ones(
    tmp_path: Path, name: str, data: bytes
) -> None:
    bad = pictures_in(tmp_path / "some", "a.png") / name
    bad.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        load_pictures([tmp_path])
    assert str(caught.value).startswith(f"{bad} is no PNG, JPEG or WebP")


def test_what_macos_lays_beside_files_is_passed_over_in_folders_and_tars(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "some", "a.png")
    (folder / "._a.png").write_bytes(b"\0\5\x16\7")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(folder, "some")
    assert len(load_pictures([folder])) == len(load_pictures([tmp_path / "some.tar"])) == 1


def test_what_is_given_and_cannot_be_trained_on_is_not_passed_over(tmp_path: Path) -> None:
    good = pictures_in(tmp_path / "some", "a.png")
    for name, given in (("x.tgz", "x.tgz"), ("scene.jp2", "scene.jp2"), ("list.txt", "scene.jp2")):
        (tmp_path / name).write_text("some\nscene.jp2\n" if name == "list.txt" else "")
        with pytest.raises(SourceError, match=rf"{given} is no folder, no list .* unpack or convert"):
            load_pictures([good, tmp_path / name])


@pytest.mark.parametrize("how", ["none", "cut", "packed"])
def test_a_tar_that_is_none_or_cut_off_or_compressed_is_named(tmp_path: Path, how: str) -> None:
    good = pictures_in(tmp_path / "some", "a.png", "b.png")
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w:gz" if how == "packed" else "w") as tar:
        tar.add(good, "some")
    if how != "packed":
        path.write_bytes(path.read_bytes()[:200_000] if how == "cut" else b"no tar")
    with pytest.raises(SourceError, match=r"all\.tar is no whole, uncompressed tar"):
        load_pictures([path])


def test_a_damaged_scene_in_a_tar_is_named_and_not_its_temporary_file_alone(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", sensor(300, 300))
    scene.write_bytes(scene.read_bytes()[:100])
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(scene, "deep/scene.tif")
    with pytest.raises(SourceError, match=r"all\.tar: deep/scene\.tif"):
        load_pictures([tmp_path / "all.tar"])


def test_lists_may_name_lists_but_not_themselves_and_are_utf8(tmp_path: Path) -> None:
    pictures_in(tmp_path / "some", "a.png")
    (tmp_path / "inner.lst").write_bytes(b"\xef\xbb\xbfsome\r\n# spring\r\n")
    (tmp_path / "outer.txt").write_text("inner.lst\nsome/a.png\ninner.lst\n")
    assert len(load_pictures([tmp_path / "outer.txt"])) == 3
    (tmp_path / "inner.lst").write_text("outer.txt\n")
    with pytest.raises(SourceError, match=r"outer\.txt is a list that leads to itself"):
        load_pictures([tmp_path / "outer.txt"])
    (tmp_path / "inner.lst").write_bytes("sch\xf6n.png\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"inner\.lst is a list that is not in UTF-8"):
        load_pictures([tmp_path / "outer.txt"])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A 16-bit scene, and weights from a few steps on it from a published set, as docs/train.md has it."""
    folder = tmp_path_factory.mktemp("sensor")
    scene = write(folder / "scene.tif", sensor(384, 512), nodata="0")
    config = TrainConfig(
        data=(str(folder),), out=str(folder / "run"), model="tiny", start="tiny", steps=2, batch=1, threads=1, rate=1e-4
    )
    with pytest.MonkeyPatch.context() as few:
        few.setattr(train, "VALIDATION_CROPS", 2)  # each report codes them at four levels
        return scene, run(config)


def test_an_agency_fits_the_codec_to_its_sensor_and_codes_with_it(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITIC_MODELS", str(tmp_path / "models"))
    scene, weights = fitted
    import_set(weights, name="mine")
    archive = tmp_path / "scene.ditic"
    compress(scene, archive, model="mine", quality=60)
    with open_archive(archive) as opened:
        model = opened.manifest.model
    assert model.name == "mine" and model.weights == hash_of(weights)
    psnr = compare(scene, archive).psnr
    assert psnr is not None and psnr > 45  # of 65535; the scene's own range is a twentieth of it


def test_an_archive_coded_with_a_file_opens_once_that_is_imported_under_any_name(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITIC_MODELS", str(tmp_path / "models"))
    scene, weights = fitted
    archive = tmp_path / "scene.ditic"
    compress(scene, archive, model=str(weights), quality=60)
    with pytest.raises(ConfigError, match="models import"):
        decompress(archive, tmp_path / "back.tif")
    import_set(weights, name="mine")
    decompress(archive, tmp_path / "back.tif")


def test_a_set_of_ones_own_is_listed_and_needs_a_name_of_its_own(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITIC_MODELS", str(tmp_path / "models"))
    _, weights = fitted
    for name in (None, "small", "tiny-1", "a:b"):
        with pytest.raises(ConfigError, match="needs a name"):
            import_set(weights, name=name)
    import_set(weights, name="mine")
    assert "mine" in [found["name"] for found in weight_sets()]
    with pytest.raises(ConfigError, match="--overwrite"):
        import_set(weights, name="mine")
    assert is_set(weights) and not is_set(tmp_path / "none.safetensors")
