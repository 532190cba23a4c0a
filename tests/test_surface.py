"""What the package shows, needs and carries: names, imports, declared dependencies, files in the wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ditic_stream

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"ditic_stream": ROOT / "ditic_stream", "schemas": ROOT / "schemas", "workers": ROOT / "workers"}
PACKAGE_OF = {
    "google_crc32c": "google-crc32c",
    "pytorch_msssim": "pytorch-msssim",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "rio_tiler": "rio-tiler",
    "rio_cogeo": "rio-cogeo",
    "ome_zarr_models": "ome-zarr-models",
    "titiler": "titiler.core",
}


def test_surface_is_exactly_what_is_listed():
    assert ditic_stream.__all__ == sorted(ditic_stream.__all__)
    assert ditic_stream.__all__ == ["Window", "__version__", "compress", "decompress", "errors", "open"]
    for name in ditic_stream.__all__:
        assert getattr(ditic_stream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compresss'"):
        ditic_stream.compresss  # noqa: B018


def test_public_functions_say_what_they_do():
    for name in ("compress", "decompress", "open", "Window"):
        assert (getattr(ditic_stream, name).__doc__ or "").strip(), name


def test_import_loads_nothing_heavy_and_writes_nothing(tmp_path):
    program = (
        "import sys, logging, ditic_stream\n"
        "heavy = {'torch', 'numpy', 'zarr', 'tifffile', 'imagecodecs', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not logging.getLogger().handlers\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-level names of all absolute imports below a folder."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield name.partition(".")[0], path


def declared(lines: list[str]) -> set[str]:
    return {line.split(";")[0].split(">")[0].split("=")[0].split("[")[0].strip() for line in lines}


def test_every_import_is_declared_and_every_declaration_is_used():
    extras = PROJECT["project"]["optional-dependencies"]
    required = declared(PROJECT["project"]["dependencies"])
    optional = {name for extra in extras if extra != "dev" for name in declared(extras[extra])}
    needed = {
        PACKAGE_OF.get(name, name)
        for folder in SOURCES.values()
        for name, _ in imported(folder)
        if name not in sys.stdlib_module_names and name not in ("ditic_stream", "__future__")
    }
    assert needed - optional == required
    folders = ("tests", "examples", "benchmarks")
    ours = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")}
    around = {
        PACKAGE_OF.get(name, name)
        for folder in folders
        for name, _ in imported(ROOT / folder)
        if name not in sys.stdlib_module_names and name not in ours and name not in ("ditic_stream", "benchmarks")
    }
    assert around <= required | optional | declared(extras["dev"])


def test_lower_bounds_are_met_by_what_runs_here():
    from importlib.metadata import version

    for line in PROJECT["project"]["dependencies"]:
        name, bound = line.split(",")[0].split(">=")
        here, least = ([int(part) for part in text.split("+")[0].split(".")[:3]] for text in (version(name), bound))
        assert here >= least, f"{name} {version(name)} runs here, {line} is declared"


def test_every_package_of_the_tree_is_installed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    inside = {
        ".".join(folder.parent.relative_to(ROOT).parts) for folder in (ROOT / "ditic_stream").rglob("__init__.py")
    }
    assert listed == inside | {"ditic_stream.schemas", "ditic_stream.workers"}


def test_wheel_carries_schemas_weights_and_the_type_marker(tmp_path):
    # A copy, since setuptools builds inside the tree and two builds there would meet.
    import shutil

    for name in ("ditic_stream", "schemas", "workers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"ditic_stream/py.typed", "ditic_stream/schemas/archive-1.json", "ditic_stream/workers/__init__.py"}
    wanted |= {"ditic_stream/models/paper/official.json", "ditic_stream/training/fitted.safetensors"}
    static = ROOT / "ditic_stream/doors/server/static"
    wanted |= {f"ditic_stream/doors/server/static/{file.name}" for file in static.iterdir()}
    assert any(name.endswith("openseadragon.LICENSE.txt") for name in wanted)
    assert any(name.endswith("licenses/ditic_stream/training/fitted.LICENSE.txt") for name in names)
    wanted |= {f"ditic_stream/weights/{file.name}" for file in (ROOT / "ditic_stream/weights").glob("*.safetensors")}
    assert wanted <= names
    assert any(name.startswith("ditic_stream/weights/") for name in names)
    outside = {name for name in names if not name.startswith("ditic_stream")}
    assert not outside, "nothing generic may land in site-packages"


def test_zarr_finds_the_record_codec_by_its_entry_point():
    from importlib.metadata import entry_points

    (found,) = entry_points(group="zarr.codecs", name="ditic.record")
    assert found.load().__name__ == "RecordCodec"


def test_python_started_in_a_checkout_finds_all_of_the_package():
    program = (
        "import sys; sys.meta_path[:] = [one for one in sys.meta_path if 'editable' not in repr(one).lower()]\n"
        "import ditic_stream.schemas, ditic_stream.workers; ditic_stream.open; print(ditic_stream.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, Path(done.stdout.strip()).parent.parent) == (0, ROOT), done.stderr
