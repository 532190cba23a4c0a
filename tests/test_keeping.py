"""What a run leaves in its folder: whole or not there, and the same each time, whatever kills it or fills the disk."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import imagecodecs
import pytest
import torch
from pictures import landscape
from safetensors import safe_open
from typer.testing import CliRunner

from ditic_stream.cli import app
from ditic_stream.errors import ConfigError, LockedError, StorageError, WeightsError
from ditic_stream.models.config import PRESETS
from ditic_stream.models.network import Network
from ditic_stream.training import train
from ditic_stream.training.curves import draw
from ditic_stream.training.export import export
from ditic_stream.training.keeping import append_line, load_checkpoint, read_lines, save_checkpoint, save_weights
from ditic_stream.training.settings import TrainConfig, read_settings
from ditic_stream.training.train import Trainer

CPU = torch.device("cpu")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_same_weights_give_the_same_bytes_and_a_file_others_may_read(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(5, dtype=torch.bfloat16)}
    metadata = {name: f"of {name}" for name in ("format", "config", "licence", "more", "still more")}
    for number in range(4):
        save_weights(tensors, metadata, tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    (tmp_path / "plain").write_text("")
    assert os.stat(tmp_path / "0").st_mode == os.stat(tmp_path / "plain").st_mode


def test_a_full_disk_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    for name, save in (
        ("checkpoint.pt", lambda value, path: save_checkpoint({"config": {}, "x": value}, path)),
        ("weights.safetensors", lambda value, path: save_weights({"x": value}, {}, path)),
    ):
        save(torch.zeros(10), tmp_path / name)
        earlier = (tmp_path / name).read_bytes()
        with files_up_to(100_000), pytest.raises(StorageError, match=f"{name} cannot be written .* make room"):
            save(torch.zeros(10**6), tmp_path / name)
        assert (tmp_path / name).read_bytes() == earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "weights.safetensors"]


@pytest.mark.parametrize("how", ["empty", "cut", "other", "list"])
def test_a_damaged_checkpoint_is_said_to_be_one(tmp_path: Path, how: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"config": {"model": "tiny"}, "x": torch.zeros(1000)}, path)
    assert load_checkpoint(path, CPU)["config"] == {"model": "tiny"}
    whole = path.read_bytes()
    if how == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:3000], "other": pickle.dumps(Path("x"), 2)}[how])
    with pytest.raises(WeightsError, match=r"checkpoint\.pt cannot be read as a checkpoint .* begin anew") as caught:
        load_checkpoint(path, CPU)
    assert "weights_only" not in str(caught.value)


def test_a_line_of_log_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, {"step": 0})
    with log.open("a") as file:
        file.write('{"step": 1, "sec')
    append_line(log, {"step": 2})
    append_line(log, {"step": 3})
    assert [line["step"] for line in read_lines(log)] == [0, 2, 3]


def test_what_is_no_number_is_null_in_the_log_and_a_gap_in_the_curves(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    log = tmp_path / "log.jsonl"
    for step, value in enumerate((1.0, float("nan"), float("inf"))):
        row = {"bpp": 0.1, "psnr": value, "structure": 0.1, "log_j": value}
        line = {"seconds": 60.0 * step, "train": {"log_j": value}, "validation": [row] * 4, "smooth": [{"32": 1.0}] * 4}
        append_line(log, line)
    lines = [json.loads(line, parse_constant=refuse) for line in log.read_text().splitlines()]
    assert [line["train"]["log_j"] for line in lines] == [1.0, None, None]
    assert draw(log) == tmp_path / "curves.png"


@pytest.mark.parametrize("factor", [float("nan"), 1e20])
def test_a_run_gone_astray_is_not_exported(tmp_path: Path, factor: float) -> None:
    network = Network(PRESETS["tiny"])
    with torch.no_grad():
        for parameter in network.codec.synthesis.parameters():
            parameter.mul_(factor).add_(factor)
    with pytest.raises(WeightsError, match=r"gone astray, .* lower --rate"):
        export(network, [torch.zeros(3, 256, 256, dtype=torch.uint8)], tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())


def pictures(folder: Path, *sides: int) -> Path:
    folder.mkdir()
    for number, side in enumerate(sides):
        (folder / f"{number}.png").write_bytes(imagecodecs.png_encode(landscape(side, side, seed=number)))
    return folder


def settings(data: Path, out: Path, **changes: object) -> TrainConfig:
    common: dict[str, object] = {"model": "tiny", "steps": 1, "batch": 1, "threads": 1, "start": "tiny"}
    return TrainConfig(data=(str(data),), out=str(out), **{**common, **changes})  # type: ignore[arg-type]


def test_pictures_that_judge_are_of_those_as_large_as_a_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "VALIDATION_CROPS", 1)
    data = pictures(tmp_path / "some", 300, 520)
    trainer = Trainer(settings(data, tmp_path / "run", side=512, stage="entropy"))
    assert [tuple(one.shape) for one in trainer.held_out] == [(3, 520, 520)]
    assert len(trainer.training) == 2


def test_a_run_does_not_go_on_at_another_rate_as_if_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "VALIDATION_CROPS", 1)
    data = pictures(tmp_path / "some", 260)
    Trainer(settings(data, tmp_path / "run", rate=1e-4))._save()
    for same in ({"rate": 1e-4}, {}):
        assert Trainer(settings(data, tmp_path / "run", **same)).steps == 0
    with pytest.raises(ConfigError, match=r"another rate \(0\.0001, not 0\.001\)"):
        Trainer(settings(data, tmp_path / "run", rate=1e-3))


def test_a_run_says_what_it_took_and_keeps_others_out_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "VALIDATION_CROPS", 1)
    config, refused = settings(pictures(tmp_path / "some", 260), tmp_path / "run", rate=1e-5), []

    def say(words: str) -> None:
        with pytest.raises(LockedError, match=r"another run \(process \d+\) writes .*run; wait for it"):
            train.run(replace(config, rate=1e-3))
        refused.append(words)

    train.run(config, say=say)
    assert refused
    assert TrainConfig(**read_settings(tmp_path / "run/config.json")) == config
    assert not (tmp_path / "run/run.lock").exists()


@pytest.mark.parametrize(("j", "structure", "won"), [(-2.0, 0.5, True), (-0.9, 0.1, True), (-0.9, 0.5, False)])
def test_a_run_ends_with_what_it_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, j: float, structure: float, won: bool
) -> None:
    def run(config: TrainConfig, *_: object) -> Path:
        for step, *told in ((0, -5.0, 0.0), (9, -6.0, 0.0), (0, -1.0, 0.2), (9, j, structure)):  # an older run first
            rows = [dict(zip(("log_j", "structure"), told, strict=True))] * 4
            append_line(tmp_path / "log.jsonl", {"step": step, "validation": rows})
        save_weights({"x": torch.zeros(1)}, {}, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    monkeypatch.setattr(train, "run", run)
    done = CliRunner().invoke(app, ["train", "x", "--out", str(tmp_path)])
    assert f"J -1.000 at first, {j:.3f} now; structure 0.200 at first, {structure:.3f} now" in done.output
    assert done.exit_code == 0 and ("nothing was won" in done.output) == (not won)


def test_no_training_at_all_is_refused(tmp_path: Path) -> None:
    for nothing in ({"steps": 0, "minutes": 0.0}, {"steps": -1}, {"steps": 0, "minutes": -1.0}):
        with pytest.raises(ConfigError, match="of training are none"):
            settings(tmp_path, tmp_path, **nothing)
    assert settings(tmp_path, tmp_path, minutes=0.0).steps == 1
