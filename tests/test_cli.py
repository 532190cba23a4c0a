"""The command line as a user meets it: verbs, exit codes, one-line errors, progress, JSON.

Most tests run the real command in a process of its own; those of messages alone run `main` in this one.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command import fresh
from pictures import landscape, write_scene

from ditic_stream import _cloud, cli, compression, console
from ditic_stream.errors import ChecksumError, TaskError

VERBS = ["compress", "decompress", "region", "info", "verify", "compare", "train"]
VERBS += ["models list", "models import", "models export"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """`ditic-stream ARGUMENTS` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as leaving:
        cli.main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def test_scene_comes_back_by_the_command_line_with_its_place_and_a_region_is_the_crop(sample, ditic, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    done = ditic("region", sample.archive, tmp_path / "part.tif", "--window", "200,150,300,260", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["col"], facts["row"], facts["width"], facts["height"]) == (200, 150, 300, 260)
    with (
        rasterio.open(sample.scene) as scene,
        rasterio.open(sample.decoded) as decoded,
        rasterio.open(tmp_path / "part.tif") as part,
    ):
        assert (decoded.shape, decoded.dtypes, decoded.crs, decoded.transform) == (
            scene.shape, scene.dtypes, scene.crs, scene.transform,
        )  # fmt: skip
        assert part.transform == decoded.window_transform(rasterio.windows.Window(200, 150, 300, 260))
        np.testing.assert_array_equal(part.read(), decoded.read()[:, 150:410, 200:500])


def test_region_by_bbox_is_the_region_by_window(sample, ditic, tmp_path):
    # Pixels of 10 m from 400000 E, 5650000 N: columns 50..149, rows 100..179; the box ends inside the last of each.
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--bbox", "400500,5648204,401495,5649000", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["col"], facts["row"], facts["width"], facts["height"]) == (50, 100, 100, 80)
    pixels = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(pixels, tifffile.imread(sample.decoded)[100:180, 50:150])


def test_bbox_in_degrees_lands_where_rasterio_says(sample, ditic, tmp_path):
    warp = pytest.importorskip("rasterio.warp")
    degrees = warp.transform_bounds("EPSG:32633", "EPSG:4326", 402000, 5646000, 403000, 5647000)
    text = ",".join(f"{value:.8f}" for value in degrees)
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--bbox", text, "--bbox-crs", "EPSG:4326", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    # The box of a box is a little larger: UTM is turned against the meridians here.
    assert abs(facts["col"] - 200) <= 5
    assert abs(facts["row"] - 300) <= 5
    assert 100 <= facts["width"] <= 110


def test_a_bbox_crs_that_is_none_is_said_in_one_sentence(sample, ditic, tmp_path):
    pytest.importorskip("rasterio")
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--bbox", "1,2,3,4", "--bbox-crs", "nonsense")
    assert (done.code, done.out) == (1, "")
    assert "--bbox-crs 'nonsense' is no reference system; name one like EPSG:4326" in done.err
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--bbox", "1e9,1e9,2e9,2e9", "--bbox-crs", "EPSG:4326")
    assert done.code == 1 and "in EPSG:4326 lies where EPSG:32633 is not defined" in " ".join(done.err.split())


def test_region_to_npy_takes_workers_and_gives_the_crop(sample, ditic, tmp_path):
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.npy"
        done = ditic("region", sample.archive, out, "--window", "100,20,400,500", "--workers", workers, "-q")
        assert (done.code, done.out, done.err) == (0, "", "")
        np.testing.assert_array_equal(np.load(out), tifffile.imread(sample.decoded)[20:520, 100:500])


def test_region_to_png_holds_the_same_pixels(sample, ditic, tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    done = ditic("region", sample.archive, tmp_path / "a.png", "--window", "10,20,64,48", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    pixels = imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(pixels, tifffile.imread(sample.decoded)[20:68, 10:74])


def test_what_a_png_and_an_array_do_not_keep_is_said_on_stderr(sample, ditic, tmp_path):
    for name in ("a.png", "a.npy"):
        done = ditic("region", sample.archive, tmp_path / name, "--window", "10,20,64,48", "--json")
        sentence = f"{name} does not keep coordinates; a .tif or .zarr does"
        assert f"warning: {sentence}\n" in done.err
        assert json.loads(done.out)["warnings"] == [sentence]
    done = ditic("region", sample.archive, tmp_path / "a.tif", "--window", "10,20,64,48", "--json")
    assert (json.loads(done.out)["warnings"], done.err) == ([], "")


def test_info_and_verify_load_neither_torch_nor_zarr_nor_tifffile(sample):
    program = (
        "import sys; from ditic_stream import cli\n"
        "for verb in ('info', 'verify'):\n"
        "    try: cli.main([verb, sys.argv[1], '--json'])\n"
        "    except SystemExit as leaving: assert not leaving.code, leaving.code\n"
        "heavy = {'torch', 'zarr', 'tifffile', 'imagecodecs', 'scipy', 'rasterio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(sample.archive)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info, verified = map(json.loads, done.stdout.splitlines())
    assert info["tiles"] == verified["tiles"] == 9


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_info_and_verify_take_under_half_a_second(sample, verb):
    """Of processor time, the least of five; or 3.3 times what importing numpy takes, where the cores are slow."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    def least(run: Callable[[], bool]) -> float:
        taken = []
        for _ in range(5):
            began = used()
            assert run()
            taken.append(used() - began)
        return min(taken)

    numpy = least(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=False).returncode == 0)
    assert least(lambda: fresh(verb, sample.archive).code == 0) < max(0.5, 3.3 * numpy)


def test_info_tells_size_place_rate_and_weights(sample, ditic):
    facts = json.loads(ditic("info", sample.archive, "--json").out)
    assert (facts["width"], facts["height"], facts["bands"], facts["dtype"]) == (700, 600, 3, "uint8")
    assert (facts["epsg"], facts["transform"][:3]) == (32633, [10, 0, 400000])
    assert facts["bpp"] == 8 * facts["record_bytes"] / (700 * 600)
    total = sum(file.stat().st_size for file in sample.archive.rglob("*") if file.is_file())
    assert facts["record_bytes"] + facts["fixed_bytes"] == total
    text = ditic("info", sample.archive).out
    assert "700 x 600 pixels" in text
    assert facts["weights"][:16] in text


def test_verify_names_the_damaged_tile_and_leaves_with_1(sample, ditic, tmp_path):
    archive = shutil.copytree(sample.archive, tmp_path / "a.ditic")
    path = archive / "records/c/1/2/0"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    done = ditic("verify", archive)
    assert done.code == 1
    assert "tile 1,2" in done.out
    assert "1 problem" in done.out
    report = json.loads(ditic("verify", archive, "--json").out)
    assert (report["ok"], report["damaged"]) == (False, ["1,2"])
    stopped = ditic("decompress", archive, tmp_path / "out.tif", "--workers", "1")
    assert stopped.code == 1
    assert "tile 1,2" in stopped.err
    assert not (tmp_path / "out.tif").exists()
    filled = ditic("decompress", archive, tmp_path / "out.tif", "--on-error", "fill", "--json", "--workers", "1")
    assert filled.code == 0, filled.err
    facts = json.loads(filled.out)
    assert facts["damaged"] == ["1,2"]
    assert set(facts["degraded"]) == {"0,1", "0,2", "1,1", "2,1", "2,2"}
    assert "tile 1,2" in filled.err
    whole, part = tifffile.imread(sample.decoded), tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(part[:, :224], whole[:, :224])  # beyond the overlap nothing changed
    assert (part[256:512, 512:] != whole[256:512, 512:]).any()


def test_deep_verify_decodes_the_symbols_and_finds_records_whose_checksum_lies(sample, ditic, tmp_path):
    from ditic_stream.bitstream import pack_record, unpack_record

    assert json.loads(ditic("verify", "--deep", sample.archive, "--json").out)["ok"]
    archive = shutil.copytree(sample.archive, tmp_path / "a.ditic")
    path = archive / "records/c/0/0/0"
    data = path.read_bytes()
    start = data.index(b"DTR")
    record = unpack_record(data[start : -(16 + 4)])
    import dataclasses

    wrong = pack_record(dataclasses.replace(record, symbols_crc=record.symbols_crc ^ 1))
    path.write_bytes(data[:start] + wrong + data[start + len(wrong) :])
    assert ditic("verify", archive).code == 0  # its bytes are whole
    report = json.loads(ditic("verify", "--deep", archive, "--json").out)
    assert (report["damaged"], report["problems"][0]["kind"]) == (["0,0"], "desync")


def test_compare_gives_an_object_a_tile_and_one_for_the_scene(sample, ditic):
    done = ditic("compare", sample.scene, sample.archive, "--json", "-q", "--workers", "1")
    assert done.code == 0, done.err
    *tiles, scene = map(json.loads, done.out.splitlines())
    assert [tile["tile"] for tile in tiles] == [f"{row},{col}" for row in range(3) for col in range(3)]
    assert {tile["kind"] for tile in tiles} == {"tile"}
    decoded = tifffile.imread(sample.decoded).astype(float)
    mean = np.square(decoded - tifffile.imread(sample.scene)).mean()
    assert scene["psnr"] == pytest.approx(10 * np.log10(255**2 / mean))
    assert 0 < scene["ms_ssim"] < 1


def test_compare_leaves_with_1_when_a_bound_is_violated(sample, ditic):
    done = ditic("compare", sample.scene, sample.archive, "--min-psnr", "90", "--workers", "1", "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err.strip().startswith("ditic-stream: bound: PSNR ")
    assert done.err.strip().endswith("is below 90")


def test_complete_archive_and_existing_output_are_not_overwritten_without_being_asked(sample, ditic, tmp_path):
    before = sorted((file, file.stat().st_mtime_ns) for file in sample.archive.rglob("*"))
    same = ("compress", sample.scene, "--model", "tiny", "--tile", "256", "--overlap", "32", "--workers", "1")
    done = ditic(*same)
    assert done.code == 0, done.err
    assert "nothing was left to code" in done.out
    done = ditic(*same, "--quality", "60")
    assert done.code == 1
    assert done.err.startswith("ditic-stream: config: ")
    assert "overwrite" in done.err
    assert sorted((file, file.stat().st_mtime_ns) for file in sample.archive.rglob("*")) == before
    (tmp_path / "a.npy").write_text("mine")
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--window", "0,0,8,8")
    assert done.code == 1
    assert (tmp_path / "a.npy").read_text() == "mine"
    done = ditic("region", sample.archive, tmp_path / "a.npy", "--window", "0,0,8,8", "--overwrite")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "a.npy").shape == (8, 8, 3)


START = """
import os, signal, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
sys.argv = ["ditic-stream", "compress", "a.tif"]
from ditic_stream.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["ditic_stream.console", "typer", "ditic_stream.cli", "ditic_stream.compression"])
def test_interrupted_while_it_starts_it_leaves_with_130_and_says_at_most_one_line(name):
    code = START.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "" if name == "ditic_stream.console" else "ditic-stream: interrupted: run the same command again\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", told)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress", "."], "config: . is a folder without a name"),
        (["compress", "/"], "config: / is a folder without a name"),
        (["compress", ".."], "config: .. is a folder without a name"),
        (["decompress", "."], "config: . is a folder without a name"),
        (["decompress", "/"], "config: / is a folder without a name"),
        (["compress", ".", "x.ditic"], "source: "),
        (["compress", "SCENE", "/"], "config: / holds "),
        (["decompress", "ARCHIVE", "."], "config: .: no format"),
        (["region", "ARCHIVE", ".", "--window", "0,0,1,1"], "config: .: no format"),
    ],
)
def test_places_without_a_name_are_one_clear_error(sample, capsys, arguments, said):
    places = {"SCENE": sample.scene, "ARCHIVE": sample.archive}
    code, out, err = run(capsys, *(places.get(one, one) for one in arguments), "-q")
    assert (code, out) == (1, "")
    assert err.startswith(f"ditic-stream: {said}")
    assert len(err.splitlines()) == 1


