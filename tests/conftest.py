"""What tests of several modules share: the folder of real files, small scenes, archives of them, the command."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster
from command import Done, Forks
from pictures import landscape, write_scene

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread, as in a worker; several would fight over two cores

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores it for what it starts in the background, and so would every process the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("executor_rules")  # it holds tests, and is no test module
SHARED = Path(os.environ.get("DITIC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real scenes and pictures beside the checkout (or DITIC_SHARED); never part of the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no folder of real files at {SHARED}; name one by DITIC_SHARED")
    return SHARED


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def ditic() -> Iterator[Command]:
    """Run `ditic-stream` in a process of its own."""
    forks = Forks()
    yield forks
    forks.close()


@dataclass(frozen=True, slots=True)
class Sample:
    """A scene, its archive by the `tiny` model in nine tiles of 256 pixels, and what `decompress` makes of it."""

    scene: Path
    archive: Path
    decoded: Path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, ditic: Command) -> Sample:
    """Made once by the command line.  Tests read it; those that change something copy it first."""
    folder = tmp_path_factory.mktemp("sample")
    found = Sample(folder / "scene.tif", folder / "scene.ditic", folder / "scene.decoded.tif")
    write_scene(found.scene, landscape(600, 700))
    for arguments in (
        ("compress", found.scene, "--model", "tiny", "--tile", "256", "--overlap", "32", "--workers", "1"),
        ("decompress", found.archive, "--workers", "1"),
    ):
        done = ditic(*arguments)
        assert done.code == 0, done.err
    return found


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """A Ray cluster of a head that thinks it has six CPUs, connected; tests add nodes that they may kill."""
    ray = pytest.importorskip("ray")
    with cluster(6) as made:
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        yield made
        ray.shutdown()


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory, ditic: Command) -> Path:
    """An archive of 16 bits, one band, a quarter of it nodata, placed nowhere; its scene, deep.tif, lies beside it."""
    import numpy as np
    import tifffile

    folder = tmp_path_factory.mktemp("deep")
    pixels = (landscape(300, 520)[..., 0].astype(np.uint16) * 30) + 1000
    pixels[:150, :260] = 0
    tifffile.imwrite(folder / "deep.tif", pixels, metadata=None, extratags=[(42113, "s", 2, "0", True)])
    done = ditic("compress", folder / "deep.tif", "--model", "tiny", "--tile", "256", "--overlap", "32", "-q")
    assert done.code == 0, done.err
    return folder / "deep.ditic"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder with one set of seeded weights, ditic-0.6b:q3; emptied at the end, for it has half a gigabyte."""
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    from paper_weights import import_reduced

    from ditic_stream import _paper_codec
    from ditic_stream.models import folder

    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folder.VARIABLE, str(root))
        import_reduced(root)
        yield root
    _paper_codec._loaded.cache_clear()
    shutil.rmtree(root, ignore_errors=True)
