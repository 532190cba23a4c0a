"""Which model a name stands for, and what is known of it without its networks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ditic_stream.errors import ConfigError
from ditic_stream.families import (
    ATTENTION_VARIABLE,
    DTYPE_VARIABLE,
    FAMILIES,
    SMALL,
    check_environment,
    family_of,
)
from ditic_stream.geometry import Units


@pytest.mark.parametrize("name", ["small", "small-6", "tiny-1", "huge", "run/weights.safetensors", ""])
def test_every_name_that_is_no_other_familys_is_the_packages_own(name: str) -> None:
    assert family_of(name) is SMALL


def test_what_stands_before_the_colon_names_the_family() -> None:
    assert family_of("ditic-0.6b:q3") is family_of("ditic-0.6b") is FAMILIES["ditic-0.6b"]
    assert family_of("ditic-0.6b:q3").units == Units(cell=64, align=256)


def test_type_follows_the_device_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = family_of("ditic-0.6b:q1")
    monkeypatch.delenv(DTYPE_VARIABLE, raising=False)
    assert (paper.dtype("cpu"), paper.dtype("cuda:1")) == ("float32", "bfloat16")
    monkeypatch.setenv(DTYPE_VARIABLE, "float16")
    assert (paper.dtype("cpu"), paper.dtype("cuda"), SMALL.dtype("cuda")) == ("float16", "float16", "float32")
    monkeypatch.setenv(DTYPE_VARIABLE, "int8")
    with pytest.raises(ConfigError, match="DITIC_DTYPE is 'int8'; use one of float32"):
        paper.dtype("cpu")


def test_a_variable_that_asks_for_what_there_is_not_is_found_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_environment("ditic-0.6b:q1", "cpu")
    monkeypatch.setenv(ATTENTION_VARIABLE, "flash")
    with pytest.raises(ConfigError, match="DITIC_ATTENTION is 'flash'; use one of auto, sdpa, xformers"):
        check_environment("small", "cpu")


def test_what_weights_are_called_here_is_known_without_torch():
    """So that workers of another codec, and all that only names a set, do not load it."""
    code = "import sys, ditic_stream.models.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
