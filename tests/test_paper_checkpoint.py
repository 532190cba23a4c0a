"""The authors' checkpoints: `models import`, `list` and `export`, on files made on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paper_weights import reduced
from pictures import landscape, write_scene
from safetensors import safe_open
from safetensors.torch import save_file

from ditic_stream import cli
from ditic_stream.errors import CheckpointError, ConfigError, FormatError, StorageError, WeightsError
from ditic_stream.models import folder
from ditic_stream.models.paper import checkpoint, layout, network, seeded, tables, weights_file
from ditic_stream.models.paper.config import PaperConfig
from ditic_stream.rans import TOTAL, Tables

Tensors = dict[str, torch.Tensor]
PRIOR, GAUSSIAN = "codec.entropy_bottleneck.", "codec.gaussian_conditional."


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder of the test's own, emptied after it: a reduced file has 300 MB."""
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "models"))
    yield tmp_path / "models"
    shutil.rmtree(tmp_path / "models", ignore_errors=True)


@pytest.fixture(scope="module")
def config() -> PaperConfig:
    """Backbones of a few thousand parameters; what lies between them has its full size all the same."""
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    return reduced()


@pytest.fixture(scope="module")
def shapes(config: PaperConfig) -> dict[str, tuple[int, ...]]:
    return network.shapes_of(config)


def released(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    """Seeded tensors as a released file holds them: bfloat16, second names on the same tensor."""
    drawn = {
        name: tensor.bfloat16() if name not in layout.TABLES else tensor
        for name, tensor in seeded.draw(
            {name: shape for name, shape in shapes.items() if not layout.alias_of(name)}, seed
        )
    }
    return {name: drawn[layout.alias_of(name) or name] for name in shapes}


@pytest.fixture(scope="module")
def tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Read only."""
    return released(shapes, 11)


@pytest.fixture(scope="module")
def file(tensors: Tensors, config: PaperConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file as the authors release them, with something of training beside the model; config.json lies beside it."""
    path = tmp_path_factory.mktemp("released") / "q3_merge_ema.pt"
    torch.save({**tensors, "loss.logvar": torch.zeros(1), "loss.lpips.weight": torch.ones(3)}, path)
    path.with_name("config.json").write_text(config.to_json())
    yield path
    path.unlink()


@pytest.mark.slow
def test_imported_weights_are_the_files_own_values_and_give_the_same_network(
    file: Path, tensors: Tensors, config: PaperConfig, models_folder: Path
) -> None:
    path, record = checkpoint.import_checkpoint(file, config=config)
    assert path == models_folder / "ditic-0.6b" / "q3.safetensors" and record.name == "ditic-0.6b:q3"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256 and path.stat().st_size == record.size
    assert record.source["file"] == file.name and record.source["left_out"] == 2
    assert record.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record.source["tables"] == "built"
    assert sorted(one.name for one in path.parent.iterdir()) == ["q3.json", "q3.safetensors"], "nothing is left over"

    found = checkpoint.load("ditic-0.6b:q3", check=True)
    assert found.config == config
    assert {name for name in tensors if layout.used(name)} == set(found.tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors.items())
    built = network.PaperNetwork.of(found.config, found.tensors)
    assert built.codec.g_s.synthesis_transform[4].weight.dtype == torch.float32
    Tables.from_arrays(found.y.counts, found.y.sizes, found.y.lows)
    assert len(found.z.sizes) == 160 and len(found.y.sizes) == len(found.scales) == 64

    # The file is one the library reads, and depends neither on the day, nor on the name, nor on what was left out.
    with safe_open(path, "pt") as opened:
        assert torch.equal(opened.get_tensor("prompter.pattern"), tensors["prompter.pattern"])
    other = file.with_name("other.pt")
    torch.save({"state_dict": dict(reversed(tensors.items())), "step": 5}, other)
    _, again = checkpoint.import_checkpoint(other, name="ditic-0.6b:again", config=config)
    other.unlink()
    assert again.sha256 == record.sha256 and again.source["sha256"] != record.source["sha256"]


def test_the_command_imports_lists_exports_and_imports_the_bundle_elsewhere(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, "models", "import", file, "--config", file.with_name("config.json"), "--json")
    assert code == 0, err
    assert "licence: not stated by the authors" in err and "SANA" in err
    sha = json.loads(out)["sha256"]

    code, out, err = run(capsys, "models", "import", file, "--config", file.with_name("config.json"))
    assert code == 1 and "--overwrite" in err and not out

    code, out, _ = run(capsys, "models", "list", "--json")
    listed = {one["name"]: one for one in map(json.loads, out.splitlines())}
    assert code == 0 and listed["ditic-0.6b:q3"]["sha256"] == sha and "small-6" in listed
    assert listed["ditic-0.6b:q3"]["source"]["file"] == "q3_merge_ema.pt"
    code, out, _ = run(capsys, "models", "list")
    assert [line for line in out.splitlines() if line.startswith("ditic-0.6b:q3") and "not stated" in line]

    bundle = tmp_path / "q3.zip"
    code, out, err = run(capsys, "models", "export", "ditic-0.6b:q3", bundle, "--json")
    assert code == 0 and json.loads(out)["bytes"] == bundle.stat().st_size, err
    code, _, err = run(capsys, "models", "export", "ditic-0.6b:q3", bundle)
    assert code == 1 and "--overwrite" in err

    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "models" / "elsewhere"))
    code, out, err = run(capsys, "models", "import", bundle, "--json")
    assert code == 0 and json.loads(out)["sha256"] == sha, err
    assert checkpoint.load("ditic-0.6b:q3", check=True).config.caption == 24
    assert folder.find("ditic-0.6b:q3")[1].source["file"] == "q3_merge_ema.pt"  # type: ignore[index]
    bundle.unlink()


