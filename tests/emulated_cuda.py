"""The CUDA backend over host memory, for a compiled module whose kernels an emulator runs.

With ``FASTCTC_EMULATE_CUDA=1`` the losses of CPU tensors go this way in all tests, and
``FASTCTC_LIBRARY`` names the module, one that was built with the emulator.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastctc._cuda import Cuda

EMULATED = os.environ.get("FASTCTC_EMULATE_CUDA", "0") not in ("", "0")

ALIGNMENT = 256
MARGIN = 4 * ALIGNMENT
MARK = 0xA5
UNWRITTEN = 0xFF  # NaN in every floating-point type


class EmulatedCuda(Cuda):
    """Calls the emulated kernels with memory that has margins, and looks at these afterwards."""

    def __init__(self, library: Any) -> None:
        super().__init__(library)
        self.blind = False
        # An address sanitizer sees the ends of an allocation by itself, margins would hide them.
        self.margin = 0 if library.build_info()["sanitizers"] else MARGIN
        self.buffers: list[tuple[weakref.ref[Tensor], np.ndarray, int, int]] = []

    @contextlib.contextmanager
    def everything_on_device(self) -> Iterator[None]:
        """Takes host tensors for tensors on a device, whose values nobody may read."""
        self.blind = True
        try:
            yield
        finally:
            self.blind = False

    def sees(self, values: Tensor) -> bool:
        return values.is_cpu and not self.blind

    def device_and_stream(self, scores: Tensor) -> tuple[int, int]:
        return 0, 0

    def empty(self, scores: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        slack = ALIGNMENT if self.margin else 0
        memory = np.full(size + 2 * self.margin + slack, MARK, dtype=np.uint8)
        start = self.margin + (-memory.ctypes.data) % ALIGNMENT if slack else 0
        memory[start : start + size] = UNWRITTEN
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        values = torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=start)
        values = values.view(tuple(shape))
        self.buffers.append((weakref.ref(values), memory, start, start + size))
        return values

    def upload(self, values: Tensor, scores: Tensor) -> Tensor:
        return self.empty(scores, values.shape, values.dtype).copy_(values)

    def call(self, entry: str, *arguments: Any) -> None:
        super().call(entry, *arguments)
        for _, memory, start, end in self.buffers:
            marked = bool((memory[:start] == MARK).all() and (memory[end:] == MARK).all())
            assert marked, f"{entry} wrote outside of a buffer of {end - start} bytes"
        self.buffers = [buffer for buffer in self.buffers if buffer[0]() is not None]
