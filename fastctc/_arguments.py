"""What numbers, flags and paths among the arguments must be, and what is said otherwise."""

from __future__ import annotations

import math
import operator
import os
from numbers import Real
from typing import Any

import numpy as np


def whole_number(name: str, value: Any) -> int:
    """An int from anything that is a whole number, but not from a bool or a float."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def real_number(name: str, value: Any) -> float:
    """A float from a real number of Python or numpy, but not from a bool.

    What is too large for a float counts as infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def flag(name: str, value: Any) -> bool:
    """True or False, numpy's too."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return bool(value)


def path_of(name: str, value: Any) -> str:
    """A path, and no number, which `open` would take for an open file of the process."""
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {type(value).__name__}") from None


def whole_number_in(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    number = whole_number(name, value)
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}: it must be from {least} to {most}")
    return number


def number_in(name: str, value: Any, above: float, most: float) -> float:
    """A number above `above`, at most `most`; never NaN."""
    number = real_number(name, value)
    if not above < number <= most:
        raise ValueError(f"{name} is {value}: it must be above {above:g} and at most {most:g}")
    return number
