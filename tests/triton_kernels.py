"""The Triton kernels for tests: on a GPU, or in triton's interpreter.

Tests that import this are skipped where there is neither; TRITON_INTERPRET=1, set before triton is
imported (`make triton-gates` does that), asks for the interpreter.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from fastctc.triton import spectrogram_norm as kernels  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"


def every(step: int, *axes: Any) -> list[tuple[Any, ...]]:
    """All combinations for the interpreter; some for a GPU, which compiles them all."""
    return list(itertools.product(*axes))[:: step if ON_GPU else 1]


__all__ = ["DEVICE", "ON_GPU", "every", "kernels"]
