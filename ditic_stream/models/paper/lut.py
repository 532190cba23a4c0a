"""Look-up tables of the fixed-point networks: a 16-bit integer in, a 16-bit integer out, the same on every machine.

In: the name of a function and the exponents of its input and output; an integer n of exponent e means n / 2^e.
Out: an int16 array of 65536 entries, the first for -32768.

    wsilu(x) = x / (1 + exp(-4 x))      gelu(x) = x erfc(-x / sqrt 2) / 2      halftanh(x) = tanh(x) / 2

An entry is floor(2^out f(n / 2^e) + 1/2), clamped.  float64 gives it but where the sum lies within 1e-6 of an integer:
there libraries may differ in the last bits, and it is computed again with 60 decimal digits.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = -(2**15), 2**15 - 1
"""Bounds of an activation."""
KINDS = ("wsilu", "gelu", "halftanh")
_NEAR, _DIGITS = 1e-6, 60


def look_up_table(kind: str, exponent: int, out: int) -> NDArray[np.int16]:
    """The table of one function; see the head of this file."""
    numbers = np.arange(LOW, HIGH + 1)
    scaled = _float(kind, np.ldexp(numbers.astype(np.float64), -exponent)) * 2.0**out + 0.5
    entries = np.floor(scaled)
    for place in np.flatnonzero(np.abs(scaled - np.rint(scaled)) < _NEAR):
        entries[place] = _exact(kind, int(numbers[place]), exponent, out)
    return np.clip(entries, LOW, HIGH).astype(np.int16)


def _float(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind == "wsilu":
        return np.asarray(x * np.exp(-np.logaddexp(0, -4 * x)))
    if kind == "gelu":
        return np.asarray(x * np.array([0.5 * math.erfc(-value * math.sqrt(0.5)) for value in x.tolist()]))
    return np.asarray(np.tanh(x) / 2)


def _exact(kind: str, number: int, exponent: int, out: int) -> int:
    with localcontext() as context:
        context.prec = _DIGITS
        x = Decimal(number) * Decimal(2) ** -exponent
        if kind == "wsilu":
            value = x / (1 + (-4 * x).exp())
        elif kind == "gelu":
            value = x * (1 + _erf(x / Decimal(2).sqrt())) / 2
        else:
            value = Decimal(1) / 2 - 1 / (1 + (2 * x).exp())
        return math.floor(value * Decimal(2) ** out + Decimal(1) / 2)


def _erf(x: Decimal) -> Decimal:
    """The Taylor series: its terms reach exp(x^2), 10^27 where |x| = 8, of the 60 digits; beyond, erf is +-1 to 28."""
    if abs(x) > 8:
        return Decimal(1).copy_sign(x)
    term = total = x
    count = 0
    while abs(term) > Decimal(10) ** -_DIGITS:
        count += 1
        term = -term * x * x / count
        total += term / (2 * count + 1)
    return total * 2 / _pi().sqrt()


def _pi() -> Decimal:
    """16 arctan(1/5) - 4 arctan(1/239), John Machin's formula."""

    def arctan_of_inverse(number: int) -> Decimal:
        power = total = Decimal(1) / number
        count = 1
        while abs(power) > Decimal(10) ** -(_DIGITS + 2):
            power = -power / (number * number)
            count += 2
            total += power / count
        return total

    return 16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)