def test_dry_run_says_what_to_expect_and_writes_nothing(sample, ditic, tmp_path):
    scene = shutil.copy(sample.scene, tmp_path / "scene.tif")
    done = ditic(
        "compress",
        scene,
        "--model",
        "tiny",
        "--tile",
        "256",
        "--overlap",
        "32",
        "--dry-run",
        "--json",
        "--workers",
        "1",
    )
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["tiles"] == 9
    true = json.loads(ditic("info", sample.archive, "--json").out)["record_bytes"]
    assert 0.5 * true < facts["bytes"] < 2 * true
    assert facts["memory"] > 10e6
    assert [file.name for file in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize("asked", [("--bpp", "20"), ("--size", "9MB")])
def test_more_bytes_than_the_best_quality_takes_are_said_to_be_left_over(ditic, tmp_path, asked):
    scene = write_scene(tmp_path / "scene.tif", landscape(256, 256))
    for dry in ((), ("--dry-run",)):
        done = ditic("compress", scene, tmp_path / "a.ditic", "--model", "tiny", "--workers", "1", *asked, *dry)
        assert done.code == 0, done.err
        assert "note: even quality 100, the best, takes less than what was asked for" in done.err
    done = ditic("compress", scene, tmp_path / "b.ditic", "--model", "tiny", "--workers", "1", "--bpp", "0.3")
    assert done.code == 0 and "note:" not in done.err


def test_single_file_archive_works_like_a_folder(sample, ditic, tmp_path):
    archive = tmp_path / "scene.ditic.zip"
    settings = ("--model", "tiny", "--tile", "256", "--overlap", "32", "--workers", "1")
    assert ditic("compress", sample.scene, archive, *settings).code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["scene.ditic.zip"]
    assert ditic("verify", archive).code == 0
    done = ditic("decompress", archive, "--workers", "1")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "scene.decoded.tif"), tifffile.imread(sample.decoded))


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example_and_the_common_options(capsys, verb):
    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert "Example:  ditic-stream" in out
    assert "--json" in out
    assert "--quiet" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress"],
        ["compress", "a.tif", "--quality", "0"],
        ["compress", "a.tif", "--quality", "many"],
        ["compress", "a.tif", "--no-such-option"],
        ["region", "a.ditic", "b.tif"],
        ["region", "a.ditic", "b.tif", "--window", "1,2,3"],
        ["region", "a.ditic", "b.tif", "--window", "1,2,3,4.5"],
        ["region", "a.ditic", "b.tif", "--window", "1,2,3,4", "--bbox", "1,2,3,4"],
        ["region", "a.ditic", "b.tif", "--bbox", "1,2,nan,4"],
        ["decompress", "a.ditic", "--on-error", "hope"],
        ["train"],
        ["no-such-verb"],
    ],
)
def test_usage_errors_leave_with_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: " in err


