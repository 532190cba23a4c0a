"""Training: it starts as a codec, gets better, goes on after a stop, and exports what the codec loads."""

from __future__ import annotations

import json
from pathlib import Path

import imagecodecs
import pytest
import torch
from pictures import landscape

from ditic_stream.codec import load_codec
from ditic_stream.errors import ConfigError
from ditic_stream.models.config import PRESETS
from ditic_stream.models.network import Network
from ditic_stream.training.data import Crops, load_pictures
from ditic_stream.training.evaluation import block_ratios, smooth_pictures
from ditic_stream.training.init import principal_start
from ditic_stream.training.losses import squared_error, structure_loss
from ditic_stream.training.train import TrainConfig, Trainer, run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = landscape(300 + 20 * number, 320, seed=number)
        (folder / f"{number}.png").write_bytes(imagecodecs.png_encode(pixels))
    return folder


def test_linear_start_codes_before_any_training(pictures: Path) -> None:
    crops = Crops(load_pictures([pictures]), 256, 0).batch(16)
    network = Network(PRESETS["tiny"]).eval()
    principal_start(network, crops)
    with torch.no_grad():
        decoded, coded, _, _ = network(crops[:4], torch.full((4,), 6.0))
    assert float(squared_error(crops[:4], decoded).mean()) < 400  # 22 dB
    assert float(coded.bits_y.mean()) / 65536 < 3.0


def test_same_seed_draws_the_same_crops(pictures: Path) -> None:
    loaded = load_pictures([pictures])
    first, again, other = (Crops(loaded, 256, seed).batch(3) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_structure_loss_is_zero_for_equal_and_grows_with_blur() -> None:
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    softer = torch.nn.functional.avg_pool2d(soft, 5, 1, 2)
    losses = [float(structure_loss(x, y).mean()) for y in (x, soft, softer)]
    assert abs(losses[0]) < 1e-5 and losses[0] < losses[1] < losses[2] < 1


def test_block_ratio_finds_a_step_and_only_where_it_is() -> None:
    picture = (smooth_pictures() * 255).round()
    clean = block_ratios(picture)
    assert all(abs(v - 1) < 0.1 for v in clean.values())
    stepped = picture + 3 * (torch.arange(256) // 32 % 2)
    found = block_ratios(stepped)
    assert found["32"] > 1.3 and abs(found["8"] - clean["8"]) < 0.1


def test_training_goes_on_from_its_checkpoint_and_exports(pictures: Path, tmp_path: Path) -> None:
    settings = {
        "data": (str(pictures),),
        "out": str(tmp_path / "run"),
        "model": "tiny",
        "batch": 2,
        "threads": 2,
        "report": 1e9,
    }
    run(TrainConfig(steps=2, **settings))  # type: ignore[arg-type]
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert first["step"] == 2
    again = Trainer(TrainConfig(steps=3, **settings))  # type: ignore[arg-type]
    assert again.steps == 2
    again.train()
    assert again.steps == 3
    codec = load_codec(str(tmp_path / "run" / "weights.safetensors"))
    assert codec.info.config["latent"] == PRESETS["tiny"].latent


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="model 'huge'"):
        TrainConfig(data=("x",), out="y", model="huge")
    with pytest.raises(ConfigError, match="side 300"):
        TrainConfig(data=("x",), out="y", side=300)
    with pytest.raises(ConfigError, match="batch 3"):
        TrainConfig(data=("x",), out="y", batch=3)
