"""Normalisation of spectrograms over the valid frames of padded batches.

A function and three modules: one pass that takes an optional logarithm, brings each group of values
to mean 0 and variance 1, scales them, and masks frames and bins as SpecAugment does; its gradient
likewise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastctc import _norm_checks as checks
from fastctc import _norm_ops
from fastctc._arguments import flag
from fastctc._dispatch import wants_dispatcher
from fastctc._norm import MaskOptions, NormOptions, counts
from fastctc._norm_checks import Lengths

Masks = tuple[int, int] | tuple[int, int, float]


def spectrogram_norm(
    x: Tensor,
    lengths: Lengths = None,
    *,
    layout: str = "NTF",
    over: str = "T",
    log: str | None = None,
    log_eps: float = 1e-6,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    time_masks: Masks | None = None,
    freq_masks: tuple[int, int] | None = None,
    masks_per_channel: bool = False,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise spectrograms: ``(v - mean) / sqrt(var + eps)``, v being x or its logarithm.

    Args:
        x: float16, bfloat16, float32 or float64, on the CPU or a CUDA device, with any strides. Its
            axes are those of `layout`.
        lengths: (N,) valid frames of each utterance, from 0 to T: integers of any type in a tensor
            on any device, or a list. None: all frames are valid. What lies past them is never read.
            Lengths on the host are checked; those on a device are clamped.
        layout: one letter for each axis of x: N utterance, T frame, F frequency bin, and B band and
            E electrode for channels that always have statistics of their own. All but T may be
            missing, in any order: "NTF", "TNBEF", and "NEFT" for what a 2-d convolution makes.
        over: the axes that statistics run over. "T": per utterance and feature (cepstral
            normalisation); "TF": per utterance; "NT": per feature, over the batch; "NTF": per
            channel, over the batch.
        log: "log1p" for log(1 + x), "log10" for log10(x + log_eps), None for x itself.
        log_eps: see `log`.
        eps: added to the variance. Constant features become 0 for any eps, 0 included.
        weight: what the result is multiplied by, of the shape of x without N, T and, where `over`
            has it, F. Given together with `bias`.
        bias: what is added afterwards.
        time_masks: (count, width), or (count, width, share): up to `width` frames each, and no more
            than that share of the utterance, become 0. There are 64 at most.
        freq_masks: (count, width): up to `width` bins each become 0. There are 64 at most.
        masks_per_channel: draw masks for each band and electrode on its own.
        seed: of the masks: an int, or one int64 in a tensor on any device. The same seed gives the
            same masks on every device. None takes a seed from torch's generator of the device.

    Returns:
        Of the shape and dtype of x. Padding is exactly 0, and so is its gradient. Masks come after
        the statistics, which masked values are part of. Statistics are taken in float64 (of sums in
        float32 for x of up to 32 bits, which hold standard deviations from 1e-20 to 1e18); the
        variance is that of the population. What takes 1 MiB or more on the CPU cannot be resized.

    Raises:
        TypeError: x, lengths or an option is of the wrong type.
        ValueError: a shape does not fit, a length is out of range, or an option has no such value.
        RuntimeError: the gradient is differentiated again.
        NotImplementedError: forward-mode differentiation, or torch.func.grad, vjp or jacrev, by x,
            weight or bias; vmap is served.

    Masks follow Park et al. 2019, "SpecAugment"; `fastctc._norm` says how they are drawn.
    """
    chosen = checks.parse_layout(layout)
    over_batch, over_freq = checks.parse_over(over, layout)
    checks.check_input(x, chosen)
    options = NormOptions(
        over_batch,
        over_freq,
        checks.log_code(log),
        checks.non_negative("log_eps", log_eps),
        checks.non_negative("eps", eps),
    )
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias must be given together")
    view = checks.canonical(x.detach(), chosen)
    frames = checks.lengths_of(view, lengths)
    weight = checks.channel_parameter("weight", weight, view, chosen, over_freq)
    bias = checks.channel_parameter("bias", bias, view, chosen, over_freq)
    drawn = checks.mask_options(time_masks, freq_masks, masks_per_channel)
    checks.check_seed(seed)
    _norm_ops.refuse_derivatives(x, weight, bias)
    masks = None if drawn is None else _draw(view, frames, drawn, seed)
    time_count = drawn.time_count if drawn else 0
    y, _, _ = _norm_ops.spectrogram_norm(
        x, chosen, frames, weight, bias, masks, time_count, options
    )
    return y


