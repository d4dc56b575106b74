"""Inputs of the normalisation tests, and a restatement in plain loops to hold others against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastctc._norm import LOG1P, LOG10, NO_LOG, MaskOptions, NormOptions

OVER = {"T": (False, False), "TF": (False, True), "NT": (True, False), "NTF": (True, True)}


def options(over: str = "T", log: int = NO_LOG, eps: float = 1e-5) -> NormOptions:
    """Options by the letters of the axes that statistics run over."""
    return NormOptions(*OVER[over], log, 1e-6, eps)


def batch(
    shape: tuple[int, ...] = (3, 9, 2, 3, 5),
    lengths: tuple[int, ...] = (9, 4, 7),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """A positive batch in canonical shape whose padding is NaN, and its lengths."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 3 + 0.1
    for n, length in enumerate(lengths):
        x[n, length:] = torch.nan
    return x.to(dtype), torch.tensor(lengths, dtype=torch.int64)


def plain(
    x: Tensor,
    lengths: Tensor,
    options: NormOptions,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Normalise in float64 group by group, with operations that autograd differentiates."""
    x = x.double()
    if options.log == LOG1P:
        x = torch.log1p(x)
    elif options.log == LOG10:
        x = torch.log10(x + options.log_eps)
    rows = [x[n, :length] for n, length in enumerate(lengths.tolist())]
    axes = (0, 3) if options.over_freq else (0,)
    if options.over_batch:
        flat = torch.cat(rows)
        var, mean = torch.var_mean(flat, axes, keepdim=True, correction=0)
        moments = [(mean, var)] * len(rows)
    else:
        moments = [
            (row.mean(axes, keepdim=True), row.var(axes, keepdim=True, correction=0))
            for row in rows
        ]
    y = torch.zeros_like(x)
    for n, (row, (mean, var)) in enumerate(zip(rows, moments, strict=True)):
        z = (row - mean) / torch.sqrt(var + options.eps)
        if weight is not None and bias is not None:
            z = z * weight + bias
        if keep is not None:
            z = torch.where(keep.expand_as(y)[n, : len(row)], z, 0.0)
        y[n, : len(row)] = z
    return y


MASKS = MaskOptions(
    time_count=2, time_width=4, time_share=1 << 15, freq_count=2, freq_width=2, per_channel=False
)


def operator_calls(
    over: str, shape: tuple[int, ...] = (3, 9, 2, 3, 5), device: str = "cpu"
) -> dict[str, tuple[Any, ...]]:
    """Arguments of each registered operator, of which those that have a gradient ask for it."""
    x, frames = batch(shape, (shape[1], *[1] * (shape[0] - 1)))
    x, frames = x.nan_to_num(0.5).to(device), frames.to(device)
    chosen, ops = options(over, LOG1P), torch.ops.fastctc
    drawing = (torch.tensor([3], device=device), frames, x.shape, *MASKS)
    masks = ops.spectrogram_masks(*drawing)
    size = (*shape[2:4], 1 if "F" in over else shape[4])
    weight = torch.rand(size, dtype=torch.float64, device=device)
    grad = torch.randn_like(x)
    mean, var = ops.spectrogram_moments(x, frames, *chosen)
    leaf, w, b = (v.clone().requires_grad_() for v in (x, weight, weight))
    given = (grad, x, frames, mean, var)
    sums = ops.spectrogram_gradient_sums(*given, masks, 2, *chosen)
    return {
        "spectrogram_masks": drawing,
        "spectrogram_moments": (x, frames, *chosen),
        "spectrogram_normalise": (leaf, frames, mean, var, w, b, masks, 2, *chosen),
        "spectrogram_norm": (leaf, frames, w, b, masks, 2, *chosen),
        "spectrogram_gradient_sums": (*given, masks, 2, *chosen),
        "spectrogram_input_gradient": (*given, weight, masks, 2, *sums, *chosen),
        "spectrogram_norm_backward": (*given, weight, masks, 2, *chosen),
    }
