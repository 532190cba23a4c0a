"""Training: it starts as a codec, gets better, goes on after a stop, and exports what the codec loads."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagecodecs
import pytest
import torch
from critics import write_features
from pictures import landscape

from ditic_stream.codec import load_codec
from ditic_stream.errors import ConfigError, WeightsError
from ditic_stream.models.config import PRESETS, Q_STEPS
from ditic_stream.models.network import Network
from ditic_stream.models.weights import load_weights
from ditic_stream.training import train
from ditic_stream.training.data import Crops, load_pictures
from ditic_stream.training.evaluation import block_ratios, smooth_pictures
from ditic_stream.training.init import principal_start
from ditic_stream.training.losses import colour_error, flat_border_error, squared_error, structure_loss
from ditic_stream.training.objective import Critics, Terms, low_rate_share, whole_objective
from ditic_stream.training.perceptual import Features
from ditic_stream.training.settings import TrainConfig
from ditic_stream.training.start import space_levels, start_from
from ditic_stream.training.train import Trainer, run


@pytest.fixture(autouse=True)
def few_validation_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each report codes them at four levels."""
    monkeypatch.setattr(train, "VALIDATION_CROPS", 4)


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
    settings: dict[str, object] = {"start": "tiny", "threads": 2, "licence": "CC-BY-SA-4.0"}
    run(tiny_run(pictures, tmp_path / "run", steps=2, **settings))
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert first["step"] == 2
    again = Trainer(tiny_run(pictures, tmp_path / "run", steps=3, **settings))
    assert again.steps == 2
    again.train()
    assert again.steps == 3
    codec = load_codec(str(tmp_path / "run" / "weights.safetensors"))
    assert codec.info.config["latent"] == PRESETS["tiny"].latent
    assert codec.info.licence == "CC-BY-SA-4.0"


def test_a_folder_that_holds_another_run_is_refused_before_pictures_are_read(pictures: Path, tmp_path: Path) -> None:
    steps(first := Trainer(tiny_run(pictures, tmp_path / "run", steps=2, threads=1)), 1)
    first._save()
    assert Trainer(tiny_run(pictures, tmp_path / "run", steps=4, threads=2)).steps == 1
    for other in ({"model": "small"}, {"without": ("dit",)}, {"seed": 1}, {"start": "tiny"}, {"levels": (0.0, 5.0)}):
        with pytest.raises(ConfigError, match=f"holds a run of another {next(iter(other))} .* another folder"):
            Trainer(tiny_run(tmp_path / "nothing", tmp_path / "run", steps=2, **other))


def test_reports_come_after_so_many_seconds_of_training_however_long_they_take(pictures: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_run(pictures, tmp_path / "run", steps=20, threads=1, report=0.2))
    reported = []

    def step(pool: object, part: float) -> torch.Tensor:
        time.sleep(0.02)
        trainer.steps += 1
        return torch.zeros(4)

    def report(parts: object) -> None:
        time.sleep(0.3)
        reported.append(trainer.steps)

    with pytest.MonkeyPatch.context() as slow:
        slow.setattr(trainer, "_step", step)
        slow.setattr(trainer, "_report", report)
        trainer.train()
    assert reported[0] == 0 and reported[-1] == 20
    assert len(reported) <= 7


def test_levels_that_are_trained_are_a_range_of_those_there_are() -> None:
    assert TrainConfig(data=("x",), out="y", levels=(2, 7)).levels == (2, 7)
    for levels in ((-1.0, 7.0), (3.0, 3.0), (0.0, 8.0)):
        with pytest.raises(ConfigError, match="levels"):
            TrainConfig(data=("x",), out="y", levels=levels)


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="model 'huge'"):
        TrainConfig(data=("x",), out="y", model="huge")
    with pytest.raises(ConfigError, match="side 300"):
        TrainConfig(data=("x",), out="y", side=300)
    with pytest.raises(ConfigError, match="batch 3"):
        TrainConfig(data=("x",), out="y", batch=3)


