"""Spectrogram normalisation in torch and float64, written to be read.

`fastctc/_norm.py` says what each function computes. The compiled kernels are tested against this,
and it serves the calls where no kernel can: on the CPU without the compiled library, and on a GPU
without triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastctc._norm import (
    LOG1P,
    LOG10,
    NO_LOG,
    MaskOptions,
    NormOptions,
    counts,
    mask_rows,
)

_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor], key: Tensor) -> tuple[Tensor, Tensor]:
    """The first two words of Philox4x32-10 for the counters (c0, c1, 0, 0), in int64.

    Products of two 32-bit words wrap round in int64, which leaves their bits as they should be.
    """
    c0, c1 = counter
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((second >> 32) & _WORD) ^ c1 ^ k0,
            second & _WORD,
            ((first >> 32) & _WORD) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1


def draw_masks(
    seed: Tensor, lengths: Tensor, shape: tuple[int, ...], options: MaskOptions
) -> Tensor:
    """Intervals (R, M, 2), int32."""
    rows, device = mask_rows(shape, options), lengths.device
    masks = options.time_count + options.freq_count
    row = torch.arange(rows, device=device)[:, None].expand(rows, masks)
    mask = torch.arange(masks, device=device).expand(rows, masks)
    w0, w1 = philox((mask, row), seed.to(torch.int64).reshape(()))
    frames = lengths.clamp(0, shape[1]).repeat_interleave(rows // max(shape[0], 1))[:, None]
    is_time = mask < options.time_count
    size = torch.where(is_time, frames, shape[4])
    time_limit = ((size * options.time_share) >> 16).clamp(max=options.time_width)
    limit = torch.where(is_time, time_limit, size.clamp(max=options.freq_width))
    width = (w0 * (limit + 1)) >> 32
    start = (w1 * (size - width + 1)) >> 32
    return torch.stack([start, start + width], -1).to(torch.int32)


def valid_frames(lengths: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Where frames are no padding: bool (N, T, 1, 1, 1)."""
    time = torch.arange(shape[1], device=lengths.device)
    return (time < lengths[:, None]).view(shape[0], shape[1], 1, 1, 1)


def kept(lengths: Tensor, shape: tuple[int, ...], masks: Tensor | None, time_masks: int) -> Tensor:
    """Where y is neither padding nor masked: bool, broadcasts to `shape`."""
    n, t, b, e, f = shape
    keep = valid_frames(lengths, shape)
    if masks is None:
        return keep
    per_channel = (n, 1, b, e, 1) if masks.shape[0] != n else (n, 1, 1, 1, 1)
    frame = torch.arange(t, device=masks.device).view(1, t, 1, 1, 1)
    bin_ = torch.arange(f, device=masks.device).view(1, 1, 1, 1, f)
    for m in range(masks.shape[1]):
        start, end = (masks[:, m, i].reshape(per_channel) for i in (0, 1))
        at = frame if m < time_masks else bin_
        keep = keep & ~((start <= at) & (at < end))
    return keep


def compress(x: Tensor, lengths: Tensor, options: NormOptions) -> Tensor:
    """v in float64, 0 on padding."""
    x = torch.where(valid_frames(lengths, tuple(x.shape)), x.to(torch.float64), 0.0)
    if options.log == LOG1P:
        return torch.log1p(x)
    if options.log == LOG10:
        # Padding takes the logarithm of log_eps, and is left out of everything.
        return torch.log10(x + options.log_eps)
    assert options.log == NO_LOG
    return x


def _group_sum(values: Tensor, options: NormOptions) -> Tensor:
    axes = (0, 1) if options.over_batch else (1,)
    total = values.sum((*axes, 4) if options.over_freq else axes, keepdim=True)
    return total.squeeze(1)


def _rstd(var: Tensor, options: NormOptions) -> Tensor:
    spread = var + options.eps
    return torch.where(spread == 0, 0.0, spread.rsqrt())


def moments(x: Tensor, lengths: Tensor, options: NormOptions) -> tuple[Tensor, Tensor]:
    """Mean and variance, in two passes."""
    shape = tuple(x.shape)
    valid = valid_frames(lengths, shape)
    v = torch.where(valid, compress(x, lengths, options), 0.0)
    count = counts(lengths, shape, options).clamp(min=1)
    mean = _group_sum(v, options) / count
    deviation = torch.where(valid, v - mean.unsqueeze(1), 0.0)
    var = _group_sum(deviation * deviation, options) / count
    return mean, var


def _normed(x: Tensor, lengths: Tensor, mean: Tensor, var: Tensor, options: NormOptions) -> Tensor:
    return (compress(x, lengths, options) - mean.unsqueeze(1)) * _rstd(var, options).unsqueeze(1)


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
    z = _normed(x, lengths, mean, var, options)
    if weight is not None and bias is not None:
        z = z * weight.to(torch.float64) + bias.to(torch.float64)
    y = torch.where(kept(lengths, tuple(x.shape), masks, time_masks), z, 0.0)
    return torch.empty_like(x).copy_(y)


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
    mean, var = moments(x, lengths, options)
    y = normalise(x, lengths, mean, var, weight, bias, masks, time_masks, options)
    return y, mean, var


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
    shape = tuple(x.shape)
    keep = kept(lengths, shape, masks, time_masks)
    g = torch.where(keep, grad.to(torch.float64), 0.0)
    h = torch.where(valid_frames(lengths, shape), _normed(x, lengths, mean, var, options), 0.0)
    return _group_sum(g, options), _group_sum(g * h, options)


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
    shape = tuple(x.shape)
    valid = valid_frames(lengths, shape)
    g = torch.where(kept(lengths, shape, masks, time_masks), grad.to(torch.float64), 0.0)
    if mean_sum is not None and mean_dot is not None:
        h = _normed(x, lengths, mean, var, options)
        g = g - mean_sum.unsqueeze(1) - h * mean_dot.unsqueeze(1)
    slope = _rstd(var, options).unsqueeze(1)
    if weight is not None:
        slope = slope * weight.to(torch.float64)
    g = g * slope
    value = torch.where(valid, x.to(torch.float64), 0.0)
    if options.log == LOG1P:
        g = g / (1 + value)
    elif options.log == LOG10:
        g = g / ((value + options.log_eps) * math.log(10))
    return torch.empty_like(x).copy_(torch.where(valid, g, 0.0))


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
    sums = gradient_sums(grad, x, lengths, mean, var, masks, time_masks, options)
    count = counts(lengths, tuple(x.shape), options).clamp(min=1)
    mean_sum, mean_dot = sums[0] / count, sums[1] / count
    dx = input_gradient(
        grad, x, lengths, mean, var, weight, masks, time_masks, mean_sum, mean_dot, options
    )
    return dx, *sums
