"""Who computes the loss: one backend for each type of device that this build serves."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fastctc import _cpu, _cuda
from fastctc._checks import Options, Problem
from fastctc._native import _C


class Backend(Protocol):
    """Checks and computes losses on one type of device. Results are on the device of the scores."""

    def prepare(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        options: Options,
    ) -> Problem:
        """Check the arguments, and bring targets and lengths to where the kernel reads them."""

    def loss(self, problem: Problem) -> Tensor:
        """The loss alone."""

    def loss_for_backward(self, problem: Problem) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        """The loss, tensors that autograd is to keep for `backward`, and other things to keep."""

    def backward(
        self, saved: tuple[Tensor, ...], kept: Any, options: Options, grad_out: Tensor
    ) -> Tensor:
        """The gradient by the scores, any number of times.

        `saved` begins with the scores and the targets and lengths of the `Problem`, and goes on
        with what `loss_for_backward` gave, as does `kept`.
        """

    def gradient(self, problem: Problem, grad_out: Tensor) -> Tensor:
        """The gradient from scratch."""


BACKENDS: dict[str, Backend] = {"cpu": _cpu.Cpu()}
if hasattr(_C, "ctc_loss_cuda_forward"):
    BACKENDS["cuda"] = _cuda.Cuda(_C)


def backend_of(log_probs: Tensor) -> Backend:
    """The backend that serves these scores.

    Raises:
        NotImplementedError: none does.
    """
    device = log_probs.device
    backend = BACKENDS.get(device.type)
    if backend is None:
        raise NotImplementedError(_refusal(device))
    return backend


def _refusal(device: torch.device) -> str:
    sentence = (
        f"fastctc.ctc_loss serves tensors on {' and '.join(BACKENDS)}, and log_probs is on {device}"
    )
    if device.type == "cuda":
        sentence += ": this build has no CUDA library, and `fastctc info` says how to get one"
    return sentence