def steps(trainer: Trainer, count: int) -> None:
    with ThreadPoolExecutor(len(trainer.replicas)) as pool:
        for _ in range(count):
            trainer._step(pool, trainer._part())


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(pictures: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"start": "tiny", "steps": 2, "terms": Terms(adversarial=0.5)}
    whole = Trainer(tiny_run(pictures, tmp_path / "whole", **settings))
    steps(whole, 2)
    stopped = Trainer(tiny_run(pictures, tmp_path / "stopped", **settings))
    steps(stopped, 1)
    stopped._save()
    again = Trainer(tiny_run(pictures, tmp_path / "stopped", **settings))
    steps(again, 1)
    for network in ("network", "averaged"):
        one, other = (getattr(trainer, network).state_dict() for trainer in (whole, again))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def tiny_run(pictures: Path, out: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "data": (str(pictures),), "out": str(out), "model": "tiny", "batch": 2, "threads": 2, "report": 1e9,
        "rate": 1e-3, **changes,
    }  # fmt: skip
    return TrainConfig(**settings)  # type: ignore[arg-type]


def test_a_run_goes_on_from_a_published_set_as_that_set_codes(pictures: Path) -> None:
    """Floats read off the integer networks predict what the integers do: the same bits, to a percent."""
    network = Network(PRESETS["tiny"]).eval()
    start_from(network, load_weights("tiny"))
    codec = load_codec("tiny")
    x = Crops(load_pictures([pictures]), 256, 3).batch(1)
    for level in (4, 7):
        coded = codec.encode(x.numpy(), (slice(0, 256), slice(0, 256)), level * Q_STEPS)
        with torch.no_grad():
            expected = network.codec(network.encoder(x), torch.full((1,), float(level)))
        bits = float(expected.bits_y + expected.bits_z)
        assert bits == pytest.approx(8 * (len(coded.words) + len(coded.escapes)), rel=0.03)


def test_a_set_of_other_widths_is_no_start() -> None:
    with pytest.raises(WeightsError, match="widths"):
        start_from(Network(PRESETS["small"]), load_weights("tiny"))


WIDER = {"c16": 80, "passing": 16, "latent": 160, "enc16": 2}


def test_a_wider_network_starts_as_the_set_it_starts_from_and_codes_what_that_drops(pictures: Path) -> None:
    narrow, wide = Network(PRESETS["tiny"]).eval(), Network(replace(PRESETS["tiny"], **WIDER)).eval()
    start_from(narrow, load_weights("tiny"))
    crops = Crops(load_pictures([pictures]), 256, 3)
    start_from(wide, load_weights("tiny"), crops.batch(24))
    x = crops.batch(8)
    with torch.no_grad():
        features, more = narrow.encoder(x), wide.encoder(x)
        torch.testing.assert_close(more[:, :128], features)
        low, high = torch.full((8,), 2.0), torch.full((8,), 7.0)
        coded, recoded = narrow.codec(features, low), wide.codec(more, low)
        torch.testing.assert_close(recoded.noisy[:, :128], coded.noisy)
        torch.testing.assert_close(recoded.spread[:, :128], coded.spread)
        assert float(recoded.bits_y.sum()) < 1.05 * float(coded.bits_y.sum())
        (before, less, _, _), (after, bits, _, _) = narrow(x, high), wide(x, high)
    assert float(bits.bits_y.sum()) > 1.02 * float(less.bits_y.sum())
    assert float(squared_error(x, after).mean()) < float(squared_error(x, before).mean())
    old, drawn = narrow.decoder.split8.weight, wide.decoder.split8.weight
    assert torch.equal(drawn[:, :64], old) and float(drawn[:, 64:].detach().abs().min()) > 0
    # What is added tells a good part of what was missed, of crops it was not chosen from.
    lost = torch.nn.functional.pixel_unshuffle(x - before, 32).movedim(1, 0).flatten(1).double()
    added = more[:, 128:].movedim(1, 0).flatten(1).double()
    told = torch.linalg.lstsq(added.T, lost.T).solution.T @ added
    assert float((lost - told).square().sum() / lost.square().sum()) < 0.85


def test_a_network_does_not_grow_where_it_would_shrink_or_widen_its_blocks(pictures: Path) -> None:
    crops = Crops(load_pictures([pictures]), 256, 3).batch(1)
    for changes in ({"latent": 96}, {"c16": 80}, {"passing": 16}, {"dim": 80}, {"latent": 160, "dec8": 0}):
        with pytest.raises(WeightsError, match="other widths"):
            start_from(Network(replace(PRESETS["tiny"], **changes)), load_weights("tiny"), crops)


