"""The kinds of models there are, and what has to be known of each before its networks are loaded.

In: the name of a model, as users and manifests give it.  Out: its Family, a frozen value.  A new kind of model is a
line in FAMILIES and a module with a `load` (see codec).  Loads no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ditic_stream.errors import ConfigError
from ditic_stream.geometry import CELLS, Units

DTYPE_VARIABLE = "DITIC_DTYPE"
"""Environment variable that says in which type the networks of a family with a choice compute."""
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION_VARIABLE = "DITIC_ATTENTION"
"""Environment variable that names the attention backend of every family."""
ATTENTIONS = ("auto", "sdpa", "xformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of model."""

    name: str
    codec: str
    """Module whose `load(name, device)` gives the codec."""
    units: Units = CELLS
    one_rate: bool = False
    """Each set of weights has the rate it was trained for; q says nothing."""
    imported: bool = False
    """Its weights lie in the model folder, not in the package."""
    at_once: int | None = None
    """Windows and workers at once unless a user asks for more; None: as many as there are cores."""
    together: int = 1
    """Tiles of a row whose symbols another device than the CPU decodes in lockstep: each step of the integer networks
    costs a launch, however many tiles it is for.  On a CPU each takes its time."""
    half: bool = False
    """Computes in bfloat16 on a GPU, and in what $DITIC_DTYPE says on any device."""

    def dtype(self, device: str) -> str:
        """The type its pixel networks compute in on a device; entropy networks are integer everywhere.

        ConfigError when $DITIC_DTYPE names none of `DTYPES`.
        """
        if not self.half:
            return "float32"
        asked = os.environ.get(DTYPE_VARIABLE) or ("float32" if device.partition(":")[0] == "cpu" else "bfloat16")
        if asked not in DTYPES:
            raise ConfigError(f"{DTYPE_VARIABLE} is {asked!r}; use one of {', '.join(DTYPES)}")
        return asked


SMALL = Family(name="small", codec="ditic_stream._small_codec")
"""The networks of the package, and every name that is none of the others'."""
FAMILIES = {
    "ditic-0.6b": Family(
        name="ditic-0.6b",
        codec="ditic_stream._paper_codec",
        units=Units(cell=64, align=256),
        one_rate=True,
        imported=True,
        at_once=1,
        together=4,
        half=True,
    )
}
"""By what stands before the colon of a model's name."""


def attention_asked() -> str:
    """The attention backend that $DITIC_ATTENTION names, "auto" where it is not set; ConfigError for an unknown one."""
    asked = os.environ.get(ATTENTION_VARIABLE) or "auto"
    if asked not in ATTENTIONS:
        raise ConfigError(f"{ATTENTION_VARIABLE} is {asked!r}; use one of {', '.join(ATTENTIONS)}")
    return asked


def check_environment(model: str, device: str) -> None:
    """Before anything is read or written: ConfigError where a variable asks for what there is not."""
    attention_asked()
    family_of(model).dtype(device)


def family_of(model: str) -> Family:
    """The family of a model, a set of weights, or a file of weights."""
    return FAMILIES.get(model.partition(":")[0], SMALL)
