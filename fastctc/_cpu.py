"""CPU tensors to the compiled kernel: allocate what it writes, and call it.

Without the compiled library the reference implementation takes the same call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastctc import config
from fastctc._checks import Problem, raise_status
from fastctc._native import _C

Status = tuple[int, int, int, int]
HALF = frozenset({torch.float16, torch.bfloat16})


def _choose() -> Callable[..., Status | None]:
    """The compiled call, or the reference in its place, with a word on why that is slow."""
    if _C is not None:
        _ = config.max_workspace_mb  # read from the environment, it is passed on to the kernels
        kernel: Callable[..., Status | None] = _C.ctc_loss_cpu
        return kernel
    warnings.warn(
        "fastctc was installed without its compiled library and runs on its reference "
        "implementation, which is right but slow: install it where a C++ compiler is at hand",
        RuntimeWarning,
        stacklevel=5,
    )
    from fastctc import reference

    return reference.ctc_loss_cpu


def _first_call(*arguments: Any) -> Status | None:
    """Settle what serves this call and all later ones."""
    global ctc_loss_cpu
    ctc_loss_cpu = _choose()
    return ctc_loss_cpu(*arguments)


ctc_loss_cpu: Callable[..., Status | None] = _first_call


def loss_dtype(scores_dtype: torch.dtype) -> torch.dtype:
    """Losses of half precision scores are float32."""
    return torch.float32 if scores_dtype in HALF else scores_dtype


def compute(
    problem: Problem, want_loss: bool, want_grad: bool, grad_out: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Run the kernel.

    Args:
        problem: what to compute.
        want_loss: fill in the loss.
        want_grad: fill in the gradient, contiguous in the layout of the scores.
        grad_out: what the gradient is multiplied by before it is rounded: of the loss's shape and
            dtype. None stands for ones.

    Returns:
        The loss and the gradient, None where not wanted.

    Raises:
        RuntimeError: a length is out of range, or does not fit the targets.
        IndexError: a label is no class.
        MemoryError: no memory for the workspace.
    """
    scores = problem.scores
    loss = grad = None
    # Not torch.empty, to which a default device set by the program would apply.
    if want_loss:
        loss = scores.new_empty(problem.loss_shape, dtype=loss_dtype(scores.dtype))
    if want_grad:
        grad = torch.empty_like(scores, memory_format=torch.contiguous_format)
    if grad_out is not None:
        grad_out = grad_out.detach().resolve_neg().contiguous()
    status = ctc_loss_cpu(
        *problem.arguments,
        0 if grad_out is None else grad_out.data_ptr(),
        0 if loss is None else loss.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        *problem.grad_strides,
        torch.get_num_threads(),
    )
    if status is not None:
        raise_status(problem, status)
    return loss, grad
