"""Fit the readout that makes small pictures from latents (see _overview), by ridge regression on decoded pixels.

In: a set of weights and pictures.  Out: `ditic_stream/weights/NAME.overview`, and how near it comes on other pictures.

    python -m ditic_stream.training.overview small FOLDER --check FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ditic_stream._overview import PARTS, Readout, save
from ditic_stream.bitstream import CODED, Record
from ditic_stream.codec import TileCodec, load_codec
from ditic_stream.config import Q_MAX
from ditic_stream.geometry import CELL, TileKey
from ditic_stream.models.config import Q_STEPS
from ditic_stream.models.weights import load_weights
from ditic_stream.training.data import Crops, load_pictures

CROPS, SIDE = 240, 512
RIDGE = 1e-5
"""Of the mean square of an input."""
CHECK_QS = tuple(level * Q_STEPS // 2 for level in (1, 5, 8, 11))
"""Half, two and a half, four, and five and a half rate levels."""
Floats = NDArray[np.float64]
Pair = tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]


def decoded(codec: TileCodec, pixels: NDArray[np.float32], q: int) -> Pair:
    """Pixels (3, rows, columns), whole cells, coded at `q`: coarse values (1, channels, h, w), the gain of each, and
    the means (3, rows / 8, columns / 8) of what is rendered, clipped to 0..1 as a file is."""
    height, width = pixels.shape[1:]
    coded = codec.encode(pixels[None], (slice(0, height), slice(0, width)), q)
    record = Record(
        key=TileKey(0, 0), archive_id=bytes(8), kind=CODED, lanes_log2=coded.lanes_log2, coded=coded.coded,
        words=coded.words, escapes=coded.escapes, symbols_crc=coded.symbols_crc,
    )  # fmt: skip
    size = (1, height // CELL, width // CELL, q)
    latent = codec.decode_symbols(record, *size)
    rendered = codec.render(latent.values, latent.scales, q, (0, 0))[0].clip(0, 1)
    part = CELL // PARTS
    means = rendered.reshape(3, height // part, part, width // part, part).mean((2, 4))
    return codec.decode_many([record], *size, coarse=True)[0].values, codec.coarse_gain(q), means


def padded(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Values with a cell more a side, as beyond the edge of a scene."""
    return np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")


def fit(pairs: Iterator[Pair]) -> Floats:
    """The weight of a Readout, (9 channels + 1, 48)."""
    square: Floats | None = None
    product: Floats | None = None
    for values, gain, means in pairs:
        features = padded(values)[0] / (16 * gain[:, None, None])
        _, height, width = features.shape
        near = [features[:, row : row + height - 2, col : col + width - 2] for row in range(3) for col in range(3)]
        inputs = np.concatenate([*near, np.ones((1, height - 2, width - 2))]).reshape(-1, (height - 2) * (width - 2))
        cells = means.reshape(3, height - 2, PARTS, width - 2, PARTS).transpose(0, 2, 4, 1, 3)
        targets = cells.reshape(3 * PARTS**2, -1).astype(np.float64) - 0.5
        more, with_targets = inputs @ inputs.T, inputs @ targets.T
        square = more if square is None else square + more
        product = with_targets if product is None else product + with_targets
    assert square is not None and product is not None
    ridge = RIDGE * np.trace(square) / len(square)
    weight = np.linalg.solve(square + ridge * np.eye(len(square)), product)
    weight[-1] += 0.5
    return np.asarray(weight)


def check(weight: NDArray[np.float16], codec: TileCodec, pictures: list[torch.Tensor]) -> dict[tuple[int, int], float]:
    """PSNR, dB, of the readout against means of decoded pixels, by (q, level), mean over pictures."""
    found: dict[tuple[int, int], list[float]] = {}
    for picture in pictures:
        height, width = (side // CELL * CELL for side in picture.shape[1:])
        pixels = picture[:, :height, :width].numpy().astype(np.float32) / np.float32(255)
        for q in CHECK_QS:
            values, gain, means = decoded(codec, pixels, q)
            for level, parts in ((3, 4), (4, 2), (5, 1)):
                side = PARTS // parts
                shape = (3, height // CELL * parts, side, width // CELL * parts, side)
                error = Readout(weight, gain).means(padded(values), parts) - means.reshape(shape).mean((2, 4))
                found.setdefault((q, level), []).append(-10 * float(np.log10(np.mean(np.square(error)))))
    return {key: float(np.mean(values)) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model or a set of weights")
    parser.add_argument("pictures", nargs="+", type=Path, help="folders, tar files or pictures to fit on")
    parser.add_argument("--check", nargs="*", type=Path, default=[], help="pictures to measure on")
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--out", type=Path, help="the file to write instead of that of the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec, weights = load_codec(options.model), load_weights(options.model)
    crops, random = Crops(load_pictures(options.pictures), SIDE, 5), np.random.default_rng(5)
    batches = (crops.batch(1)[0].numpy() for _ in range(options.crops))
    weight = fit(decoded(codec, pixels, int(random.integers(0, Q_MAX + 1))) for pixels in batches).astype(np.float16)
    path = save(weight, weights.name, weights.sha256, weights.licence, options.out)
    print(f"{path}: {path.stat().st_size} bytes")  # noqa: T201
    if options.check:
        for (q, level), psnr in sorted(check(weight, codec, load_pictures(options.check)).items()):
            print(f"q {q:4d}  level {level}  {psnr:.1f} dB")  # noqa: T201


if __name__ == "__main__":
    main()