def test_all_that_differs_is_said(tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    assert checkpoint.differences(tensors, shapes) == []
    wrong: dict[str, Any] = dict(tensors)
    del wrong["prompter.pattern"]
    wrong["vae.decoder.conv_out.bias"] = torch.zeros(4)
    wrong["DiT.proj_out.bias"] = torch.full((32,), float("nan"))
    wrong["codec.g_a.pre1.0.bias"] = torch.zeros(128, dtype=torch.int32)
    wrong["codec.g_a.pre1.0.scale"] = torch.zeros(1)
    wrong["aux_codec.analysis_transform.0.bias"] = [0.0] * 192
    wrong["DiT.scale_shift_table"] = torch.zeros(2, 16, device="meta")
    assert checkpoint.differences(wrong, shapes) == [
        "DiT.proj_out.bias holds values that are not finite",
        "DiT.scale_shift_table has no values",
        "aux_codec.analysis_transform.0.bias is a list, not a plain tensor",
        "codec.g_a.pre1.0.bias is of int32, not float32 or bfloat16 or float16",
        "codec.g_a.pre1.0.scale is unknown",
        "prompter.pattern is missing; it is 1x29x320",
        "vae.decoder.conv_out.bias is 4, not 3",
    ]


def test_two_names_of_one_tensor_have_to_agree(tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    name = "codec.aux.block.2.up.0.bias"
    wrong = {**tensors, name: tensors[name] + 1}
    assert checkpoint.differences(wrong, shapes) == [
        f"{name} and codec.aux.block.2.branch1.0.bias differ; they are two names of one tensor"
    ]


def with_tables(tensors: Tensors) -> Tensors:
    """The same checkpoint, saved after CompressAI had built its tables: the very ones that import would build."""
    z, y, scales = tables.tables_of(weights_file.table_arrays(tensors))
    stored: Tensors = {GAUSSIAN + "scale_table": torch.from_numpy(scales)}
    for prefix, flat in ((PRIOR, z), (GAUSSIAN, y)):
        rows = np.split(flat.counts, np.cumsum(flat.sizes)[:-1])
        cdf = np.zeros((len(rows), flat.sizes.max() + 1), np.int32)
        for row, counts in zip(cdf, rows, strict=True):
            row[1 : len(counts) + 1] = np.cumsum(counts)
        stored[prefix + "_quantized_cdf"] = torch.from_numpy(cdf)
        stored[prefix + "_cdf_length"] = torch.from_numpy(flat.sizes + 1)
        stored[prefix + "_offset"] = torch.from_numpy(flat.lows)
    return {**tensors, **stored}


def test_tables_of_a_checkpoint_are_taken_as_they_are(tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    full = with_tables(tensors)
    assert checkpoint.differences(full, shapes) == []
    arrays = weights_file.table_arrays(full)
    made = tables.tables_of(weights_file.table_arrays(tensors))
    for built, taken in zip(made, tables.tables_of(arrays), strict=True):
        if isinstance(built, np.ndarray):
            np.testing.assert_array_equal(built, taken)
        else:
            assert Tables.from_arrays(built.counts, built.sizes, built.lows) == Tables.from_arrays(
                taken.counts, taken.sizes, taken.lows
            )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (PRIOR + "_quantized_cdf", lambda t: t[:-1], "not 160 of them"),
        (GAUSSIAN + "_quantized_cdf", lambda t: t + 1, "row 0 does not rise from 0"),
        (GAUSSIAN + "_cdf_length", lambda t: t + 9000, "lengths outside"),
        (GAUSSIAN + "_offset", lambda t: t[:0], "not 64 of them"),
        (GAUSSIAN + "scale_table", lambda t: t.flip(0), "no 64 rising widths"),
        (GAUSSIAN + "scale_table", lambda t: t[:-1], "no 64 rising widths"),
        (PRIOR + "quantiles", lambda t: t.flip(2) * 1e30, "quantiles"),
    ],
)
def test_tables_that_are_none_are_refused(tensors: Tensors, name: str, change: Any, words: str) -> None:
    full = with_tables(tensors)
    if name.endswith("quantiles"):
        full = dict(tensors)  # they count only where tables are built
    full[name] = change(full[name])
    with pytest.raises(ValueError, match=words):
        tables.tables_of(weights_file.table_arrays(full))


def test_built_tables_follow_the_gaussian_and_lose_next_to_nothing() -> None:
    for scale in (0.11, 0.5, 3.0, 256.0):
        counts, low = tables.gaussian_row(scale)
        values = np.arange(low, low + len(counts) - 1)
        assert counts.sum() == TOTAL == tables.TOTAL and counts.min() >= 1 and low == -values[-1]
        assert np.abs(counts[:-1] - counts[-2::-1]).max() <= 1  # the last of the rest may go to one side
        mass = tables._normal((values + 0.5) / scale) - tables._normal((values - 0.5) / scale)
        coded = -(mass * np.log2(counts[:-1] / TOTAL)).sum()
        ideal = -(mass[mass > 0] * np.log2(mass[mass > 0])).sum()
        # Of the widest table's 3132 counts most are in the tails, and 1 where their share is less: 0.029 bits.
        assert 0 <= coded - ideal < (0.03 if scale > 100 else 0.0003)


def test_a_partial_file_is_refused_with_the_list_of_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models_folder: Path
) -> None:
    shapes = layout.official()
    some = {name: shapes[name] for name in ("DiT.proj_out.bias", "prompter.pattern", "vae.encoder.conv_in.bias")}
    tensors = {**seeded.seeded(some), "vae.encoder.conv_in.bias": torch.zeros(64)}
    path = tmp_path / "q1_merge_ema.pt"
    torch.save(tensors, path)
    code, out, err = run(capsys, "models", "import", path)
    assert code == 1 and err.startswith("ditic-stream: checkpoint: q1_merge_ema.pt is not a whole checkpoint")
    assert "1489 differences" in err and len(err.splitlines()) == 1
    lines = out.splitlines()
    assert len(lines) == 1489 and "vae.encoder.conv_in.bias is 64, not 128" in lines
    assert "prompter.align.0.bias is missing; it is 2304" in lines
    code, out, _ = run(capsys, "models", "import", path, "--json")
    assert code == 1 and len({json.loads(line)["difference"] for line in out.splitlines()}) == 1489
    assert not models_folder.exists(), "nothing is written before all is checked"
    with pytest.raises(CheckpointError) as caught:
        checkpoint.import_checkpoint(path)
    assert pickle.loads(pickle.dumps(caught.value)).differences == caught.value.differences


