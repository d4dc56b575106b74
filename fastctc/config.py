"""Process-wide switches of fastctc.

``validate_device_inputs`` (bool, False, ``FASTCTC_VALIDATE_DEVICE_INPUTS``)
    Raise for lengths and labels that are out of range and live on a GPU, at the cost of waiting for
    the GPU. What lives on the host is always checked, whatever this says.
``max_workspace_mb`` (int, 256, ``FASTCTC_MAX_WORKSPACE_MB``)
    A threshold in MiB, not a cap, for one call over all its threads: stored forward probabilities
    above this are kept as checkpoints and recomputed, which costs about one more forward pass.
``max_kept_output_mb`` (int, 512, ``FASTCTC_MAX_KEPT_OUTPUT_MB``)
    Most MiB of memory of freed results that are kept for later ones, see
    docs/spectrogram-norm.md. 0 keeps nothing, and releases what is kept.

Set one by assignment, ``fastctc.config.max_workspace_mb = 64``, or through its environment
variable, which is read when the switch is first needed. Assignment wins over the variable. A value
that a switch cannot take raises a ValueError.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastctc._native import _C

validate_device_inputs: bool
max_workspace_mb: int
max_kept_output_mb: int

_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}
_MOST_MEGABYTES = 2**40


def _flag(source: str, value: object) -> bool:
    """A bool, or one of the words that stand for it in the environment."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{source} must be True or False (1 or 0), got {value!r}")
    return value


def _megabytes(least: int, setter: str) -> Callable[[str, object], int]:
    """A whole number from `least`, which the kernels are told by a function of the library."""

    def parse(source: str, value: object) -> int:
        megabytes = -1
        if isinstance(value, str) and value.strip().isdecimal():
            megabytes = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            megabytes = value
        if not least <= megabytes <= _MOST_MEGABYTES:
            raise ValueError(
                f"{source} must be a whole number of MiB from {least} to 2**40, got {value!r}"
            )
        if _C is not None:
            getattr(_C, setter)(megabytes)
        return megabytes

    return parse


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "validate_device_inputs": _flag,
    "max_workspace_mb": _megabytes(1, "set_max_workspace_mb"),
    "max_kept_output_mb": _megabytes(0, "set_max_kept_output_mb"),
}
_DEFAULTS: dict[str, object] = {
    "validate_device_inputs": False,
    "max_workspace_mb": 256,
    "max_kept_output_mb": 512,
}


class _Config(ModuleType):
    """The module itself, with attributes that check what they are given."""

    def __getattr__(self, name: str) -> Any:
        # Reached only while the switch has no value yet: afterwards it is an ordinary attribute.
        if name not in _PARSERS:
            raise AttributeError(f"fastctc.config has no switch {name!r}: {', '.join(_PARSERS)}")
        variable = f"FASTCTC_{name.upper()}"
        text = os.environ.get(variable)
        setting = _DEFAULTS[name] if text is None else text
        value = _PARSERS[name](variable, setting)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PARSERS:
            value = _PARSERS[name](f"fastctc.config.{name}", value)
        elif not name.startswith("_"):
            raise AttributeError(f"fastctc.config has no switch {name!r}: {', '.join(_PARSERS)}")
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Config
