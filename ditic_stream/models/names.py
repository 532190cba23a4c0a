"""What sets of weights are called: those of the package, and how an archive's are found here.  Without torch.

The newest set of each model lies in the package; a set's name is immutable.
"""

from __future__ import annotations

from pathlib import Path

from ditic_stream.models.folder import find, names

WEIGHTS_FORMAT = "ditic-weights-1"
PUBLISHED = {"small": "small-6", "tiny": "tiny-1"}
"""Model names users give, and the set each stands for in this release."""
FOLDER = Path(__file__).resolve().parent.parent / "weights"


def name_here(name: str, sha256: str) -> str:
    """What weights of that hash are called here: `name` where the package has a set of it, else the name they were
    imported under, else `name` again, for whoever loads them to say that they are not here."""
    if (FOLDER / f"{PUBLISHED.get(name, name)}.safetensors").exists():
        return name
    found = ((one, find(one)) for one in names())
    return next((one for one, there in found if there is not None and there[1].sha256 == sha256), name)