@pytest.mark.parametrize("verb", ["info", "verify", "decompress", "region", "compare", "compress"])
@pytest.mark.parametrize("kind", ["missing", "text", "zeros", "folder", "zip"])
def test_bad_file_is_one_line_with_a_kind_and_no_traceback(capsys, tmp_path, verb, kind):
    bad = tmp_path / "bad.ditic"
    if kind == "text":
        bad.write_text("not what you think\n" * 100)
    elif kind == "zeros":
        bad.write_bytes(bytes(5000))
    elif kind == "folder":
        bad.mkdir()
        (bad / "zarr.json").write_text('{"attributes": {"ditic": {"format": 1}}}')
    elif kind == "zip":
        bad.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 8)
    scene = write_scene(tmp_path / "scene.tif", landscape(40, 50))
    arguments = {
        "decompress": [bad, tmp_path / "o.tif", "-q"],
        "region": [bad, tmp_path / "o.tif", "--window", "0,0,4,4"],
        "compare": [scene, bad],
        "compress": [bad, tmp_path / "o.ditic", "--model", "tiny"],
    }.get(verb, [bad])
    code, out, err = run(capsys, verb, *arguments)
    assert code == 1
    if verb == "verify" and "kind" != "missing" and out:
        assert len(out.strip().splitlines()) == 2  # the problem is a result: it, and the verdict
        return
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    kind_of_error = err.split(":")[1].strip()
    assert kind_of_error in {"source", "format", "config", "checksum", "version"}
    assert "Traceback" not in err
    assert not (tmp_path / "o.tif").exists()


