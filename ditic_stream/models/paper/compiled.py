"""torch.compile for the large networks of rendering, guarded: where it fails, the network runs as it is.

In: a function of tensors.  Out: a function of the same values, up to rounding.  Asked for by $DITIC_COMPILE=1, for
rendering alone: compiled graphs round otherwise, and each size of window is compiled once, in about a minute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

VARIABLE = "DITIC_COMPILE"


def asked() -> bool:
    """Whether the environment asks for compiled graphs."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


class Compiled:
    """A function, compiled for each shape it meets; one line of log and the function itself once that fails."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain = plain
        self._fast: Callable[..., Any] | None = torch.compile(plain, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fast is not None:
            try:
                return self._fast(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers, and what they call, raise classes of their own
                self._fast = None
                reason = str(error).strip().partition("\n")[0][:160]
                logging.getLogger("ditic_stream").warning(
                    "torch.compile fails here (%s: %s); ditic-0.6b goes on without it", type(error).__name__, reason
                )
        return self._plain(*args, **kwargs)
