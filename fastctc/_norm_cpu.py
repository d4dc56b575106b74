"""Spectrogram normalisation of CPU tensors: allocate what the kernels write, and call them.

The functions are those of `_norm.Kernels`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastctc import config
from fastctc._checks import DTYPE_CODES
from fastctc._native import _C
from fastctc._norm import MaskOptions, NormOptions, mask_rows, statistics_shape

NO_STRIDES = (0, 0, 0, 0, 0)
# Results from here on lie in memory that the library keeps: for less, nothing is gained.
LEAST_KEPT_BYTES = 1 << 20
DLPACK_CODES = {torch.bfloat16: 4}  # of the others: 2, as of all floats


def _empty_like(x: Tensor) -> Tensor:
    """``torch.empty_like``; where that is large, in memory of results that were freed before."""
    size = x.element_size()
    if x.numel() * size < LEAST_KEPT_BYTES:
        return torch.empty_like(x)
    assert _C is not None
    _ = config.max_kept_output_mb  # read from the environment, it is passed on to the library
    strides = torch.empty_like(x, device="meta").stride()
    code = DLPACK_CODES.get(x.dtype, 2)
    y: Tensor = from_dlpack(_C.empty_output(tuple(x.shape), strides, code, 8 * size))
    return y


def _has_adjacent_bins(x: Tensor) -> bool:
    """Whether the innermost axis of several elements has them behind each other."""
    for axis in (4, 3, 2):
        if x.shape[axis] > 1:
            return x.stride(axis) == 1
    return True


def _fit(*tensors: Tensor) -> bool:
    """Whether a kernel can take these as they lie in memory: by bins, or by frames."""
    return all(_has_adjacent_bins(x) for x in tensors) or all(x.stride(1) == 1 for x in tensors)


def _address(values: Tensor | None) -> int:
    return 0 if values is None or values.numel() == 0 else values.data_ptr()


def _call(
    gradient: bool,
    x: Tensor,
    out: Tensor | None,
    grad: Tensor | None,
    lengths: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    statistics: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor] | None,
    reduce: bool,
    options: NormOptions,
) -> None:
    """Run a kernel; without utterances or frames, the results of nothing are zeros."""
    results = [*statistics, *(sums or ())] if reduce else []
    if x.numel() == 0:
        for result in results[-2:]:
            result.zero_()
        return
    x = x.detach().resolve_neg()
    grad = None if grad is None else grad.detach().resolve_neg()
    target = out
    if not _fit(x, *(each for each in (out, grad) if each is not None)):
        if out is not None and _fit(x, out) and grad is not None:
            grad = torch.empty_like(x).copy_(grad)
        else:
            x = x.contiguous()
            grad = None if grad is None else grad.contiguous()
            target = None if out is None else torch.empty_like(x)
    assert _C is not None
    row = _C.spectrogram_norm_cpu(
        gradient,
        DTYPE_CODES[x.dtype],
        tuple(x.shape),
        x.data_ptr(),
        x.stride(),
        _address(target),
        NO_STRIDES if target is None else target.stride(),
        _address(grad),
        NO_STRIDES if grad is None else grad.stride(),
        lengths.data_ptr(),
        options.over_batch,
        options.over_freq,
        options.log,
        options.log_eps,
        options.eps,
        _address(weight),
        _address(bias),
        _address(masks),
        0 if masks is None else masks.shape[0],
        0 if masks is None else masks.shape[1],
        time_masks,
        statistics[0].data_ptr(),
        statistics[1].data_ptr(),
        0 if sums is None else sums[0].data_ptr(),
        0 if sums is None else sums[1].data_ptr(),
        reduce,
        torch.get_num_threads(),
    )
    if row >= 0:
        raise ValueError(
            f"lengths[{row}] is {int(lengths[row])}: it must be from 0 to {x.shape[1]}, the "
            "frames of x"
        )
    if out is not None and target is not None and out is not target:
        out.copy_(target)


def _statistics(x: Tensor, options: NormOptions) -> tuple[Tensor, Tensor]:
    shape = statistics_shape(tuple(x.shape), options)
    return (
        torch.empty(shape, dtype=torch.float64, device=x.device),
        torch.empty(shape, dtype=torch.float64, device=x.device),
    )


def draw_masks(
    seed: Tensor, lengths: Tensor, shape: tuple[int, ...], options: MaskOptions
) -> Tensor:
    """Intervals (R, M, 2), int32."""
    rows, count = mask_rows(shape, options), options.time_count + options.freq_count
    masks = torch.empty((rows, count, 2), dtype=torch.int32, device=lengths.device)
    if masks.numel():
        assert _C is not None
        _C.draw_spectrogram_masks(
            int(seed), lengths.data_ptr(), tuple(shape), *options[:5], rows, masks.data_ptr()
        )
    return masks


def moments(x: Tensor, lengths: Tensor, options: NormOptions) -> tuple[Tensor, Tensor]:
    """Mean and variance."""
    statistics = _statistics(x, options)
    _call(False, x, None, None, lengths, None, None, None, 0, statistics, None, True, options)
    return statistics


def normalise(
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> Tensor:
    """y from given statistics."""
    y = _empty_like(x)
    _call(
        False, x, y, None, lengths, weight, bias, masks, time_masks, (mean, var), None, False,
        options,
    )  # fmt: skip
    return y


def forward(
    x: Tensor,
    lengths: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and var."""
    y, statistics = _empty_like(x), _statistics(x, options)
    _call(
        False, x, y, None, lengths, weight, bias, masks, time_masks, statistics, None, True,
        options,
    )  # fmt: skip
    return y, *statistics


def gradient_sums(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor]:
    """Sums of g and of g * h over each group."""
    sums = _statistics(x, options)
    _call(
        True, x, None, grad, lengths, None, None, masks, time_masks, (mean, var), sums, True,
        options,
    )  # fmt: skip
    return sums


def input_gradient(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    mean_sum: Tensor | None,
    mean_dot: Tensor | None,
    options: NormOptions,
) -> Tensor:
    """The gradient of x."""
    dx = _empty_like(x)
    sums = None if mean_sum is None or mean_dot is None else (mean_sum, mean_dot)
    _call(
        True, x, dx, grad, lengths, weight, None, masks, time_masks, (mean, var), sums, False,
        options,
    )  # fmt: skip
    return dx


def backward(
    grad: Tensor,
    x: Tensor,
    lengths: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    masks: Tensor | None,
    time_masks: int,
    options: NormOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, and the sums it is made of."""
    dx, sums = _empty_like(x), _statistics(x, options)
    _call(
        True, x, dx, grad, lengths, weight, None, masks, time_masks, (mean, var), sums, True,
        options,
    )  # fmt: skip
    return dx, *sums
