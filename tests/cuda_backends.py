"""The CUDA backend in the place of the CPU's, so that every test of values reaches its kernels.

``FASTCTC_EMULATE_CUDA=1``: the losses of CPU tensors go through the kernels that the emulator in
``FASTCTC_LIBRARY`` runs. ``FASTCTC_TEST_THROUGH_GPU=1``: they go to the GPU and come back.
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

from fastctc._backends import BACKENDS, Backend
from fastctc._checks import Options, Problem
from fastctc._cuda import Cuda
from fastctc._native import _C

EMULATED = os.environ.get("FASTCTC_EMULATE_CUDA", "0") not in ("", "0")
THROUGH_GPU = os.environ.get("FASTCTC_TEST_THROUGH_GPU", "0") not in ("", "0")
ON_CUDA = EMULATED or THROUGH_GPU

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

    def capturing(self) -> bool:
        return False

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


class ThroughGpu:
    """Hands the scores to the backend of the GPU, and its results to the host."""

    def __init__(self, cuda: Backend) -> None:
        self.cuda = cuda

    def prepare(self, log_probs: Tensor, *rest: Any) -> Problem:
        return self.cuda.prepare(log_probs.detach().cuda(), *rest)

    def loss(self, problem: Problem) -> Tensor:
        return self.cuda.loss(problem).cpu()

    def loss_for_backward(self, problem: Problem) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        loss, saved, kept = self.cuda.loss_for_backward(problem)
        return loss.cpu(), saved, kept

    def backward(
        self, saved: tuple[Tensor, ...], kept: Any, options: Options, grad_out: Tensor
    ) -> Tensor:
        there = (saved[0].cuda(), *saved[1:])
        return self.cuda.backward(there, kept, options, grad_out.cuda()).cpu()

    def gradient(self, problem: Problem, grad_out: Tensor) -> Tensor:
        return self.cuda.gradient(problem, grad_out.cuda()).cpu()


def install() -> None:
    """Put the backend that the environment asks for in the place of the CPU's."""
    if EMULATED:
        if not hasattr(_C, "ctc_loss_cuda_forward"):
            raise RuntimeError("FASTCTC_EMULATE_CUDA: FASTCTC_LIBRARY has no emulated kernels")
        BACKENDS["cpu"] = EmulatedCuda(_C)
    elif THROUGH_GPU:
        if "cuda" not in BACKENDS or not torch.cuda.is_available():
            raise RuntimeError("FASTCTC_TEST_THROUGH_GPU: no CUDA device, or no build for it")
        BACKENDS["cpu"] = ThroughGpu(BACKENDS["cuda"])
