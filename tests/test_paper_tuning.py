"""Fine-tuning of ditic-0.6b: bits that gradients pass through, adapters that merge, runs that fall, stop and go on."""

from __future__ import annotations

import builtins
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from critics import write_features
from paper_weights import reduced
from pictures import landscape, write_scene
from torch import nn
from typer.testing import CliRunner

import ditic_stream
from ditic_stream.cli import app
from ditic_stream.errors import CheckpointError, ConfigError, WeightsError
from ditic_stream.models import folder
from ditic_stream.models.paper import backbones, tables, tuned, weights_file
from ditic_stream.models.paper.entropy import FactorisedPrior
from ditic_stream.models.paper.network import PaperNetwork
from ditic_stream.training.paper import adapters, rate
from ditic_stream.training.paper.config import TuneConfig
from ditic_stream.training.paper.objective import show
from ditic_stream.training.paper.run import Tuner, trainable
from ditic_stream.training.train import TrainConfig

NAME, TUNED = "ditic-0.6b:q3", "ditic-0.6b:mine"


# Rate


def test_bits_of_a_gaussian_are_those_of_its_mass_and_far_values_still_pull() -> None:
    residual = torch.tensor([0.0, 0.4, -1.0, 3.0, -20.0, 0.0, 5.0], dtype=torch.float64)
    scale = torch.tensor([0.01, 0.5, 1.0, 2.0, 10.0, 300.0, 0.2], dtype=torch.float64)
    for x, s, found in zip(residual, scale, rate.gaussian_bits(residual, scale), strict=True):
        spread = max(float(s), 0.11) * math.sqrt(2)
        edges = [(abs(float(x)) + side * 0.5) / spread for side in (1, -1)]
        mass = (math.erfc(edges[1]) - math.erfc(edges[0])) / 2
        assert float(found) == pytest.approx(-math.log2(mass), rel=1e-6, abs=1e-6)
    far = torch.tensor([400.0], requires_grad=True)
    narrow = torch.tensor([0.05], requires_grad=True)
    bits = rate.gaussian_bits(far, narrow)
    bits.sum().backward()
    assert far.grad is not None and narrow.grad is not None and bool(bits.isfinite())
    assert float(far.grad) > 0 > float(narrow.grad)  # closer, and wider though below the bound


def test_a_bound_lets_gradients_through_only_where_they_lead_up() -> None:
    x = torch.tensor([0.5, 0.5, 2.0, 2.0], requires_grad=True)
    (rate.AtLeast.apply(x, 1.0) * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.tolist() == [0, -1, 1, -1]


def test_bits_of_the_prior_are_those_of_its_tables() -> None:
    prior = FactorisedPrior()
    with torch.no_grad():
        for number, bias in enumerate(prior.biases):
            bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(number))
    rate.set_tails(prior)
    arrays = {f"codec.entropy_bottleneck.{k}": v.numpy() for k, v in prior.state_dict().items()}
    counts, low = tables.prior_rows(arrays)[7]
    symbols = torch.arange(-20, 21)
    z = torch.zeros(1, 160, 1, len(symbols)) + symbols + prior.medians.detach()
    found = rate.prior_bits(prior, z)[0, 7, 0].detach().numpy()
    np.testing.assert_allclose(found, -np.log2(counts[symbols.numpy() - low] / 65536), atol=0.02)


def test_tails_leave_a_billionth_outside_and_medians_stay() -> None:
    prior = FactorisedPrior()
    with torch.no_grad():
        prior.quantiles[3] += 2.0
    before = prior.medians.detach().clone()
    rate.set_tails(prior)
    assert torch.equal(prior.medians.detach(), before)
    tails = prior.quantiles.detach()[:, 0, ::2].double()
    outside = torch.sigmoid(rate.prior_logits(prior, tails[:, None])[:, 0].detach() * torch.tensor([1.0, -1.0]))
    np.testing.assert_allclose(outside.numpy(), 0.5e-9, rtol=1e-3)


def test_rounding_has_the_gradient_of_none_and_noise_stays_within_half_a_step() -> None:
    x = torch.tensor([0.4, 1.6, -2.5], requires_grad=True)
    rate.rounded(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1] and rate.rounded(x).tolist() == [0, 2, -2]
    random = torch.Generator().manual_seed(0)
    assert float((rate.noisy(x, random) - x).detach().abs().max()) <= 0.5
    assert torch.equal(rate.noisy(x, None), rate.rounded(x))


# Adapters


