"""What the kernels of spectrogram normalisation agree on, whatever device they run on.

Everything here speaks of the **canonical view** of a spectrogram: x is (N, T, B, E, F), that is
utterance, frame, band, electrode, frequency bin, in any dtype of `DTYPES` and with any strides
(also 0 or overlapping ones). Utterance n has ``lengths[n]`` valid frames; the rest is padding,
which is never read and comes out as exactly 0, in y and in gradients, whatever it holds (NaN too).

A value goes through four steps::

    v = x                      (NO_LOG)
        log(1 + x)             (LOG1P)
        log10(x + log_eps)     (LOG10)
    h = (v - mean) * rstd      with rstd = 1 / sqrt(var + eps), and 0 where var + eps is 0
    z = h * weight + bias
    y = z, but 0 under a mask and on padding

**Statistics** are always float64, of shape (N', B, E, F'), where N' is 1 if ``over_batch`` and else
N, and F' is 1 if ``over_freq`` and else F. `var` is the mean of squared deviations (not unbiased).
They cover the valid frames, masked values included, because masks come last. A group without
valid frames has mean 0 and variance 0. They must be good to float32 rounding of the deviations
where the mean is 1e4 times the deviation, and where the first frame is an outlier; so kernels must
not round a mean to one float32 before subtracting it (a pair of them, high and low, will do).

`weight` and `bias` are (B, E, F'), contiguous, float64 where x is float64 and else float32, or both
None.

**Masks** are int32 (R, M, 2): half-open intervals [start, end), M = time_count + freq_count, first
those of frames, then those of bins. R is N, or N * B * E with a set for each channel: row
(n * B + b) * E + e. None stands for no masks. They are drawn once, by `Kernels.draw_masks`, and
handed to forward and backward; the draw is defined there to the bit.

`lengths` is int64 (N,), contiguous, on the device of x. Kernels on a device clamp it to [0, T]; the
host checks it and raises.

**Gradients**, with g = 0 under masks and on padding and else the gradient of y, and c the number of
valid values of the group::

    grad_sum = sum of g, grad_dot = sum of g * h             over the group, float64
    gradient of v = rstd * weight * (g - grad_sum / c - h * grad_dot / c)     statistics of x
                  = rstd * weight * g                                         given statistics
    gradient of x = gradient of v * dv/dx, and exactly 0 on padding
    gradient of bias = grad_sum, of weight = grad_dot, each summed over N'

Results depend neither on the number of threads nor on scheduling. y and the gradient of x have x's
dtype; arithmetic between statistics and result is float32, or float64 where x is float64.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_LOG, LOG1P, LOG10 = 0, 1, 2
# Shares of a length are given in this many parts, so that every device computes them in integers.
SHARE_ONE = 1 << 16


class NormOptions(NamedTuple):
    """What is computed: the scalar arguments of every kernel."""

    over_batch: bool  # statistics over the utterances too
    over_freq: bool  # and over the bins
    log: int  # NO_LOG, LOG1P or LOG10
    log_eps: float
    eps: float


class MaskOptions(NamedTuple):
    """How many masks are drawn, and how wide they may be."""

    time_count: int
    time_width: int  # frames
    time_share: int  # of the utterance's length, in 1/65536: a bound on the width too
    freq_count: int
    freq_width: int  # bins
    per_channel: bool  # a set for each band and electrode instead of one for the utterance


class Kernels(Protocol):
    """What a device implements: module level functions of these names.

    They allocate their results on the device of `x`, do not wait for it, and are not differentiable
    by themselves. y and the gradient of x are laid out as ``torch.empty_like(x)`` lays them out.
    """

    def draw_masks(
        self, seed: Tensor, lengths: Tensor, shape: tuple[int, ...], options: MaskOptions
    ) -> Tensor:
        """Draw the masks of a batch of canonical `shape`; int32 (R, M, 2).

        Mask m of row r takes the words w0, w1 of Philox4x32-10 (Salmon et al. 2011) with the key
        (low, high 32 bits of the seed, as two's complement) and the counter (m, r, 0, 0). Then,
        with mulhi(a, b) the upper 32 bits of the 64-bit product of two 32-bit numbers::

            size  = lengths[n], clamped to [0, T], for time masks; F for frequency masks
            limit = min(time_width, (size * time_share) >> 16), or min(freq_width, F)
            width = mulhi(w0, limit + 1)            uniform on 0 .. limit
            start = mulhi(w1, size - width + 1)     uniform on 0 .. size - width
            end   = start + width

        Args:
            seed: int64, one element, on the device of `lengths`.
        """
        ...

    def moments(self, x: Tensor, lengths: Tensor, options: NormOptions) -> tuple[Tensor, Tensor]:
        """Mean and variance of v."""
        ...

    def normalise(
        self,
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
        """y from given statistics. The first `time_masks` of the M masks are of frames.

        Given statistics may be (1, B, E, F') where ``over_batch`` is set, as in training, and are
        contiguous float64 in every case.
        """
        ...

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        masks: Tensor | None,
        time_masks: int,
        options: NormOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, mean and var: `moments`, then `normalise`, in one pass where that is faster."""
        ...

    def gradient_sums(
        self,
        grad: Tensor,
        x: Tensor,
        lengths: Tensor,
        mean: Tensor,
        var: Tensor,
        masks: Tensor | None,
        time_masks: int,
        options: NormOptions,
    ) -> tuple[Tensor, Tensor]:
        """grad_sum and grad_dot: float64, of the statistics' shape. `grad` has any strides."""
        ...

    def input_gradient(
        self,
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
        """The gradient of x.

        Args:
            mean_sum: grad_sum / c, float64, of the statistics' shape (0 for an empty group); None,
                as `mean_dot`, where the statistics were given.
            mean_dot: grad_dot / c.
        """
        ...

    def backward(
        self,
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
        """The gradient of x, grad_sum and grad_dot, of statistics that came from `x` alone."""
        ...


def statistics_shape(shape: tuple[int, ...], options: NormOptions) -> tuple[int, int, int, int]:
    """(N', B, E, F') of a batch of canonical shape."""
    n, _, b, e, f = shape
    return (1 if options.over_batch else n, b, e, 1 if options.over_freq else f)


def counts(lengths: Tensor, shape: tuple[int, ...], options: NormOptions) -> Tensor:
    """Valid values in each group: float64 (N', 1, 1, 1)."""
    frames = lengths.clamp(0, shape[1])
    if options.over_batch:
        frames = frames.sum(0, keepdim=True, dtype=torch.float64)
    if options.over_freq:
        frames = frames * shape[4]
    return frames.to(torch.float64).view(-1, 1, 1, 1)


def mask_rows(shape: tuple[int, ...], options: MaskOptions) -> int:
    """Rows of the masks of a batch of canonical shape."""
    n, _, b, e, _ = shape
    return n * b * e if options.per_channel else n
