"""CPU tensors to the compiled kernel: allocate what it writes, and call it.

Without the compiled library the reference implementation takes the same call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastctc import _checks, config
from fastctc._checks import HALF, Options, Placed, Problem, loss_dtype
from fastctc._native import _C

Status = tuple[int, int, int, int]
ON_REFERENCE = (
    "fastctc was installed without its compiled library and runs on its reference "
    "implementation, which is right but slow: install it where a C++ compiler is at hand"
)


def _choose() -> Callable[..., Status | None]:
    """The compiled call, or the reference in its place, with a word on why that is slow."""
    if _C is not None:
        _ = config.max_workspace_mb  # read from the environment, it is passed on to the kernels
        kernel: Callable[..., Status | None] = _C.ctc_loss_cpu
        return kernel
    warnings.warn(ON_REFERENCE, RuntimeWarning, stacklevel=5)
    from fastctc import reference

    return reference.ctc_loss_cpu


def _first_call(*arguments: Any) -> Status | None:
    """Settle what serves this call and all later ones."""
    global ctc_loss_cpu
    ctc_loss_cpu = _choose()
    return ctc_loss_cpu(*arguments)


ctc_loss_cpu: Callable[..., Status | None] = _first_call


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
        _, _, frames, _, classes = problem.arguments[:5]
        lengths = problem.target_lengths
        _checks.raise_status(status, frames, classes, problem.targets, lengths, scores.device)
    return loss, grad


def _place(
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    frames: int,
    batch: int,
    classes: int,
) -> Placed:
    """Everything on the host, where the kernel checks the values."""
    return (
        _checks.host_integers("targets", targets),
        _checks.host_integers("input_lengths", input_lengths),
        _checks.host_integers("target_lengths", target_lengths),
        None,
    )


class Cpu:
    """The loss on the CPU, with its gradient computed along, while the lattice is at hand.

    The first backward pass hands that gradient over without copying it; a second one computes it
    anew. float16 gradients wait for the backward pass instead: they are too coarse to be scaled
    after rounding, and training in float16 scales its losses.
    """

    def prepare(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        options: Options,
    ) -> Problem:
        """See `Backend`. The bound on target lengths is held against them, and not needed."""
        problem = _checks.prepare(
            log_probs, targets, input_lengths, target_lengths, options, _place
        )
        if options.max_target_length is not None:
            _checks.check_max_target_length(options.max_target_length, problem.target_lengths)
        return problem

    def loss(self, problem: Problem) -> Tensor:
        """The loss alone."""
        loss, _ = compute(problem, want_loss=True, want_grad=False)
        assert loss is not None
        return loss

    def loss_for_backward(
        self, problem: Problem
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        """The loss, and a list with its gradient for the first backward pass to take out."""
        want_grad = problem.scores.dtype is not torch.float16
        loss, gradient = compute(problem, want_loss=True, want_grad=want_grad)
        assert loss is not None
        return loss, (), [] if gradient is None else [gradient]

    def backward(
        self, saved: tuple[Tensor, ...], kept: list[Tensor], options: Options, grad_out: Tensor
    ) -> Tensor:
        """The gradient times `grad_out`, made of the one at hand where that loses nothing."""
        # Autograd copies a gradient that anyone else still refers to. Of threads that share a
        # graph, one is to find it.
        gradient: Tensor | None
        try:
            gradient = kept.pop()
        except IndexError:
            gradient = None
        scale = None
        if grad_out.numel() == 1:
            scale = grad_out.item()
        elif grad_out.stride() == (0,):  # a sum or mean of the rows came after the loss
            scale = grad_out[0].item()
        if scale == 1.0:
            return gradient if gradient is not None else self._recomputed(saved, options, None)
        if saved[0].dtype in HALF:
            return self._recomputed(saved, options, grad_out)  # scaled first, rounded once
        finite = bool(grad_out.isfinite().all()) if scale is None else math.isfinite(scale)
        if not finite:  # the kernel keeps 0 * inf off padded frames
            return self._recomputed(saved, options, grad_out)
        if gradient is None:
            gradient = self._recomputed(saved, options, None)
        if scale is not None:
            return gradient.mul_(scale)
        return gradient.mul_(grad_out.view((-1, 1, 1) if options.batch_first else (1, -1, 1)))

    def gradient(self, problem: Problem, grad_out: Tensor | None) -> Tensor:
        """The gradient from scratch; None stands for ones."""
        _, gradient = compute(problem, want_loss=False, want_grad=True, grad_out=grad_out)
        assert gradient is not None
        return gradient

    def _recomputed(
        self, saved: tuple[Tensor, ...], options: Options, grad_out: Tensor | None
    ) -> Tensor:
        log_probs, targets, input_lengths, target_lengths = saved
        problem = self.prepare(log_probs, targets, input_lengths, target_lengths, options)
        return self.gradient(problem, grad_out)
