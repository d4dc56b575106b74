"""What is said where triton is not installed, or too old."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from fastctc.triton import why_missing


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "fastctc.triton.spectrogram_norm", raising=False)
    assert why_missing().startswith("fastctc.triton needs triton, which is not installed")
    with pytest.raises(ImportError, match="needs triton, which is not installed"):
        importlib.import_module("fastctc.triton.spectrogram_norm")


def test_with_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("triton")
    old.__version__ = "3.1.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", old)
    assert why_missing() == "fastctc.triton needs triton 3.6 or newer, and 3.1.0 is installed"
    old.__version__ = "3.10.0"  # type: ignore[attr-defined]
    assert why_missing() == ""