def test_a_run_from_a_narrower_set_codes_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    settings = {"start": "tiny", "changes": WIDER, "rate": 3e-4}
    weights = run(tiny_run(pictures, tmp_path / "run", steps=1, **settings))
    assert load_weights(str(weights)).config.passing == 16
    codec = load_codec("tiny", weights=weights)
    x = Crops(load_pictures([pictures]), 256, 3).batch(1).numpy()
    coded = codec.encode(x, (slice(0, 256), slice(0, 256)), 8000)
    latent = codec.entropy.pull(coded, 1, 8, 8, 8000)
    assert latent.values.shape[1] == 160
    assert codec.render(latent.values, latent.scales, 8000, (0, 0)).shape == (1, 3, 256, 256)
    assert Trainer(tiny_run(pictures, tmp_path / "run", steps=2, **settings)).steps == 1


def test_a_checkpoint_of_other_sizes_is_said_to_be_one(pictures: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_run(pictures, tmp_path, steps=1))
    trainer.network = Network(replace(PRESETS["tiny"], latent=160))
    trainer.averaged = trainer.network
    trainer._save()
    with pytest.raises(ConfigError, match="network of other sizes"):
        Trainer(tiny_run(pictures, tmp_path, steps=1))


def test_the_entropy_stage_moves_what_predicts_symbols_and_nothing_else(pictures: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_run(pictures, tmp_path, start="tiny", stage="entropy", steps=2))
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.train()
    moved = {name for name, tensor in trainer.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("codec.synthesis") for name in moved)
    assert all(name.startswith("codec.") for name in moved) and "codec.log_gain" not in moved


def test_alignments_can_be_left_out_and_what_is_trained_so_codes(pictures: Path, tmp_path: Path) -> None:
    weights = run(tiny_run(pictures, tmp_path / "run", steps=1, without=("variance", "condition")))
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2
    assert imagecodecs.imread(tmp_path / "run/curves.png").std() > 10
    loaded = load_weights(str(weights))
    assert (loaded.config.unguided, loaded.config.unconditioned) == (1, 1)
    assert loaded.licence == "not stated"
    assert not any(".query." in name for name in loaded.tensors)
    codec = load_codec("tiny", weights=weights)
    x = Crops(load_pictures([pictures]), 256, 3).batch(1).numpy()
    coded = codec.encode(x, (slice(0, 256), slice(0, 256)), 6400)
    latent = codec.entropy.pull(coded, 1, 8, 8, 6400)
    assert codec.render(latent.values, latent.scales, 6400, (0, 0)).shape == (1, 3, 256, 256)


def test_condition_tokens_are_in_small_when_asked_for() -> None:
    settings = {"data": ("x",), "out": "y"}
    assert TrainConfig(**settings).architecture.unconditioned == 1  # type: ignore[arg-type]
    asked = TrainConfig(**settings, condition=True).architecture  # type: ignore[arg-type]
    assert asked == replace(PRESETS["small"], unconditioned=0)
    assert any(".query." in name for name in Network(replace(PRESETS["tiny"], unconditioned=0)).state_dict())
    with pytest.raises(ConfigError, match="both asked for and left out"):
        TrainConfig(**settings, condition=True, without=("condition",))  # type: ignore[arg-type]


@pytest.mark.parametrize("wider", [{}, {"latent": 160}, {"c16": 80, "passing": 16}, {"enc16": 2}])
def test_a_start_with_condition_tokens_goes_on_without(pictures: Path, wider: dict[str, int]) -> None:
    weights, without = load_weights("tiny"), Network(replace(PRESETS["tiny"], unconditioned=1, **wider))
    assert weights.config.unconditioned == 0 and any(".query." in name for name in weights.tensors)
    start_from(without, weights, Crops(load_pictures([pictures]), 256, 3).batch(8) if wider else None)
    kept = dict(without.step.named_parameters())
    assert torch.equal(kept["blocks.1.qkv.weight"], weights.tensors["step.blocks.1.qkv.weight"])
    assert not any(".query." in name for name in kept)