class Harm:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_does_something_is_refused_and_does_not(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "q1_merge_ema.pt"
    torch.save({"vae": Harm(tmp_path / "harm")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        checkpoint.import_checkpoint(path)
    assert not (tmp_path / "harm").exists()
    assert "weights_only" not in str(caught.value), "no advice to load it unsafely"


def test_files_that_are_no_checkpoints_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "q1_whole.pt"
    torch.save({"DiT.proj_out.bias": torch.zeros(32)}, whole)
    contents = {
        "empty": b"",
        "text": b"no checkpoint",
        "cut": whole.read_bytes()[:-40],
        "zip": b"PK\x05\x06" + bytes(18),
    }
    for name, data in contents.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        code, out, err = run(capsys, "models", "import", path)
        assert (code, out) == (1, "") and err.startswith("ditic-stream: weights: ") and len(err.splitlines()) == 1, name
    for name, data in {"list": [torch.zeros(1)], "tensor": torch.zeros(2)}.items():
        torch.save(data, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match="not tensors by name"):
            checkpoint.import_checkpoint(tmp_path / f"{name}.pt")
    with pytest.raises(WeightsError, match="is no file"):
        checkpoint.import_checkpoint(tmp_path / "absent.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="1491 differences"):
        checkpoint.import_checkpoint(tmp_path / "other.pt")


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"codec.entropy_bottleneck.quantiles": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    found, _ = checkpoint.read_pickle(tmp_path / "a.pt")
    (tensor,) = found.values()
    assert type(tensor) is torch.Tensor and not tensor.requires_grad


def test_old_files_of_torch_are_read_too(tmp_path: Path) -> None:
    torch.save(
        {"DiT.proj_out.bias": torch.ones(32), "loss.a": 1}, tmp_path / "a.pt", _use_new_zipfile_serialization=False
    )
    found, others = checkpoint.read_pickle(tmp_path / "a.pt")
    assert torch.equal(found["DiT.proj_out.bias"], torch.ones(32)) and others == 1


@pytest.mark.parametrize(
    "name", ["../q3", "ditic-0.6b:../q3", "ditic-0.6b:", "Q3", "a:b:c", "", "ditic-0.6b:q3/x", ":q"]
)
def test_names_that_could_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        folder.place_of(name)
    if name:
        with pytest.raises(ConfigError):
            checkpoint.import_checkpoint(tmp_path / "q3.pt", name=name)


def test_names_follow_the_file() -> None:
    assert checkpoint.default_name(Path("/x/q3_merge_ema.pt")) == "ditic-0.6b:q3"
    assert checkpoint.default_name(Path("Q4.pt")) == "ditic-0.6b:q4"
    with pytest.raises(ConfigError, match="--name"):
        checkpoint.default_name(Path("_.pt"))


def test_the_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert folder.models_folder() == tmp_path / "models"
    monkeypatch.delenv(folder.VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert folder.models_folder() == tmp_path / "ditic-stream" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.models_folder() == tmp_path / ".local" / "share" / "ditic-stream" / "models"


RECORD = folder.Record(name="one:a", sha256="0" * 64, size=3, parameters=1, licence="none")


def keep(data: bytes = b"abc", *, overwrite: bool = False) -> folder.Record:
    with folder.Incoming("one:a", overwrite=overwrite) as incoming:
        incoming.write(data)
        record = replace(RECORD, sha256=incoming.sha256, size=incoming.size)
        incoming.keep(record)
    return record


def test_an_import_that_fails_half_way_leaves_what_was_there(models_folder: Path) -> None:
    first = keep()

    def fail() -> None:
        with folder.Incoming("one:a", overwrite=True) as incoming:
            incoming.write(b"xyz")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.find("one:a") == (models_folder / "one" / "a.safetensors", first)
    assert (models_folder / "one" / "a.safetensors").read_bytes() == b"abc"
    assert len(list((models_folder / "one").iterdir())) == 2
    with pytest.raises(ConfigError, match="--overwrite"):
        keep()
    keep(b"other", overwrite=True)
    assert folder.find("one:a")[1].size == 5  # type: ignore[index]


def test_what_a_killed_import_left_is_swept_by_the_next_and_what_another_writes_is_not(models_folder: Path) -> None:
    script = (
        "import os, signal; from ditic_stream.models import folder; one = folder.Incoming('one:a'); "
        "one.write(b'half'); one.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    left = next((models_folder / "one").glob(".a.safetensors.*.partial"))
    assert left.read_bytes() == b"half" and folder.find("one:a") is None
    with folder.Incoming("one:a") as other:
        other.partial = other.partial.rename(other.partial.with_name(".a.safetensors.7.partial"))
        assert not left.exists()
        keep()
        assert other.partial.exists()
    assert sorted(one.name for one in (models_folder / "one").iterdir()) == ["a.json", "a.safetensors"]


def test_damaged_weights_are_named_by_list_and_not_exported(
    models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep()
    weights = models_folder / "one" / "a.safetensors"
    weights.write_bytes(b"abd")
    with pytest.raises(WeightsError, match="damaged"):
        folder.export(*folder.find("one:a"), tmp_path / "a.zip")  # type: ignore[misc]
    assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".*"))
    weights.write_bytes(b"ab")
    code, out, err = run(capsys, "models", "list")
    assert code == 0 and "one:a" in err and "2 bytes" in err and "damaged" in out
    (models_folder / "one" / "a.json").write_text("{}")
    with pytest.raises(WeightsError, match="no record"):
        folder.find("one:a")
    code, _, err = run(capsys, "models", "export", "one:b")
    assert code == 1 and "import it first" in err


def test_bundles_are_equal_bytes_and_damaged_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep()
    one, two = tmp_path / "1.zip", tmp_path / "2.zip"
    for path in (one, two):
        folder.export(*folder.find("one:a"), path)  # type: ignore[misc]
    assert one.read_bytes() == two.read_bytes() and folder.is_bundle(one)
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "models" / "b"))
    seen = []
    path, record = folder.unpack(one, lambda partial: seen.append(partial.read_bytes()))
    assert seen == [b"abc"] and path.read_bytes() == b"abc" and folder.find("one:a") == (path, record)

    data = one.read_bytes()
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "models" / "c"))
    with zipfile.ZipFile(tmp_path / "3.zip", "w") as bundle:
        bundle.writestr("record.json", record.to_json())
        bundle.writestr("weights.safetensors", b"abd")
        bundle.writestr("LICENCE.txt", "")
    with zipfile.ZipFile(tmp_path / "4.zip", "w") as bundle:
        bundle.writestr("record.json", record.to_json())
    (tmp_path / "5.zip").write_bytes(data.replace(b"abc", b"abd"))
    for name, words in [("3", "sha256"), ("4", "a bundle holds"), ("5", "cannot be read")]:
        with pytest.raises(FormatError, match=words):
            folder.unpack(tmp_path / f"{name}.zip", lambda partial: None)
        assert folder.names() == [] and folder.find("one:a") is None
    # What the check refuses stays out, too: these are no weights of the paper's system.
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        checkpoint.import_bundle(one)
    assert folder.names() == []
    with pytest.raises(ConfigError, match="leave --name out"):
        checkpoint.import_bundle(one, name="ditic-0.6b:q3")


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match="DITIC_MODELS"):
        keep()