class Two(nn.Module):
    """The two large networks without what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.vae = backbones.autoencoder(reduced())
        self.DiT = backbones.transformer(reduced())

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(4)
        noisy, tokens = torch.randn(1, 32, 4, 6, generator=random), torch.randn(1, 77, 24, generator=random)
        return backbones.velocity(self.DiT, noisy, tokens, 999), backbones.decode_latent(self.vae, noisy, 0.4)


@pytest.fixture
def two() -> Two:
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    pytest.importorskip("peft", reason="the extra `finetune` is not installed")
    return Two().requires_grad_(False).eval()


@torch.no_grad()
def test_adapters_change_nothing_at_first_and_merge_into_what_they_became(two: Any) -> None:
    plain, names = two(), list(two.state_dict())
    adapters.add(two, 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(two(), plain, strict=True))
    random = torch.Generator().manual_seed(6)
    for parameter in adapters.adapted(two).values():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    adapted = two()
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(adapted, plain, strict=True))
    tensors = adapters.merged(two)
    assert list(tensors) == names
    again: Any = Two().requires_grad_(False).eval()
    again.load_state_dict(tensors)
    for found, wanted in zip(again(), adapted, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_adapters_stand_beside_matrices_of_blocks_and_decoder_alone(two: Any) -> None:
    found = adapters.places(two)
    assert "transformer_blocks.0.attn2.to_k" in found["DiT"] and "transformer_blocks.0.ff.conv_point" in found["DiT"]
    assert "transformer_blocks.0.ff.conv_depth" not in found["DiT"] and "proj_out" not in found["DiT"]
    assert "decoder.conv_out" in found["vae"] and not any(name.startswith("encoder") for name in found["vae"])
    assert not any("to_qkv_multiscale" in name and "proj_out" in name for name in found["vae"])


def test_the_same_seed_draws_the_same_adapters_and_leaves_the_global_state_alone(two: Any) -> None:
    before = torch.get_rng_state()
    adapters.add(two, 2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    other: Any = Two().requires_grad_(False)
    adapters.add(other, 2, seed=9)
    ours, theirs = adapters.adapted(two), adapters.adapted(other)
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


def test_without_peft_the_error_says_what_to_install(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"needs peft.*pip install 'ditic-stream\[finetune\]'"):
        adapters.add(two, 2, seed=0)


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "ditic-0.6b"], "name the set of ditic-0.6b to tune"),
        (["--model", "ditic-0.6b:q3", "--start", "small"], "names a set to start from, and so does"),
        (["--model", "ditic-0.6b:q3", "--even-levels"], "--even-levels is of the package's own networks"),
        (["--model", "ditic-0.6b:q3", "--without", "dit"], "--without is of the package's own networks"),
        (["--model", "ditic-0.6b:q3", "--stage", "entropy"], "not one of whole, adversarial"),
        (["--model", "ditic-0.6b:mine"], "says nothing of its rate"),
        (["--model", "tiny", "--rank", "4"], "--rank is of ditic-0.6b"),
        (["--model", "tiny", "--stage", "adversarial"], "the stage adversarial is of ditic-0.6b"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(tmp_path), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 1 and isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_a_seed_is_bounded_at_the_command_and_in_the_settings(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(tmp_path), "--model", NAME, "--seed", str(2**31)])
    assert result.exit_code == 2 and "2147483648 is not in the range 0<=x<=2147483647" in result.output
    for kind, settings in ((TuneConfig, {"start": NAME}), (TrainConfig, {})):
        with pytest.raises(ConfigError, match="seed 2147483648 is outside"):
            kind(data=(), out="", seed=2**31, **settings)
    torch.Generator().manual_seed((2**31 - 1) * 2**32 + 2**32 - 1)  # the largest a step makes of it


def test_the_weight_of_rate_follows_the_released_set() -> None:
    config = TuneConfig(data=(), out="", start=NAME)
    assert config.weight == 0.6 and replace(config, rate_weight=1.5).weight == 1.5


# A run


@pytest.fixture(scope="module")
def settings(models: Path) -> TuneConfig:
    pytest.importorskip("peft", reason="the extra `finetune` is not installed")
    pictures = models / "pictures"
    pictures.mkdir()
    for number in range(3):
        pixels = landscape(300 + 20 * number, 320, seed=number)
        (pictures / f"{number}.png").write_bytes(imagecodecs.png_encode(pixels))
    return TuneConfig(
        data=(str(pictures),), out=str(models / "whole"), start=NAME, steps=3, batch=1, rank=4, threads=1, rate=1e-3
    )


@pytest.fixture(scope="module")
def whole(settings: TuneConfig) -> Tuner:
    """A run of three steps that nobody stopped."""
    tuner = Tuner(settings)
    tuner.train()
    return tuner


@pytest.mark.slow
def test_a_run_lowers_loss_of_held_out_crops(whole: Tuner) -> None:
    first, last = (json.loads(line) for line in (whole.folder / "log.jsonl").read_text().splitlines())
    assert last["step"] == 3 and last["train"].keys() >= {"loss", "mse", "bpp", "distillation"}

    def cost(line: dict[str, Any]) -> float:
        return 4 * 10 ** (-line["validation"]["psnr"] / 10) + 0.6 * float(line["validation"]["bpp"])

    assert cost(last) < 0.98 * cost(first)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(whole: Tuner, settings: TuneConfig) -> None:
    out = replace(settings, out=settings.out + "-stopped")
    Tuner(replace(out, steps=2)).train()
    again = Tuner(out)
    assert again.steps == 2
    again.train()
    for mine, theirs in ((again.trained, whole.trained), (again.averaged, whole.averaged)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    with pytest.raises(ConfigError, match="a run of rank 4, not 5"):
        Tuner(replace(out, rank=5))
    with pytest.raises(ConfigError, match=r"a run of rate weight .*, not 1\.5"):
        Tuner(replace(out, rate_weight=1.5))
    shutil.rmtree(out.out)


@pytest.mark.slow
def test_tuned_weights_are_imported_and_code_a_scene(whole: Tuner, models: Path, tmp_path: Path) -> None:
    path = whole.export(tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match="say what to call the weights"):
        tuned.import_tuned(path)
    result = CliRunner().invoke(app, ["models", "import", str(path), "--name", TUNED])
    assert result.exit_code == 0
    found = folder.find(TUNED)
    assert found is not None and found[1].licence == "not stated by the authors"
    origin = found[1].source["tuned"]
    assert origin["name"] == NAME and origin["steps"] == 3 and origin["sha256"] == folder.find(NAME)[1].sha256  # type: ignore[index]

    # What is coded is what the run saw: the network of the file is the adapted one.
    opened = weights_file.open_file(found[0])
    network = PaperNetwork.of(opened.config, opened.tensors)
    crop = whole.validation[:1]
    with torch.no_grad(), whole.average():
        wanted, seen = show(whole.network, crop, None), show(network, crop, None)
    assert float(seen.bpp) == pytest.approx(float(wanted.bpp), rel=1e-3)
    # A value that is rounded the other way in the one of the two moves a whole cell.
    assert float((seen.pixels - wanted.pixels).square().mean()) < 0.02 * float(wanted.pixels.square().mean())

    write_scene(tmp_path / "scene.tif", landscape(256, 256, seed=5))
    ditic_stream.compress(tmp_path / "scene.tif", tmp_path / "scene.ditic", model=TUNED, tile=256, accept_licence=True)
    pixels = ditic_stream.open(tmp_path / "scene.ditic").read()
    assert pixels.shape == (3, 256, 256)

    # Integers are not believed.
    keep = dict(opened.fixed)
    name = next(one for one in keep if one.endswith("g_c.block.3.bias"))
    bent = weights_file.Checkpoint(
        opened.config, opened.tensors, opened.z, opened.y, opened.scales, {**keep, name: keep[name] + 1}, opened.origin
    )
    with pytest.raises(CheckpointError, match="holds other integers than its weights make: 1 tensors differ"):
        tuned._check_integers("bent", bent)


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first_and_goes_on_too(
    whole: Tuner, settings: TuneConfig, tmp_path: Path
) -> None:
    start = whole.export(tmp_path / "first.safetensors")
    second = replace(
        settings, out=str(tmp_path / "second"), start=str(start), stage="adversarial", rate_weight=0.6, steps=3,
        features=str(write_features(tmp_path / "features.safetensors")),
    )  # fmt: skip
    tuner = Tuner(second)
    tuner.train()
    line = json.loads((tuner.folder / "log.jsonl").read_text().splitlines()[-1])
    assert line["train"].keys() >= {"likeness", "texture", "told_apart"}
    stopped = Tuner(replace(second, out=str(tmp_path / "stopped")))
    stopped.step()
    stopped._save()
    again = Tuner(stopped.config)
    again.train()
    assert again.adversary is not None and tuner.adversary is not None
    judges = [list(one.adversary.twins[0].parameters()) for one in (tuner, again)]  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*judges, strict=True))
    assert all(torch.equal(tensor, again.trained[name]) for name, tensor in tuner.trained.items())
    assert tuner.origin["before"]["name"] == NAME and tuner.origin["licence"] == "not stated by the authors"


@pytest.mark.slow
def test_what_is_tuned_is_adapters_latent_codec_and_projector(whole: Tuner) -> None:
    names = trainable(whole.network)
    assert not any(name.startswith("aux_codec") or ".encoder." in name for name in names)
    assert all(adapters.MARK in name for name in names if name.startswith(("vae.", "DiT.")))
    assert "codec.g_a.pre1.0.weight" in names and "prompter.pattern" in names
    assert "codec.entropy_bottleneck.quantiles" not in names


@pytest.mark.slow
def test_a_released_set_is_no_tuned_one(models: Path, tmp_path: Path) -> None:
    found = folder.find(NAME)
    assert found is not None
    (tmp_path / "q3.safetensors").symlink_to(found[0])
    with pytest.raises(WeightsError, match="does not say what it was tuned from"):
        tuned.import_tuned(tmp_path / "q3.safetensors", name=TUNED + "2")
    assert folder.find(TUNED + "2") is None