def test_the_entropy_stage_does_not_drop_condition_tokens(pictures: Path, tmp_path: Path) -> None:
    without = {"changes": {"unconditioned": 1}, "steps": 1, "start": "tiny"}
    with pytest.raises(ConfigError, match="run the whole stage from it first"):
        Trainer(tiny_run(pictures, tmp_path / "run", stage="entropy", **without))


def test_a_start_without_condition_tokens_cannot_have_them(pictures: Path, tmp_path: Path) -> None:
    started = run(tiny_run(pictures, tmp_path / "run", steps=1, without=("condition",)))
    with pytest.raises(WeightsError, match="unconditioned 1, not 0"):
        start_from(Network(PRESETS["tiny"]), load_weights(str(started)))


def test_without_the_transformer_no_block_is_left(pictures: Path) -> None:
    network = Network(replace(PRESETS["tiny"], depth=0))
    assert not any(name.startswith("step.blocks") for name in network.state_dict())
    assert network(torch.rand(1, 3, 64, 64), torch.zeros(1))[0].shape == (1, 3, 64, 64)


def test_without_the_variance_the_step_is_blind_to_it() -> None:
    random = torch.Generator().manual_seed(0)
    noisy, spread = torch.randn(1, 128, 8, 8, generator=random), torch.rand(1, 128, 8, 8, generator=random)
    for unguided in (0, 1):
        step = Network(replace(PRESETS["tiny"], unguided=unguided)).step
        torch.nn.init.normal_(step.out.weight, std=0.1)
        once, twice = (step(noisy, s, torch.ones(128), (0, 0)) for s in (spread, 2 * spread))
        assert torch.equal(once, twice) == bool(unguided)


def test_parts_that_cannot_be_left_out_are_named() -> None:
    with pytest.raises(ConfigError, match="'colour' is not one of variance"):
        TrainConfig(data=("x",), out="y", without=("colour",))
    with pytest.raises(ConfigError, match="from scratch"):
        TrainConfig(data=("x",), out="y", start="tiny", without=("dit",))
    with pytest.raises(ConfigError, match="off unless it is given a weight"):
        TrainConfig(data=("x",), out="y", start="tiny", without=("distillation",))


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({}, 1e-3), ({"start": "tiny"}, 3e-4), ({"start": "tiny", "stage": "entropy"}, 1e-3), ({"rate": 0.5}, 0.5)],
)
def test_a_trained_set_goes_on_at_a_lower_rate_unless_one_is_said(settings: dict[str, object], rate: float) -> None:
    assert TrainConfig(data=("x",), out="y", **settings).learning_rate == rate  # type: ignore[arg-type]


def test_self_distillation_counts_when_it_is_given_a_weight() -> None:
    network, x = Network(PRESETS["tiny"]), torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    totals = []
    for terms in (Terms(), Terms(distillation=0.05)):
        torch.manual_seed(0)
        totals.append(float(whole_objective(network, x, torch.ones(1), (0, 0), terms)[0].detach()))
    assert totals[0] < totals[1]


def test_a_run_from_when_self_distillation_was_the_default_goes_on_as_it_began(pictures: Path, tmp_path: Path) -> None:
    config = tiny_run(pictures, tmp_path / "run", start="tiny", steps=1)
    Trainer(replace(config, terms=Terms(distillation=0.05)))._save()
    assert Trainer(config).terms.distillation == 0.05
    began = {"without": (), "terms": {"distillation": 0.05}}
    assert train._going_on(Terms(distillation=0.2), began).distillation == 0.2
    assert train._going_on(Terms(), began | {"without": ("distillation",)}).distillation == 0
    assert train._going_on(Terms(), began | {"terms": {"distillation": 0.0}}).distillation == 0


def test_a_licence_is_one_line() -> None:
    for text in ("", " ", "two\nlines", "x" * 201):
        with pytest.raises(ConfigError, match="no line of 1 to 200"):
            TrainConfig(data=("x",), out="y", licence=text)


