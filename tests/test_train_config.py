"""A run says its settings in a file, and another can be begun with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ditic_stream.cli import app
from ditic_stream.errors import ConfigError
from ditic_stream.training import train
from ditic_stream.training.data import Mix
from ditic_stream.training.objective import Terms
from ditic_stream.training.settings import TrainConfig, read_settings, write_settings


def test_settings_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    config = TrainConfig(
        data=("a", "b"), out="run", model="tiny", without=("dit",), changes={"latent": 96}, minutes=5.5, rate=1e-4,
        levels=(0.0, 5.0), terms=Terms(tone=0.1), crops=Mix(smooth=0.5), licence="CC0-1.0", seed=3,
    )  # fmt: skip
    write_settings(config, tmp_path / "run/config.json")
    assert TrainConfig(**read_settings(tmp_path / "run/config.json")) == config


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"batches": 8}, "'batches' is no setting; there are data, .*batch"),
        ({"terms": {"tones": 1.0}}, "terms: 'tones' is no setting; there are structure"),
        ({"batch": "8"}, "batch '8' is not of the kind of 8"),
        ({"batch": True}, "batch True is not of the kind"),
        ({"data": "x"}, "data 'x' is no list"),
        ({"levels": [0.0]}, r"levels \[0.0\] is no list like"),
        ({"changes": {"latent": 0.5}}, "is no object of whole numbers"),
        ({"rate": "fast"}, "rate 'fast' is neither a number nor null"),
        ([], "is no JSON object"),
    ],
)
def test_what_is_no_setting_or_of_another_kind_is_named(tmp_path: Path, facts: Any, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=said):
        read_settings(tmp_path / "config.json")


def test_what_is_no_json_or_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("batch: 8")
    for name in ("config.json", "none.json"):
        with pytest.raises(ConfigError, match="cannot be read as JSON"):
            read_settings(tmp_path / name)


def test_options_that_are_given_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[TrainConfig] = []

    def run(config: TrainConfig, progress: object, say: object) -> Path:
        taken.append(config)
        (tmp_path / "weights.safetensors").write_text("")
        return tmp_path / "weights.safetensors"

    monkeypatch.setattr(train, "run", run)
    facts = {"data": ["x"], "out": "elsewhere", "model": "tiny", "batch": 4, "seed": 5, "terms": {"tone": 0.1}}
    (tmp_path / "mine.json").write_text(json.dumps(facts))
    options = ["--config", str(tmp_path / "mine.json"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", *options, "--seed", "6", "--distillation", "0.05"])
    assert done.exit_code == 0, done.output
    (config,) = taken
    assert (config.data, config.model, config.batch, config.seed) == (("x",), "tiny", 4, 6)
    assert config.terms == Terms(tone=0.1, distillation=0.05) and config.out == str(tmp_path / "run")
    assert CliRunner().invoke(app, ["train", "y", *options]).exit_code == 0
    assert taken[1].data == ("y",) and taken[1].seed == 5


def test_nothing_to_train_on_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["train", "--out", "nowhere"]).exit_code == 2
