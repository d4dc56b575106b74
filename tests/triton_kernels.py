"""The Triton kernels for tests: on a GPU, or in triton's interpreter.

Tests that import this are skipped where there is neither; TRITON_INTERPRET=1, set before triton is
imported (`make triton-gates` does that), asks for the interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from fastctc.triton import spectrogram_norm as kernels  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
#: The `pytestmark` of such tests.
MARKS = [pytest.mark.gpu] if ON_GPU else []

__all__ = ["DEVICE", "MARKS", "ON_GPU", "kernels"]
