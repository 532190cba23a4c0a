"""Names and shapes of a checkpoint's tensors.

    vae.*  DiT.*  prompter.*  aux_codec.*  codec.*     parts, as in the networks
    codec.**.down / .up beside a branch1               second names of one tensor (`alias_of`)
    codec.gaussian_conditional.*, ...                  what the entropy coder once built from the above (`TABLES`)

`official.json` holds the list of the released files, folded: an object a name part, "0-27" for numbers that are alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

PARTS = ("vae", "DiT", "codec", "prompter", "aux_codec")
"""First parts of the names that belong to the model; a released file may hold others (`loss`), of training only."""

_PRIOR, _GAUSSIAN = "codec.entropy_bottleneck.", "codec.gaussian_conditional."
TABLES: dict[str, tuple[int, ...]] = {
    **{
        prefix + name: shape
        for prefix in (_PRIOR, _GAUSSIAN)
        for name, shape in (
            ("_offset", (0,)),
            ("_quantized_cdf", (0,)),
            ("_cdf_length", (0,)),
            ("likelihood_lower_bound.bound", (1,)),
        )
    },
    _PRIOR + "target": (3,),
    _GAUSSIAN + "scale_table": (0,),
    _GAUSSIAN + "scale_bound": (1,),
    _GAUSSIAN + "lower_bound_scale.bound": (1,),
}
"""Tensors of a checkpoint that no network holds: integer coding tables (empty in a file that was saved before they were
built) and constants."""

_DOWN = re.compile(r"codec\.g_a\.(pre2\.0|analysis_transform\.2)\.down\.(weight|bias)")
_UP = re.compile(r"codec\.((?:g_s|scale|prompt)\.synthesis_transform\.3|aux\.block\.2)\.up\.([02])\.(weight|bias)")


def alias_of(name: str) -> str | None:
    """The name in use of a tensor that stands in a checkpoint under two, or None if `name` is the only one."""
    if found := _DOWN.fullmatch(name):
        return f"codec.g_a.{found[1]}.branch1.{found[2]}"
    if found := _UP.fullmatch(name):
        return f"codec.{found[1]}.branch1.{found[2]}.{found[3]}"
    return None


def second_name_of(name: str) -> str | None:
    """The other way: the second name under which a checkpoint holds the tensor `name` once more, if it does."""
    for kind in ("down", "up"):
        other = name.replace(".branch1.", f".{kind}.")
        if alias_of(other) == name:
            return other
    return None


def used(name: str) -> bool:
    """True when a network holds the tensor."""
    return name not in TABLES and alias_of(name) is None


def whole(networks: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint holds, given the tensors of its networks: second names and tables are added.  Sorted."""
    second = {other: shape for name, shape in networks.items() if (other := second_name_of(name)) is not None}
    return dict(sorted({**networks, **second, **TABLES}.items()))


@cache
def official() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint, 1491 of them, sorted by name.  Needs no diffusers."""
    tree = json.loads(files("ditic_stream.models.paper").joinpath("official.json").read_text())
    return dict(sorted(_unfold(tree, "")))


def _unfold(node: Any, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(node, list):
        yield prefix.removesuffix("."), tuple(node)
        return
    for key, below in node.items():
        first, _, last = key.partition("-")
        keys = map(str, range(int(first), int(last) + 1)) if last and first.isdigit() else (key,)
        for one in keys:
            yield from _unfold(below, f"{prefix}{one}.")
