"""Errors that a person can cause, and that the command line shows as one sentence."""

from __future__ import annotations


class TrainError(ValueError):
    """Base of the errors below."""


class ConfigError(TrainError):
    """A setting has a value that cannot work; the message names the setting, value and limit."""


class DataError(TrainError):
    """Data cannot be read; the message names the file, and the line where there is one."""


class NonFiniteError(TrainError):
    """A loss or a gradient is NaN or infinite, and ``nan_policy`` is ``raise``."""
