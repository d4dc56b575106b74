"""The loss as registered torch operators, for torch.compile and whatever else goes by dispatcher.

Eager calls do not come here: dispatching and the generated autograd node cost more than a small
loss does. The operators recompute the forward pass in the backward one, so that a compiled graph
holds no gradient between the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastctc import _checks
from fastctc._backends import backend_of
from fastctc._checks import NONE, Options

_OPTIONS = (
    "int blank, int reduction, bool zero_infinity, bool from_logits, bool batch_first, "
    "bool true_grad, int? max_target_length=None"
)
_TENSORS = "Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths"
SECOND_DERIVATIVE = (
    "fastctc.ctc_loss has no second derivative: its gradient cannot be differentiated again "
    "(backward was called with create_graph=True, and then through the gradient)"
)

torch.library.define(
    "fastctc::ctc_loss",
    f"({_TENSORS}, {_OPTIONS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "fastctc::ctc_loss_backward",
    f"(Tensor grad_out, {_TENSORS}, {_OPTIONS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _checked_options(options: tuple[Any, ...]) -> Options:
    """The scalar arguments of an operator, which anyone may have called."""
    checked = Options(*options)
    _checks.check_reduction_number(checked.reduction)
    _checks.check_bound(checked.max_target_length)
    return checked


@torch.library.impl("fastctc::ctc_loss", ("cpu", "cuda"))
def _loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *options: Any,
) -> Tensor:
    chosen = _checked_options(options)
    backend = backend_of(log_probs)
    return backend.loss(backend.prepare(log_probs, targets, input_lengths, target_lengths, chosen))


@torch.library.impl("fastctc::ctc_loss_backward", ("cpu", "cuda"))
def _loss_backward(
    grad_out: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *options: Any,
) -> Tensor:
    chosen = _checked_options(options)
    backend = backend_of(log_probs)
    problem = backend.prepare(log_probs, targets, input_lengths, target_lengths, chosen)
    dtype = _checks.loss_dtype(log_probs.dtype)
    _checks.check_grad_out(grad_out, dtype, log_probs.device, problem.loss_shape)
    return backend.gradient(problem, grad_out)


@torch.library.register_fake("fastctc::ctc_loss")
def _loss_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: int,
    zero_infinity: bool,
    from_logits: bool,
    batch_first: bool,
    true_grad: bool,
    max_target_length: int | None = None,
) -> Tensor:
    _checks.check_reduction_number(reduction)
    _checks.check_bound(max_target_length)
    shape = []
    if reduction == NONE and log_probs.dim() == 3:
        shape = [log_probs.size(0 if batch_first else 1)]
    return log_probs.new_empty(shape, dtype=_checks.loss_dtype(log_probs.dtype))


@torch.library.register_fake("fastctc::ctc_loss_backward")
def _loss_backward_fake(
    grad_out: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *options: Any,
) -> Tensor:
    _checked_options(options)
    # A grad_out on meta leads here whatever the scores are on.
    _checks.check_grad_out(grad_out, _checks.loss_dtype(log_probs.dtype), log_probs.device)
    return log_probs.new_empty(log_probs.shape)


def _save_loss_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _loss_vjp(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return (ctc_loss_backward(grad_out, ctx.saved_tensors, ctx.options), *[None] * 10)


def _no_second_derivative(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError(SECOND_DERIVATIVE)


torch.library.register_autograd("fastctc::ctc_loss", _loss_vjp, setup_context=_save_loss_inputs)
torch.library.register_autograd("fastctc::ctc_loss_backward", _no_second_derivative)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    options: Options,
) -> Tensor:
    """Call the registered operator of the loss."""
    loss: Tensor = torch.ops.fastctc.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, *options
    )
    return loss


def ctc_loss_backward(
    grad_out: Tensor, saved: tuple[Tensor, ...], options: tuple[Any, ...]
) -> Tensor:
    """Call the registered operator of the gradient with what the loss was computed from."""
    gradient: Tensor = torch.ops.fastctc.ctc_loss_backward(grad_out, *saved, *options)
    return gradient
