"""What is said where triton is not installed, or too old, and what serves a GPU then."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from norm_cases import MASKS, batch, options

from fastctc import _norm_ops
from fastctc.triton import why_missing


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Which kernels serve a device is asked anew, in the test and after it."""
    _norm_ops.kernels.cache_clear()
    yield
    _norm_ops.kernels.cache_clear()


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


@pytest.mark.usefixtures("forgotten")
def test_torch_operations_serve_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    x, lengths = batch()
    seed, chosen, count = torch.tensor([5]), options("T", 1), MASKS.time_count
    ops = torch.ops.fastctc
    masks = ops.spectrogram_masks(seed, lengths, x.shape, *MASKS)
    y, mean, var = ops.spectrogram_norm(x, lengths, None, None, masks, count, *chosen)
    given = (y, x, lengths, mean, var, None, masks, count, *chosen)
    dx, _, _ = ops.spectrogram_norm_backward(*given)
    monkeypatch.setitem(sys.modules, "triton", None)
    draw, forward, backward = (
        _norm_ops._implementation(name, "cuda")
        for name in ("spectrogram_masks", "spectrogram_norm", "spectrogram_norm_backward")
    )
    with pytest.warns(RuntimeWarning, match="runs on cuda without triton 3.6 or newer") as said:
        assert torch.equal(draw(seed, lengths, x.shape, *MASKS), masks)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        found, _, _ = forward(x, lengths, None, None, masks, count, *chosen)
        found_dx, _, _ = backward(*given)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(found_dx, dx)
