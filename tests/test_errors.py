"""Errors: what a catcher and a worker's pipe need of them; and the list of names the package shows."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import ditic_stream
from ditic_stream import errors
from ditic_stream.errors import DiticError, FormatError, TaskError, naming

ALL = [thing for _, thing in inspect.getmembers(errors, inspect.isclass) if issubclass(thing, DiticError)]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_pickle(cls: type[DiticError]) -> None:
    error = cls("halo 96 px exceeds tile 64 px; choose a tile of at least 96", key="3,4")
    error.add_note("seen twice")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.key, again.kind) == (str(error), "3,4", error.kind)
    assert again.__notes__ == ["seen twice"]


def test_task_error_keeps_its_attempt_through_pickle() -> None:
    assert pickle.loads(pickle.dumps(TaskError("died", key="0,1", attempt=3))).attempt == 3


def test_kinds_are_unique_and_lower_case() -> None:
    kinds = [cls.kind for cls in ALL]
    assert len(set(kinds)) == len(kinds)
    assert all(kind.isidentifier() and kind.islower() for kind in kinds)


def test_errors_can_be_caught_by_the_builtin_a_caller_knows() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.WindowError, errors.ConfigError)
    assert issubclass(errors.SourceError, OSError)
    assert issubclass(errors.StorageError, errors.SourceError)
    assert issubclass(errors.ChecksumError, errors.FormatError)
    assert issubclass(errors.MissingTileError, LookupError)


def test_naming_adds_the_tile_and_keeps_the_first_one() -> None:
    with pytest.raises(FormatError, match=r"^tile 1,2: broken$") as caught, naming("9,9"), naming("1,2"):
        raise FormatError("broken")
    assert caught.value.key == "1,2"


def test_naming_leaves_other_errors_alone() -> None:
    with pytest.raises(KeyError), naming("1,2"):
        raise KeyError("x")


def test_public_names_are_sorted_and_resolve() -> None:
    assert ditic_stream.__all__ == sorted(ditic_stream.__all__)
    for name in ditic_stream.__all__:
        assert getattr(ditic_stream, name) is not None
    assert set(ditic_stream.__all__) <= set(dir(ditic_stream))
    with pytest.raises(AttributeError, match="nonsense"):
        ditic_stream.nonsense  # noqa: B018


def test_a_fresh_import_shows_exactly_the_public_names_and_loads_no_heavy_library() -> None:
    code = (
        "import sys, ditic_stream; names = {n for n in vars(ditic_stream) if not n.startswith('_')};"
        "heavy = {'torch', 'zarr', 'numpy', 'tifffile', 'ray', 'typer'} & set(sys.modules);"
        "print(sorted(names - {'annotations', 'import_module', 'TYPE_CHECKING', 'Any'}), sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[]", "[]"]