def test_window_outside_the_scene_says_both_sizes(sample, ditic, tmp_path):
    done = ditic("region", sample.archive, tmp_path / "o.tif", "--window", "650,0,100,100")
    assert done.code == 1
    assert done.err.startswith("ditic-stream: window: ")
    assert "600 x 700" in done.err
    assert "750" in done.err


def test_foreign_errors_are_one_line_and_debug_shows_the_traceback(capsys, monkeypatch, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", landscape(40, 50))

    def fails(*_, **__):
        raise ZeroDivisionError("odd\nthing")

    monkeypatch.setattr(compression, "compress", fails)
    code, _, err = run(capsys, "compress", scene)
    assert code == 1
    assert err.startswith("ditic-stream: internal: ZeroDivisionError: odd thing ")
    assert len(err.strip().splitlines()) == 1
    monkeypatch.setenv("DITIC_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["compress", str(scene)])


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (ChecksumError("bad", key="3,4"), "checksum: tile 3,4: bad"),
        (TaskError("worker died", key="1,1", attempt=3), "task: tile 1,1: worker died"),
        (MemoryError(), "memory: out of memory; use fewer --workers, to compress a smaller --tile, to decode `region`"),
        (OSError(28, "No space left on device"), "system: [Errno 28] No space left on device"),
    ],
)
def test_errors_begin_with_their_kind(error, begins):
    assert console.describe(error).startswith(begins)


