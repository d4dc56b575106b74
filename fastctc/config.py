"""Process-wide switches of fastctc.

======================  ================================  =========  =====================================
switch                  environment variable              default    meaning
======================  ================================  =========  =====================================
validate_device_inputs  FASTCTC_VALIDATE_DEVICE_INPUTS    False      Raise for lengths and labels that are
                                                                     out of range and live on a GPU, at
                                                                     the cost of waiting for the GPU. What
                                                                     lives on the host is always checked.
max_workspace_mb        FASTCTC_MAX_WORKSPACE_MB          None       Most workspace, in MiB, that one call
                                                                     on a GPU may take; it stores less and
                                                                     computes more to stay below. None is
                                                                     no limit. The CPU kernels keep only
                                                                     checkpoints of the lattice and do not
                                                                     look at it.
======================  ================================  =========  =====================================

Set one by assignment, ``fastctc.config.validate_device_inputs = True``, or through its variable,
which is read when the switch is first asked for. Assignment wins over the variable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

validate_device_inputs: bool
max_workspace_mb: int | None

_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def _flag(source: str, value: object) -> bool:
    """A bool, or one of the words that stand for it in the environment."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{source} must be True or False (1 or 0), got {value!r}")
    return value


def _megabytes(source: str, value: object) -> int | None:
    """A positive whole number; None, or an empty variable, for no limit."""
    if value is None or value == "":
        return None
    number = value
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{source} must be a whole number of MiB from 1 up, or None, got {value!r}")
    return number


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "validate_device_inputs": _flag,
    "max_workspace_mb": _megabytes,
}
_DEFAULTS: dict[str, object] = {"validate_device_inputs": False, "max_workspace_mb": None}


class _Config(ModuleType):
    """The module itself, with attributes that check what they are given."""

    def __getattr__(self, name: str) -> Any:
        # Reached only while the switch has no value yet: afterwards it is an ordinary attribute.
        if name not in _PARSERS:
            raise AttributeError(f"fastctc.config has no switch {name!r}: {', '.join(_PARSERS)}")
        variable = f"FASTCTC_{name.upper()}"
        text = os.environ.get(variable)
        value = _DEFAULTS[name] if text is None else _PARSERS[name](variable, text)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PARSERS:
            value = _PARSERS[name](f"fastctc.config.{name}", value)
        elif not name.startswith("_"):
            raise AttributeError(f"fastctc.config has no switch {name!r}: {', '.join(_PARSERS)}")
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Config