def test_other_safetensors_files_are_no_weights_of_the_system(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    (tmp_path / "c.safetensors").write_bytes(b"")
    for name in "abc":
        with pytest.raises(WeightsError, match="cannot be read"):
            checkpoint.open_file(tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="no weights are named"):
        checkpoint.load("ditic-0.6b:q9")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_size_file_is_imported_and_codes_a_picture(tmp_path: Path, ditic: Any) -> None:
    """2.1 GB of bfloat16, as large as a released file; the official names are known without diffusers.  Coding takes
    it: some 6 GB of memory."""
    tensors = released(layout.official(), 0)
    path = tmp_path / "q3_merge_ema.pt"
    try:
        torch.save(tensors, path)
        probe = {name: tensors[name].clone() for name in ("DiT.proj_out.weight", "codec.g_c.block.3.bias")}
        del tensors
        done = ditic("models", "import", path, "--json", timeout=1200)
        assert done.code == 0, done.err
        facts = json.loads(done.out)
        assert facts["name"] == "ditic-0.6b:q3" and facts["bytes"] > 2e9
        assert folder.hash_of(Path(facts["path"])) == facts["sha256"]
        with safe_open(facts["path"], "pt") as file:
            assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in probe.items())
        listed = [json.loads(line) for line in ditic("models", "list", "--json").out.splitlines()]
        assert facts["sha256"] in {one["sha256"] for one in listed}
        pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
        scene, archive = write_scene(tmp_path / "scene.tif", landscape(100, 130)), tmp_path / "scene.ditic"
        done = ditic("compress", scene, archive, "--model", facts["name"], "--accept-licence", "--json", timeout=1200)
        assert done.code == 0, done.err
        done = ditic("decompress", archive, tmp_path / "scene.npy", timeout=1200)
        assert done.code == 0, done.err
        assert np.load(tmp_path / "scene.npy").shape == (100, 130, 3)
    finally:
        path.unlink(missing_ok=True)