def test_levels_are_spaced_evenly_in_rate_of_every_crop_alike_and_keep_their_ends(pictures: Path) -> None:
    network = Network(PRESETS["tiny"]).eval()
    start_from(network, load_weights("tiny"))
    noise = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))  # takes more than all others
    x = torch.cat([Crops(load_pictures([pictures]), 256, 3).batch(3), noise])

    def steps() -> torch.Tensor:
        with torch.no_grad():
            features = network.encoder(x)
            coded = [network.codec(features, torch.full((4,), float(level))) for level in range(8)]
        return torch.stack([(one.bits_y + one.bits_z).log().mean() for one in coded]).diff()

    before = steps()
    space_levels(network, x)
    after = steps()
    assert float(before.max() - before.min()) > 0.15
    torch.testing.assert_close(after, torch.full((7,), float(before.mean())), atol=0.03, rtol=0)


def test_levels_to_space_are_those_of_a_set() -> None:
    with pytest.raises(ConfigError, match="name one to start from"):
        TrainConfig(data=("x",), out="y", even_levels=True)


def test_an_entropy_stage_needs_a_start() -> None:
    with pytest.raises(ConfigError, match="entropy from a set"):
        TrainConfig(data=("x",), out="y", stage="entropy")


def test_flat_border_error_weighs_a_step_by_how_flat_it_is_around() -> None:
    flat = torch.full((1, 3, 128, 128), 0.5)
    busy = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    step = (torch.arange(128) // 32 % 2) * (4 / 255)
    on_flat, on_busy = (float(flat_border_error(x, x + step)) for x in (flat, busy))
    assert on_flat > 1000 * on_busy > 0
    assert float(flat_border_error(flat, flat)) == 0


def test_colour_error_sees_a_change_of_hue_and_not_of_brightness() -> None:
    gray = torch.full((1, 3, 64, 64), 0.5)
    tint = torch.tensor([0.02, -0.02, 0.02])[:, None, None]
    assert float(colour_error(gray, gray + 0.05)) < 1e-6 < 1 < float(colour_error(gray, gray + tint))


def test_pictures_smaller_than_a_crop_are_left_out(pictures: Path) -> None:
    loaded = load_pictures([pictures])
    with pytest.raises(ConfigError, match="512 x 512"):
        Crops(loaded, 512, 0)


def test_sets_from_before_a_field_keep_their_description() -> None:
    assert "context" not in PRESETS["tiny"].to_json() and PRESETS["small"].to_json()["context"] == 64


def test_a_fine_tune_for_perception_is_logged_and_keeps_its_adversary(pictures: Path, tmp_path: Path) -> None:
    features = write_features(tmp_path / "features.safetensors")
    terms = Terms(perceptual=0.1, adversarial=0.5)
    config = tiny_run(pictures, tmp_path / "run", start="tiny", features=str(features), terms=terms, steps=2)
    first = Trainer(config)
    first.train()
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert line["train"]["perceptual"] > 0 and line["train"]["apart"] > 0
    again = Trainer(replace(config, steps=3))
    assert first.adversary is not None and again.adversary is not None
    for mine, kept in zip(first.adversary.twins[0].parameters(), again.adversary.twins[0].parameters(), strict=True):
        assert torch.equal(mine, kept)


def test_terms_of_perception_with_no_weight_change_nothing(pictures: Path, tmp_path: Path) -> None:
    network = Network(PRESETS["tiny"])
    start_from(network, load_weights("tiny"))
    x = Crops(load_pictures([pictures]), 256, 3).batch(1)
    critics = Critics(features=Features(write_features(tmp_path / "features.safetensors")))
    totals = []
    for weight, judges in ((0.0, Critics()), (0.0, critics), (0.1, critics)):
        torch.manual_seed(0)
        totals.append(
            float(whole_objective(network, x, torch.ones(1), (0, 0), Terms(perceptual=weight), judges)[0].detach())
        )
    assert totals[0] == totals[1] < totals[2]


def test_perception_counts_at_low_rates() -> None:
    shares = low_rate_share(torch.tensor([0.0, 2.0, 4.0, 7.0]))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.5, 1 / 17, 0.00662]), atol=1e-4, rtol=0)


def test_terms_of_perception_need_their_file_and_pixels() -> None:
    with pytest.raises(ConfigError, match="name a features file"):
        TrainConfig(data=("x",), out="y", terms=Terms(perceptual=0.1))
    with pytest.raises(ConfigError, match="belongs to `whole`"):
        TrainConfig(data=("x",), out="y", start="tiny", stage="entropy", terms=Terms(adversarial=0.5))
