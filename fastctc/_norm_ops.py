"""Spectrogram normalisation as registered torch operators, over the kernels of each device."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastctc._dispatch import derivative_asked_of, is_transformed, wants_dispatcher
from fastctc._native import _C
from fastctc._norm import MaskOptions, NormOptions, mask_rows, statistics_shape
from fastctc._norm_checks import Layout, canonical, restored
from fastctc._norm_operands import check_draw, check_norm
from fastctc.triton import why_missing

_OPTIONS = "bool over_batch, bool over_freq, int log, float log_eps, float eps"
_INPUT = "Tensor x, Tensor lengths"
_STATISTICS = "Tensor mean, Tensor var"
_AFFINE = "Tensor? weight, Tensor? bias"
_MASKS = "Tensor? masks, int time_masks"

_SCHEMAS = {
    "spectrogram_masks": (
        "(Tensor seed, Tensor lengths, SymInt[] shape, int time_count, int time_width, "
        "int time_share, int freq_count, int freq_width, bool per_channel) -> Tensor"
    ),
    "spectrogram_moments": f"({_INPUT}, {_OPTIONS}) -> (Tensor, Tensor)",
    "spectrogram_normalise": (
        f"({_INPUT}, {_STATISTICS}, {_AFFINE}, {_MASKS}, {_OPTIONS}) -> Tensor"
    ),
    "spectrogram_norm": (
        f"({_INPUT}, {_AFFINE}, {_MASKS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
    ),
    "spectrogram_gradient_sums": (
        f"(Tensor grad, {_INPUT}, {_STATISTICS}, {_MASKS}, {_OPTIONS}) -> (Tensor, Tensor)"
    ),
    "spectrogram_input_gradient": (
        f"(Tensor grad, {_INPUT}, {_STATISTICS}, Tensor? weight, {_MASKS}, Tensor? mean_sum, "
        f"Tensor? mean_dot, {_OPTIONS}) -> Tensor"
    ),
    "spectrogram_norm_backward": (
        f"(Tensor grad, {_INPUT}, {_STATISTICS}, Tensor? weight, {_MASKS}, {_OPTIONS}) -> "
        "(Tensor, Tensor, Tensor)"
    ),
}
_FUNCTIONS = {
    "spectrogram_masks": "draw_masks",
    "spectrogram_moments": "moments",
    "spectrogram_normalise": "normalise",
    "spectrogram_norm": "forward",
    "spectrogram_gradient_sums": "gradient_sums",
    "spectrogram_input_gradient": "input_gradient",
    "spectrogram_norm_backward": "backward",
}
SECOND_DERIVATIVE = (
    "fastctc.spectrogram_norm has no second derivative: its gradient cannot be differentiated again"
)


@functools.cache
def kernels(device: str) -> ModuleType:
    """The module that implements `_norm.Kernels` for a type of device.

    Where no kernel can serve it, that is the reference, with a word on why it is slow.
    """
    if device == "cpu" and _C is not None:
        from fastctc import _norm_cpu

        return _norm_cpu
    if device == "cuda" and not why_missing():
        return importlib.import_module("fastctc.triton.spectrogram_norm")
    missing = (
        "triton 3.6 or newer, which CUDA builds of torch bring"
        if device == "cuda"
        else "a compiled module"
    )
    warnings.warn(
        f"fastctc.spectrogram_norm runs on {device} without {missing}, by torch operations in "
        "float64: right, but slow",
        RuntimeWarning,
        stacklevel=2,
    )
    return importlib.import_module("fastctc.reference.spectrogram_norm")


def _implementation(name: str, device: str) -> Any:
    drawing = name == "spectrogram_masks"
    scalars = MaskOptions if drawing else NormOptions
    count = len(scalars._fields)
    names = _argument_names(_SCHEMAS[name])[:-count]

    def run(*arguments: Any) -> Any:
        operands = arguments[:-count]
        options: Any = scalars(*arguments[-count:])
        if drawing:
            seed, lengths, shape = operands
            check_draw(seed, lengths, shape, options)
        else:
            check_norm(dict(zip(names, operands, strict=True)), options)
        return getattr(kernels(device), _FUNCTIONS[name])(*operands, options)

    return run


def _argument_names(schema: str) -> list[str]:
    return [part.split()[-1] for part in schema[1 : schema.index(")")].split(",")]


for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"fastctc::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    for _key in ("CPU", "CUDA"):
        torch.library.impl(f"fastctc::{_name}", _key)(_implementation(_name, _key.lower()))


def _new_statistics(x: Tensor, options: tuple[Any, ...]) -> Tensor:
    shape = statistics_shape(tuple(x.shape), NormOptions(*options))
    return x.new_empty(shape, dtype=torch.float64)


@torch.library.register_fake("fastctc::spectrogram_masks")
def _masks_fake(seed: Tensor, lengths: Tensor, shape: list[int], *options: Any) -> Tensor:
    chosen = MaskOptions(*options)
    rows = mask_rows(tuple(shape), chosen)
    return lengths.new_empty((rows, chosen.time_count + chosen.freq_count, 2), dtype=torch.int32)


@torch.library.register_fake("fastctc::spectrogram_moments")
def _moments_fake(x: Tensor, lengths: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _new_statistics(x, options), _new_statistics(x, options)


@torch.library.register_fake("fastctc::spectrogram_normalise")
def _normalise_fake(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("fastctc::spectrogram_norm")
def _norm_fake(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    options = others[-5:]
    return torch.empty_like(x), _new_statistics(x, options), _new_statistics(x, options)


@torch.library.register_fake("fastctc::spectrogram_gradient_sums")
def _sums_fake(grad: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    options = others[-5:]
    return _new_statistics(x, options), _new_statistics(x, options)


@torch.library.register_fake("fastctc::spectrogram_input_gradient")
def _input_gradient_fake(grad: Tensor, x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("fastctc::spectrogram_norm_backward")
def _backward_fake(grad: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    options = others[-5:]
    return torch.empty_like(x), _new_statistics(x, options), _new_statistics(x, options)


def channel_gradients(
    weight: Tensor | None, grad_sum: Tensor, grad_dot: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias."""
    if weight is None:
        return None, None
    return grad_dot.sum(0).to(weight.dtype), grad_sum.sum(0).to(weight.dtype)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, lengths, weight, _, masks, ctx.time_masks, *options = inputs
    ctx.options = options
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, lengths, mean, var, weight, masks)