def test_interrupted_compress_leaves_with_130_and_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", landscape(40, 50))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "compress", interrupted)
    code, out, err = run(capsys, "compress", scene)
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
    assert "run the same command again" in err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_in_the_middle_leaves_with_130_and_the_next_run_finishes(tmp_path, ditic, number):
    scene = write_scene(tmp_path / "scene.tif", landscape(1300, 1300))
    settings = ["--model", "tiny", "--tile", "256", "--overlap", "32", "--workers", "2"]
    command = [sys.executable, "-m", "ditic_stream", "compress", str(scene), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    records = tmp_path / "scene.ditic" / "records"
    deadline = time.monotonic() + 120
    while not list(records.glob("c/*/*/0")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert "run the same command again" in err
    done = ditic("compress", scene, *settings, "--json", "-q")
    assert done.code == 0, done.err
    assert 1 <= json.loads(done.out)["resumed"] < json.loads(done.out)["shards"]
    assert ditic("verify", tmp_path / "scene.ditic").code == 0


def test_reader_that_leaves_early_causes_no_traceback(sample):
    command = f"{sys.executable} -m ditic_stream info {sample.archive} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_progress_without_a_terminal_is_lines_with_speed_on_stderr(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.Progress("compress") as progress:
        for second in range(21):
            clock[0] = float(second)
            progress(second * 500_000, 10_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "compress 25 %  2.5 of 10.0 MP  0.50 MP/s  ETA 0:00:15",
        "compress 50 %  5.0 of 10.0 MP  0.50 MP/s  ETA 0:00:10",
        "compress 75 %  7.5 of 10.0 MP  0.50 MP/s  ETA 0:00:05",
        "compress 100 %  10.0 of 10.0 MP  0.50 MP/s",
    ]


def test_speed_of_a_resumed_run_counts_from_where_it_began(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.Progress("compress") as progress:
        progress(8_000_000, 10_000_000)
        clock[0] = 6.0
        progress(9_200_000, 10_000_000)
    assert capsys.readouterr().err == "compress 92 %  9.2 of 10.0 MP  0.20 MP/s  ETA 0:00:04\n"


def test_terminal_gets_a_bar_with_speed_and_eta(sample):
    """In a pseudo-terminal, as a person would see it."""
    program = (
        "import time; from ditic_stream import console\n"
        "with console.Progress('compress') as progress:\n"
        "    for step in range(5): progress(step * 1000000, 4000000); time.sleep(0.25)\n"
    )
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=child, env=environment) as process:
        os.close(child)
        seen = b""
        while select.select([parent], [], [], 30)[0]:
            try:
                piece = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            seen += piece
    os.close(parent)
    assert process.returncode == 0
    text = seen.decode()
    assert "compress" in text
    assert "MP/s  ETA" in text
    assert "━" in text


def test_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    import ditic_stream

    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"ditic-stream {ditic_stream.__version__}\n")
    assert ditic_stream.__version__ == version("ditic-stream")


def test_models_list_names_the_weights_with_their_hash(capsys, sample, ditic):
    code, out, _ = run(capsys, "models", "list", "--json")
    assert code == 0
    found = {one["name"]: one for one in map(json.loads, out.splitlines())}
    used = json.loads(ditic("info", sample.archive, "--json").out)["weights"]
    assert used in {one["sha256"] for one in found.values()}
    assert all(one["parameters"] > 1000 and one["licence"] for one in found.values())


@pytest.mark.slow
def test_train_makes_weights_that_compress_accepts(ditic, tmp_path):
    import imagecodecs
    import torch

    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        picture = imagecodecs.png_encode(landscape(320, 320, seed))
        (tmp_path / "pictures" / f"{seed}.png").write_bytes(picture)
    done = ditic(
        "train", tmp_path / "pictures", "--out", tmp_path / "run", "--model", "tiny", "--minutes", "0.02",
        "--threads", "1", "--batch", "2", "--distillation", "0.05", "--licence", "CC0-1.0", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    weights = json.loads(done.out)["weights"]
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["config"]["terms"]["distillation"] == 0.05
    scene = write_scene(tmp_path / "scene.tif", landscape(200, 210))
    done = ditic("compress", scene, "--model", weights, "--tile", "256", "--overlap", "32")
    assert done.code == 0, done.err
    assert json.loads(ditic("info", tmp_path / "scene.ditic", "--json").out)["weights_licence"] == "CC0-1.0"


@pytest.mark.parametrize("verb", ["compress", "decompress", "region", "train"])
def test_a_variable_that_names_no_attention_is_found_before_anything_is_written(
    verb, sample, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("DITIC_ATTENTION", "flash")
    arguments = {
        "compress": [sample.scene, tmp_path / "new.ditic", "--model", "tiny"],
        "decompress": [sample.archive, tmp_path / "new.tif"],
        "region": [sample.archive, tmp_path / "new.tif", "--window", "0,0,40,40"],
        "train": [sample.scene, "--model", "tiny", "--out", tmp_path / "new"],
    }
    code, out, err = run(capsys, verb, *arguments[verb])
    assert (code, out) == (1, "")
    assert err == "ditic-stream: config: DITIC_ATTENTION is 'flash'; use one of auto, sdpa, xformers\n"
    assert not list(tmp_path.iterdir())


def test_completion_script_can_be_shown(ditic):
    done = ditic("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.code == 0, done.err
    assert "complete" in done.out.lower()


def test_file_uris_name_local_paths_for_scenes_archives_and_outputs(sample, ditic, tmp_path):
    scene = tmp_path / "a scene.tif"
    shutil.copy(sample.scene, scene)
    place = f"file://{tmp_path}".replace(" ", "%20")
    assert (
        ditic("compress", f"{place}/a%20scene.tif", f"{place}/a.ditic", "--model", "tiny", "--workers", "1").code == 0
    )
    assert ditic("info", f"{place}/a.ditic").code == 0
    assert ditic("decompress", f"file://localhost{tmp_path}/a.ditic", f"{place}/out.tif", "--workers", "1").code == 0
    assert (tmp_path / "a.ditic").is_dir()
    assert (tmp_path / "out.tif").is_file()


@pytest.mark.parametrize("verb", ["compress", "info", "verify", "decompress", "region"])
def test_a_file_uri_of_another_machine_is_refused_in_one_sentence(capsys, verb):
    more = ["out.tif", "--window", "0,0,1,1"] if verb == "region" else []
    code, out, err = run(capsys, verb, "file://other/a.tif", *more)
    assert (code, out) == (1, "")
    assert err == (
        "ditic-stream: source: file://other/a.tif is not on this machine; mount it, or name it by http:// or s3://\n"
    )


@pytest.mark.parametrize("verb", ["compress", "info", "verify", "decompress", "region", "compare"])
def test_an_address_where_nobody_answers_is_one_sentence(capsys, monkeypatch, verb):
    monkeypatch.setattr(_cloud, "RETRIES", 0)
    more = {"region": ["out.tif", "--window", "0,0,1,1"], "compare": ["http://127.0.0.1:9/b.ditic"]}.get(verb, [])
    code, out, err = run(capsys, verb, "http://user:secret@127.0.0.1:9/a.tif?token=secret", *more)
    assert (code, out) == (1, "")
    assert err.startswith("ditic-stream: source: http://127.0.0.1:9/") and err.count("\n") == 1
    assert "secret" not in err


def test_outputs_elsewhere_are_refused_before_anything_is_read(capsys):
    code, _, err = run(capsys, "decompress", "absent.ditic", "s3://bucket/a.tif")
    assert code == 1 and "s3://bucket/a.tif is not on this machine; decoded files are written here" in err
    code, _, err = run(capsys, "compress", "absent.tif", "https://host/a.ditic")
    assert code == 1 and "https://host/a.ditic can be read and not written" in err
