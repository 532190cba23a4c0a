"""The codec's one face: pixels to record and back, on one device always the same."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pictures import landscape

from ditic_stream.bitstream import CODED, Record
from ditic_stream.codec import TileCodec, load_codec
from ditic_stream.config import Q_MAX
from ditic_stream.entropy import Coded
from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.geometry import TileKey, cells
from ditic_stream.metrics import psnr
from ditic_stream.models.names import FOLDER


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    return load_codec("tiny")


def _record(coded: Coded) -> Record:
    return Record(
        kind=CODED, key=TileKey(0, 0), archive_id=bytes(8), lanes_log2=coded.lanes_log2, words=coded.words,
        escapes=coded.escapes, coded=coded.coded, symbols_crc=coded.symbols_crc,
    )  # fmt: skip


def _there_and_back(codec: TileCodec, pixels: np.ndarray, q: int) -> tuple[int, np.ndarray]:
    groups, _, height, width = pixels.shape
    coded = codec.encode(pixels, (slice(0, height), slice(0, width)), q)
    latent = codec.decode_symbols(_record(coded), groups, cells(height), cells(width), q)
    return len(coded.words), codec.render(latent.values, latent.scales, q, (0, 0))[:, :, :height, :width]


def _pixels(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(landscape(height, width).transpose(2, 0, 1)[None], np.float32) / np.float32(255)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 33), (64, 64), (100, 257)])
def test_any_size_comes_back_in_its_size(codec: TileCodec, shape: tuple[int, int]) -> None:
    pixels = _pixels(*shape)
    _, decoded = _there_and_back(codec, pixels, 80)
    assert decoded.shape == pixels.shape and np.isfinite(decoded).all()


def test_more_quality_costs_more_and_is_nearer(codec: TileCodec) -> None:
    pixels = _pixels(256, 256)
    sizes, nearness = [], []
    for q in range(0, Q_MAX + 1, Q_MAX // 4):
        size, decoded = _there_and_back(codec, pixels, q)
        sizes.append(size)
        nearness.append(psnr(pixels[0], decoded[0], peak=1.0))
    assert sizes == sorted(sizes) and nearness == sorted(nearness)


def test_core_of_a_window_is_all_that_is_coded(codec: TileCodec) -> None:
    pixels = _pixels(192, 192)
    coded = codec.encode(pixels, (slice(32, 96), slice(64, 192)), 5000)
    latent = codec.decode_symbols(_record(coded), 1, 2, 4, 5000)
    assert latent.values.shape[2:] == (2, 4)


def test_groups_of_bands_are_coded_one_by_one(codec: TileCodec) -> None:
    one, other = _pixels(64, 96), _pixels(64, 96)[:, :, ::-1].copy()
    _, both = _there_and_back(codec, np.concatenate([one, other]), 70)
    for single, part in ((one, both[:1]), (other, both[1:])):
        assert np.array_equal(_there_and_back(codec, single, 70)[1], part)


def test_archive_of_one_process_decodes_the_same_in_another_codec_object(codec: TileCodec) -> None:
    pixels = _pixels(96, 96)
    assert np.array_equal(_there_and_back(codec, pixels, 40)[1], _there_and_back(load_codec("tiny-1"), pixels, 40)[1])


def test_bad_calls_say_what_is_wrong(codec: TileCodec, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"q 11089 is outside 0\.\.11088"):
        codec.encode(_pixels(32, 32), (slice(0, 32), slice(0, 32)), Q_MAX + 1)
    with pytest.raises(ConfigError, match="no weights are named 'huge'"):
        load_codec("huge")
    with pytest.raises(ConfigError, match="device 'nonsense'"):
        load_codec("tiny", device="nonsense")


def test_damaged_weights_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = (FOLDER / "tiny-1.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_codec(str(path))


def test_many_bands_are_coded_without_a_second_copy_of_them(codec):
    pixels = np.repeat(_pixels(512, 512), 20, axis=0)
    tracemalloc.start()  # numpy's memory; that of torch is not seen, and is of one group at a time
    codec.encode(pixels, (slice(0, 64), slice(0, 64)), 5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes / 2