class _ByOperator:
    """Those of the kernels that a backward pass calls, by way of torch's dispatcher."""

    @staticmethod
    def backward(*arguments: Any) -> Any:
        return torch.ops.fastctc.spectrogram_norm_backward(*arguments[:-1], *arguments[-1])

    @staticmethod
    def gradient_sums(*arguments: Any) -> Any:
        return torch.ops.fastctc.spectrogram_gradient_sums(*arguments[:-1], *arguments[-1])


def _gradients(
    served: Any, ctx: Any, grad: Tensor, saved: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Those of the canonical x, weight and bias, by the functions of `served`.

    `saved` begins with the canonical x. Checkpointing lets nobody ask for saved tensors twice.
    """
    *inputs, weight, masks = saved
    arguments, options = (grad, *inputs), NormOptions(*ctx.options)
    dx = None
    if ctx.needs_input_grad[0]:
        dx, *sums = served.backward(*arguments, weight, masks, ctx.time_masks, options)
    else:  # an input layer has a weight to learn, and nobody below it
        sums = served.gradient_sums(*arguments, masks, ctx.time_masks, options)
    return (dx, *channel_gradients(weight, *sums))


def _norm_vjp(ctx: Any, grad: Tensor, *of_statistics: Any) -> tuple[Tensor | None, ...]:
    dx, *of_channels = _gradients(_ByOperator, ctx, grad, ctx.saved_tensors)
    return (dx, None, *of_channels, *[None] * 7)


def _save_normalise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lengths, mean, var, weight, _, masks, ctx.time_masks, *options = inputs
    ctx.options = options
    ctx.save_for_backward(x, lengths, mean, var, weight, masks)


def _normalise_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, lengths, mean, var, weight, masks = ctx.saved_tensors
    of_weight = of_bias = dx = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.fastctc.spectrogram_input_gradient(
            grad, x, lengths, mean, var, weight, masks, ctx.time_masks, None, None, *ctx.options
        )
    if weight is not None and any(ctx.needs_input_grad[4:6]):
        sums = torch.ops.fastctc.spectrogram_gradient_sums(
            grad, x, lengths, mean, var, masks, ctx.time_masks, *ctx.options
        )
        of_weight, of_bias = channel_gradients(weight, *sums)
    return (dx, None, None, None, of_weight, of_bias, *[None] * 7)


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(SECOND_DERIVATIVE)


torch.library.register_autograd("fastctc::spectrogram_norm", _norm_vjp, setup_context=_save_norm)
torch.library.register_autograd(
    "fastctc::spectrogram_normalise", _normalise_vjp, setup_context=_save_normalise
)
for _name in ("spectrogram_norm_backward", "spectrogram_input_gradient"):
    torch.library.register_autograd(f"fastctc::{_name}", _no_second_derivative)


class _Norm(torch.autograd.Function):
    """The operator of that name for eager calls, whose generated node would cost more.

    The views between a layout and the canonical one stay inside, where nothing records them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layout: Layout,
        lengths: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        masks: Tensor | None,
        time_masks: int,
        options: NormOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        view = canonical(x, layout)
        arguments = (lengths, weight, bias, masks, time_masks)
        result = kernels(x.device.type).forward(view, *arguments, options)
        _save_norm(ctx, (x, *arguments, *options), result)
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        y, mean, var = result
        # Detached, it is no view any more, and may be overwritten by what comes next.
        return restored(y, layout).detach(), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 8
        # What differentiates the gradient again, or asks for many at once, has to see an operator.
        again = torch.is_grad_enabled() or is_transformed(grads[0])
        layout = ctx.layout
        x, *others = ctx.saved_tensors
        served = _ByOperator if again else kernels(x.device.type)
        saved = (canonical(x, layout), *others)
        dx, *of_channels = _gradients(served, ctx, canonical(grads[0], layout), saved)
        dx = None if dx is None else restored(dx, layout)
        return (dx, None, None, *of_channels, None, None, None)


def refuse_derivatives(*learned: Tensor | None) -> None:
    """Raise under a transform that would lose the derivative by x, weight or bias."""
    transform = derivative_asked_of(*learned)
    if transform is not None:
        raise NotImplementedError(
            f"fastctc.spectrogram_norm does not support {transform}: use backward() or "
            "torch.autograd.grad"
        )


def spectrogram_norm(
    x: Tensor,
    layout: Layout,
    lengths: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and variance of a batch: by the operator where something has to see it."""
    arguments = (lengths, weight, bias, masks, time_masks)
    learned = (x, weight, bias)
    if wants_dispatcher(x) or torch._C._are_functorch_transforms_active():
        operator = torch.ops.fastctc.spectrogram_norm
        y, mean, var = operator(canonical(x, layout), *arguments, *options)
    elif torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in learned):
        result: tuple[Tensor, Tensor, Tensor] = _Norm.apply(x, layout, *arguments, options)
        return result
    else:
        view = canonical(x, layout)
        y, mean, var = kernels(x.device.type).forward(view, *arguments, options)
    return restored(y, layout), mean, var
