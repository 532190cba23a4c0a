"""How fast a run goes, and how much of the chip that is.

In: the floating-point operations of a crop and the time steps took.  Out: crops a second, and on a GPU whose peak is
known the share of it.  Knows nothing of networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PEAKS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12}
"""Dense bfloat16 operations a second by the makers' data sheets, by a word of the device's name."""


def peak_of(device: torch.device) -> float | None:
    """Operations a second the device can do at most in bfloat16, None when that is not known."""
    if device.type != "cuda":
        return None
    return peak_named(torch.cuda.get_device_name(device))


def peak_named(name: str) -> float | None:
    """The same of a device's name, "NVIDIA A100-SXM4-80GB"."""
    return next((PEAKS[word] for word in name.replace("-", " ").split() if word in PEAKS), None)


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of what runs inside, two for each product that is added up.

    As FlopCounterMode does, which looks at modules too and by that cannot stand torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


class Speed:
    """Counts crops and time between two reports."""

    def __init__(self, device: torch.device) -> None:
        self._peak = peak_of(device)
        self.operations = 0.0
        """Of one crop, forward and backward, convolutions and products alone; 0 until counted."""
        self._crops, self._began = 0, time.monotonic()

    def add(self, crops: int) -> None:
        self._crops += crops

    def start(self) -> None:
        """Begin to count anew."""
        self._crops, self._began = 0, time.monotonic()

    def words(self) -> str:
        """`figures` for people: "12.3 crops/s  41 % of the peak"."""
        figures = self.figures()
        if not figures:
            return ""
        share = f"  {100 * figures['share_of_peak']:.0f} % of the peak" if "share_of_peak" in figures else ""
        return f"{figures['crops_per_s']:.3g} crops/s{share}"

    def figures(self) -> dict[str, float]:
        """crops_per_s since the start; gflop_per_crop and share_of_peak where they are known; empty before a step."""
        if not self._crops:
            return {}
        rate = self._crops / max(time.monotonic() - self._began, 1e-9)
        found = {"crops_per_s": float(f"{rate:.4g}")}
        if self.operations:
            found["gflop_per_crop"] = round(self.operations / 1e9, 2)
            if self._peak:
                found["share_of_peak"] = round(rate * self.operations / self._peak, 4)
        return found