def _draw(x: Tensor, lengths: Tensor, options: MaskOptions, seed: int | Tensor | None) -> Tensor:
    """Masks of a batch in canonical view."""
    if seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=x.device)
    elif isinstance(seed, Tensor):
        seed = seed.reshape(1).to(x.device)
    else:
        # An unsigned seed of 64 bits is taken by its bits.
        number = (int(seed) + 2**63) % 2**64 - 2**63
        seed = torch.full((1,), number, dtype=torch.int64, device=x.device)
    masks: Tensor = torch.ops.fastctc.spectrogram_masks(seed, lengths, x.shape, *options)
    return masks


class CepstralNorm(nn.Module):
    """Normalise each coefficient of each utterance over its valid frames.

    The options are those of `spectrogram_norm`. Masks are drawn in training mode only.

    Raises:
        TypeError, ValueError: an option is of the wrong type, or has no such value.
    """

    def __init__(
        self,
        *,
        layout: str = "NTF",
        log: str | None = None,
        log_eps: float = 1e-6,
        eps: float = 1e-5,
        time_masks: Masks | None = None,
        freq_masks: tuple[int, int] | None = None,
        masks_per_channel: bool = False,
    ) -> None:
        super().__init__()
        checks.parse_layout(layout)
        checks.log_code(log)
        checks.mask_options(time_masks, freq_masks, masks_per_channel)
        self.layout = layout
        self.log = log
        self.log_eps = checks.non_negative("log_eps", log_eps)
        self.eps = checks.non_negative("eps", eps)
        self.time_masks = time_masks
        self.freq_masks = freq_masks
        self.masks_per_channel = masks_per_channel

    def forward(
        self, x: Tensor, lengths: Lengths = None, seed: int | Tensor | None = None
    ) -> Tensor:
        """Normalise a batch; `seed` is that of the masks."""
        return spectrogram_norm(
            x,
            lengths,
            layout=self.layout,
            over="T",
            log=self.log,
            log_eps=self.log_eps,
            eps=self.eps,
            time_masks=self.time_masks if self.training else None,
            freq_masks=self.freq_masks if self.training else None,
            masks_per_channel=self.masks_per_channel,
            seed=seed,
        )

    def extra_repr(self) -> str:
        """The options, as they show in ``print(model)``."""
        names = ("layout", "log", "eps", "time_masks", "freq_masks")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class SequenceBatchNorm(nn.Module):
    """Batch normalisation of padded sequences: statistics over the batch and its valid frames.

    It takes the place of ``nn.BatchNorm1d`` (layout "NTF", a statistic for each feature) and of
    ``nn.BatchNorm2d`` (layout "NEFT", one for each channel, over frequency too) without gathering
    the valid frames first, and has their parameters and buffers. Where torch.distributed runs more
    than one process, statistics in training mode are those of all processes together, as with
    ``nn.SyncBatchNorm``: every process has to make the same calls.

    Args:
        channels: number of features, or the product of the channel axes B and E of the layout.
        layout: axes of the input, see `spectrogram_norm`. With B or E, statistics run over F.
        eps: added to the variance.
        momentum: share of a new batch in the running statistics, which hold the unbiased variance;
            None averages over all batches.
        affine: learn a weight and a bias.
        sync: share statistics between processes.
        process_group: the processes that share; None for all.

    Raises:
        TypeError, ValueError: an option is of the wrong type, or has no such value.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        layout: str = "NTF",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        sync: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels must be a whole number of at least 1, got {channels!r}")
        letters = checks.parse_layout(layout).letters
        self.channels = channels
        self.layout = layout
        self.over_freq = "B" in letters or "E" in letters
        self.eps = checks.non_negative("eps", eps)
        self.momentum = None if momentum is None else checks.non_negative("momentum", momentum)
        if self.momentum is not None and self.momentum > 1:
            raise ValueError(f"momentum must be at most 1, got {momentum}")
        self.affine = flag("affine", affine)
        self.sync = flag("sync", sync)
        self.process_group = process_group
        if affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, x: Tensor, lengths: Lengths = None) -> Tensor:
        """Normalise a batch: by its own statistics in training mode, else by the running ones."""
        return self._normalise(x, lengths, checks.log_code(None), 0.0, None, None)

    def _normalise(
        self,
        x: Tensor,
        lengths: Lengths,
        log: int,
        log_eps: float,
        drawn: MaskOptions | None,
        seed: int | Tensor | None,
    ) -> Tensor:
        layout = checks.parse_layout(self.layout)
        checks.check_input(x, layout)
        view = checks.canonical(x.detach(), layout)
        frames = checks.lengths_of(view, lengths)
        checks.check_seed(seed)
        options = NormOptions(True, self.over_freq, log, log_eps, self.eps)
        shape = self._channel_shape(view)
        _norm_ops.refuse_derivatives(x, self.weight, self.bias)
        masks = None if drawn is None else _draw(view, frames, drawn, seed)
        kind = torch.float64 if x.dtype is torch.float64 else torch.float32
        weight = bias = None
        if self.affine:
            parameters = (self.weight, self.bias)
            weight, bias = (p.view(shape[1:]).to(kind).contiguous() for p in parameters)
        arguments = (weight, bias, masks, drawn.time_count if drawn else 0)
        if self.training and not self._shared():
            y, mean, var = _norm_ops.spectrogram_norm(x, layout, frames, *arguments, options)
            self._track(mean, var, counts(frames, tuple(view.shape), options))
            return y
        view = checks.canonical(x, layout)
        if self.training:
            y, mean, var, count = _Synchronised.apply(
                view, frames, *arguments, options, self.process_group
            )
            self._track(mean, var, count)
        else:
            running = (self.running_mean, self.running_var)
            given = (s.view(shape).double().contiguous() for s in running)
            y = torch.ops.fastctc.spectrogram_normalise(view, frames, *given, *arguments, *options)
        return checks.restored(y, layout)

    def _channel_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """(1, B, E, F') of the statistics of a batch in canonical view."""
        _, _, b, e, f = x.shape
        found = b * e * (1 if self.over_freq else f)
        if found != self.channels:
            raise ValueError(
                f"x has {found} channels in the axes "
                f"{checks.channel_letters(self.layout, self.over_freq)!r} of the layout "
                f"{self.layout!r}, and the module {self.channels}"
            )
        return 1, b, e, 1 if self.over_freq else f

    def _shared(self) -> bool:
        """Whether other processes take part in the statistics."""
        distributed = torch.distributed
        if not self.sync or not distributed.is_available() or not distributed.is_initialized():
            return False
        return distributed.get_world_size(self.process_group) > 1

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Let a batch into the running statistics; one without a valid frame changes nothing."""
        kind = self.running_mean.dtype
        weight: Tensor | float
        unbiased: Tensor | float
        if count.device.type == "cpu" and not wants_dispatcher(count):
            values = float(count)
            self.num_batches_tracked.add_(int(values > 0))
            share = self._share_of_new()
            weight, unbiased = float(share) if values > 0 else 0.0, values / max(values - 1, 1)
        else:
            there = count.reshape(()) > 0
            self.num_batches_tracked += there
            weight = torch.where(there, self._share_of_new(), 0.0).to(kind)
            unbiased = count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.reshape(-1).to(kind), weight)
        self.running_var.lerp_((var * unbiased).reshape(-1).to(kind), weight)

    def _share_of_new(self) -> Tensor | float:
        """Of a new batch in the running statistics."""
        return 1 / self.num_batches_tracked if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        """The options, as they show in ``print(model)``."""
        names = ("layout", "eps", "momentum", "affine")
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        return ", ".join([str(self.channels), *shown])


class SpectrogramNorm(SequenceBatchNorm):
    """Batch normalisation of multi-channel spectrograms: a mean and variance for each channel.

    Statistics run over the batch, the valid frames and the bins of each band and electrode; they
    are tracked and shared between processes as in `SequenceBatchNorm`. A logarithm before and
    SpecAugment masks after (in training mode) take no further pass.

    Args:
        channels: bands times electrodes.
        layout: axes of the input, see `spectrogram_norm`; B or E is among them.
        log: see `spectrogram_norm`, as `log_eps`, `time_masks`, `freq_masks`, `masks_per_channel`.
        masked: False counts padding into the statistics and normalises it, as ``nn.BatchNorm2d``
            over the padded batch does, in eval mode too; lengths are then ignored.
        eps, momentum, affine, sync, process_group: see `SequenceBatchNorm`.

    Raises:
        TypeError, ValueError: an option is of the wrong type, or has no such value.
    """

    def __init__(
        self,
        channels: int,
        *,
        layout: str = "TNBEF",
        log: str | None = None,
        log_eps: float = 1e-6,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        masked: bool = True,
        time_masks: Masks | None = None,
        freq_masks: tuple[int, int] | None = None,
        masks_per_channel: bool = False,
        sync: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            channels,
            layout=layout,
            eps=eps,
            momentum=momentum,
            affine=affine,
            sync=sync,
            process_group=process_group,
        )
        if not self.over_freq:
            raise ValueError(f"layout must have an axis B or E, got {layout!r}")
        checks.log_code(log)
        self.log = log
        self.log_eps = checks.non_negative("log_eps", log_eps)
        self.masked = flag("masked", masked)
        self.mask_options = checks.mask_options(time_masks, freq_masks, masks_per_channel)

    def forward(
        self, x: Tensor, lengths: Lengths = None, seed: int | Tensor | None = None
    ) -> Tensor:
        """Normalise a batch; `seed` is that of the masks."""
        return self._normalise(
            x,
            lengths if self.masked else None,
            checks.log_code(self.log),
            self.log_eps,
            self.mask_options if self.training else None,
            seed,
        )

    def extra_repr(self) -> str:
        """The options, as they show in ``print(model)``."""
        return f"{super().extra_repr()}, log={self.log!r}, masked={self.masked!r}"


class _Synchronised(torch.autograd.Function):
    """Normalisation by the statistics of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lengths: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        masks: Tensor | None,
        time_masks: int,
        options: NormOptions,
        group: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var = torch.ops.fastctc.spectrogram_moments(x, lengths, *options)
        count = counts(lengths, tuple(x.shape), options)
        mean, var, count = _merged(mean, var, count, group)
        y = torch.ops.fastctc.spectrogram_normalise(
            x, lengths, mean, var, weight, bias, masks, time_masks, *options
        )
        ctx.save_for_backward(x, lengths, mean, var, count, weight, masks)
        ctx.time_masks, ctx.options, ctx.group = time_masks, options, group
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, lengths, mean, var, count, weight, masks = ctx.saved_tensors
        sums = torch.ops.fastctc.spectrogram_gradient_sums(
            grads[0], x, lengths, mean, var, masks, ctx.time_masks, *ctx.options
        )
        # Gradients of weight and bias are this process's own: DDP averages them.
        of_weight, of_bias = _norm_ops.channel_gradients(weight, *sums)
        dx = None
        if ctx.needs_input_grad[0]:
            both = torch.stack(sums)
            torch.distributed.all_reduce(both, group=ctx.group)
            mean_sum, mean_dot = (both / count.clamp(min=1)).unbind(0)
            dx = torch.ops.fastctc.spectrogram_input_gradient(
                grads[0], x, lengths, mean, var, weight, masks, ctx.time_masks,
                mean_sum, mean_dot, *ctx.options,
            )  # fmt: skip
        return dx, None, of_weight, of_bias, None, None, None, None


def _merged(mean: Tensor, var: Tensor, count: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of all processes' values together (Chan et al. 1979), from those of each."""
    mine = torch.stack([mean, var, count.expand_as(mean)])
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, mine, group=group)
    means, variances, shares = torch.stack(gathered, 1)
    total = shares.sum(0)
    shares = shares / total.clamp(min=1)
    whole = (means * shares).sum(0)
    spread = ((variances + (means - whole).square()) * shares).sum(0)
    return whole, spread, total.flatten()[:1].view(1, 1, 1, 1)


__all__ = ["CepstralNorm", "SequenceBatchNorm", "SpectrogramNorm", "spectrogram_norm"]
