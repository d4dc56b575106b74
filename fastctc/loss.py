"""The CTC loss: a function and a module that take the place of torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastctc import _checks, _ops
from fastctc._backends import Backend, backend_of
from fastctc._checks import Problem
from fastctc._dispatch import is_transformed, wants_dispatcher

Lengths = Tensor | Sequence[int]


class _Loss(torch.autograd.Function):
    """The loss as a node of the autograd graph; what it keeps is the backend's to say."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, problem: Problem, backend: Backend) -> Tensor:
        loss, more, ctx.kept = backend.loss_for_backward(problem)
        ctx.save_for_backward(
            log_probs, problem.targets, problem.input_lengths, problem.target_lengths, *more
        )
        ctx.options = problem.options
        ctx.backend = backend
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad_out,) = grad_outputs
        # Asked for in every backward pass, as this is what notices a change in place.
        saved = ctx.saved_tensors
        if is_transformed(grad_out):
            return _ops.ctc_loss_backward(grad_out, saved[:4], ctx.options), None, None
        if not torch.is_grad_enabled():
            return ctx.backend.backward(saved, ctx.kept, ctx.options, grad_out), None, None
        with torch.no_grad():
            gradient = ctx.backend.backward(saved, ctx.kept, ctx.options, grad_out)
        return _FirstDerivative.apply(gradient, saved[0], grad_out), None, None


class _FirstDerivative(torch.autograd.Function):
    """The gradient as a function of the scores, one that refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, log_probs: Tensor, grad_out: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise RuntimeError(_ops.SECOND_DERIVATIVE)


def unserved_transform(log_probs: Tensor) -> str | None:
    """The transform, if any, that would take the loss for a constant, or see no numbers."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms (grad, vmap, jacrev, ...)"
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(log_probs).tangent is not None:
        return "forward-mode differentiation"
    return None


def _refuse_transforms(log_probs: Tensor) -> None:
    """Raise under a transform that the loss does not serve."""
    transform = unserved_transform(log_probs)
    if transform is not None:
        raise NotImplementedError(
            f"fastctc.ctc_loss does not support {transform}: use backward() or torch.autograd.grad"
        )


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    from_logits: bool = False,
    batch_first: bool = False,
    grad: str = "torch",
    max_target_length: int | None = None,
) -> Tensor:
    """Connectionist temporal classification loss, a drop-in for ``torch.nn.functional.ctc_loss``.

    Args:
        log_probs: (T, N, C), or (N, T, C) with ``batch_first``, or (T, C) for one utterance:
            natural-log probabilities, or logits with ``from_logits``. float64, float32, float16 or
            bfloat16, with any strides, on the CPU, or on a CUDA device where this build has the
            CUDA library.
        targets: labels, (N, S) padded, or (sum(target_lengths),) concatenated; (S,) or (1, S) for
            one utterance. Any dtype, on any device. What lies past a row's length is ignored.
        input_lengths: frames of each row: N integers in a tensor on any device, a list or a tuple.
            Frames past them are padding, with a gradient of exactly 0.
        target_lengths: labels of each row, likewise, and of the same kind as `input_lengths`.
        blank: index of the blank class.
        reduction: "none" for the N losses, "mean" for the batch mean of loss / max(labels, 1), or
            "sum".
        zero_infinity: rows whose labels do not fit into their frames count as loss 0 and gradient
            0, instead of inf and NaN.
        from_logits: apply a log-softmax over the classes, fused into the loss.
        batch_first: `log_probs` has its batch dimension first.
        grad: the gradient of log-probabilities. "torch" is exp(log_probs) - posterior, right behind
            a log-softmax. "true" is -posterior, the derivative by the scores as given, right for
            scores that were scaled after normalising, or never normalised. Without effect on
            logits.
        max_target_length: a bound that every target length is known to stay within. With target
            lengths on a device it sizes the workspace, which is otherwise sized by the shape of the
            targets: nobody waits for the device. Target lengths on the host are merely held against
            it.

    Returns:
        0-d, or (N,) for reduction "none" of a batch, on the device of `log_probs`. Of the dtype of
        `log_probs`, but float32 for float16 and bfloat16.

    Lengths and labels:
        On the host they are checked (labels where the target lengths are on the host, too), and
        raise. On a device nobody reads them but the kernel: a row with one that is out of range has
        the loss inf and the gradient NaN (0 and 0 with `zero_infinity`), and with
        ``fastctc.config.validate_device_inputs`` the call waits for the device and raises.

    Numeric limits:
        A score counts as -inf if it is more than 181,704 nats below the largest of its frame (2^30
        bits in float64), and so does a path that is more than 5.8e6 nats behind the best one at
        some frame (2^35 bits in float64). float16 and bfloat16 have the limits of float32. On CUDA
        a path is impossible that is 2.3e7 nats less likely than the best classes of the target in
        its frames together, however good it is, and a label's state that is 371,000 nats less
        likely than its neighbours has no part in the gradient.

    Raises:
        RuntimeError: a shape or length does not fit; the sentence is torch's.
        IndexError: a label is outside of the classes.
        TypeError: an argument is of the wrong type.
        ValueError: no such `reduction` or `grad`, `max_target_length` is below 0, or a target is
            longer.
        NotImplementedError: `log_probs` has a dtype, layout or device that is not served, or the
            call is made under torch.func or forward-mode differentiation.
    """
    options = _checks.check_options(
        blank, reduction, zero_infinity, from_logits, batch_first, grad, max_target_length
    )
    _checks.check_tensors(log_probs, targets)
    input_lengths, target_lengths = _checks.lengths_as_tensors(input_lengths, target_lengths)
    if wants_dispatcher(log_probs):
        return _ops.ctc_loss(log_probs, targets, input_lengths, target_lengths, options)
    _refuse_transforms(log_probs)
    backend = backend_of(log_probs)
    problem = backend.prepare(log_probs, targets, input_lengths, target_lengths, options)
    if log_probs.requires_grad and torch.is_grad_enabled():
        # Function.apply without its part for torch.func, which has been ruled out above.
        result: Tensor = super(torch.autograd.Function, _Loss).apply(log_probs, problem, backend)
        return result
    return backend.loss(problem)


class CTCLoss(torch.nn.CTCLoss):
    """Connectionist temporal classification loss, a drop-in for ``torch.nn.CTCLoss``.

    The options are those of `ctc_loss`, which says what they mean; calling the module takes
    ``(log_probs, targets, input_lengths, target_lengths)``.

    Raises:
        ValueError: no such `reduction` or `grad`, or `max_target_length` is below 0.
        TypeError: an option is of the wrong type.
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        *,
        from_logits: bool = False,
        batch_first: bool = False,
        grad: str = "torch",
        max_target_length: int | None = None,
    ) -> None:
        options = _checks.check_options(
            blank, reduction, zero_infinity, from_logits, batch_first, grad, max_target_length
        )
        super().__init__(blank, reduction, zero_infinity)
        self.from_logits = from_logits
        self.batch_first = batch_first
        self.grad = grad
        self.max_target_length = options.max_target_length

    def forward(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths
    ) -> Tensor:
        """The loss of one batch: see `ctc_loss`."""
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
            from_logits=self.from_logits,
            batch_first=self.batch_first,
            grad=self.grad,
            max_target_length=self.max_target_length,
        )

    def extra_repr(self) -> str:
        """The options, as they show in ``print(model)``."""
        names = ("blank", "reduction", "zero_infinity", "from_logits", "batch_first", "grad")
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        if self.max_target_length is not None:
            shown.append(f"max_target_length={self.max_target_length}")
        return ", ".join(shown)
