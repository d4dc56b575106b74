"""Spectral features, made on the model's device from padded batches of signals.

Spectra come from torch's FFT; logarithm, normalisation and SpecAugment masks are one pass of
`fastctc.norm` over them. Nothing of what lies past a signal's end reaches a feature.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastctc import _norm_checks as checks
from fastctc.norm import Masks, SpectrogramNorm, spectrogram_norm
from fastctc.train.errors import ConfigError

_MEL_LOW_HZ = 50.0
# Keeps log10 of an empty band finite, some 60 dB below a quiet recording.
_LOG_EPS = 1e-6
# The axes that each choice of normalisation takes statistics over.
_OVER = {"utterance": "TF", "bin": "T"}


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """What the network sees of the audio.

    Args:
        kind: ``linear`` keeps each STFT bin (window / 2 + 1 bins), ``mel`` sums them in ``mels``
            mel bands.
        window: Samples per frame, which is the FFT length too. Hamming window.
        hop: Samples between two frames.
        mels: Bands of ``mel`` features.
        spectrum: ``magnitude`` or ``power``; ``auto`` is magnitude for linear features and power
            for mel bands.
        log: ``log1p`` is log(1 + v), ``log10`` is log10(v + 1e-6), ``auto`` is log1p for linear
            features and log10 for mel bands.
        normalise: ``utterance`` brings each utterance to mean 0 and variance 1, ``bin`` each of
            its bins, ``global`` all utterances together (by the batch in training, by the mean over
            all training batches afterwards), ``none`` leaves the values alone.
        time_masks: SpecAugment in training: (count, width) or (count, width, share); up to
            ``width`` frames each, and no more than that share of the utterance, become 0.
        freq_masks: (count, width): up to ``width`` bins each become 0.
        sample_rate: Hz. Audio at other rates is resampled or refused (see ``data.resample``).
    """

    kind: Literal["linear", "mel"] = "linear"
    window: int = 320
    hop: int = 160
    mels: int = 40
    spectrum: Literal["auto", "magnitude", "power"] = "auto"
    log: Literal["auto", "log1p", "log10"] = "auto"
    normalise: Literal["utterance", "bin", "global", "none"] = "utterance"
    time_masks: tuple[int, int] | tuple[int, int, float] | None = None
    freq_masks: tuple[int, int] | None = None
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        for name, choices in (
            ("kind", ("linear", "mel")),
            ("spectrum", ("auto", "magnitude", "power")),
            ("log", ("auto", "log1p", "log10")),
            ("normalise", ("utterance", "bin", "global", "none")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"features.{name} is {getattr(self, name)!r}: "
                    f"{', '.join(choices[:-1])} and {choices[-1]} exist"
                )
        for name in ("window", "hop", "mels", "sample_rate"):
            value = getattr(self, name)
            if (checks.whole(value) or 0) < 1:
                raise ConfigError(
                    f"features.{name} is {value!r}: a whole number of at least 1 is needed"
                )
        if self.kind == "mel" and self.mels > self.window // 4:
            raise ConfigError(
                f"features.mels is {self.mels}: {self.window // 2 + 1} STFT bins make at most "
                f"{self.window // 4} mel bands"
            )
        try:
            masks = checks.mask_options(self.time_masks, self.freq_masks, False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"features: {error}") from error
        if masks is not None and self.normalise == "none":
            raise ConfigError(
                "features.time_masks and freq_masks put the mean, 0, in the place of values, and "
                "features.normalise is 'none': choose utterance, bin or global"
            )

    @property
    def bins(self) -> int:
        """Number of feature bins per frame."""
        return self.mels if self.kind == "mel" else self.window // 2 + 1


def frame_counts(samples: Tensor, window: int, hop: int) -> Tensor:
    """How many frames signals of so many samples make: whole windows, one for a shorter signal.

    Integers of any shape; 0 samples make no frame.
    """
    frames = (samples - window).clamp(min=0).div(hop, rounding_mode="floor") + 1
    return frames * (samples > 0)


def _check_lengths(lengths: Tensor, samples: int) -> None:
    wrong = (lengths < 0) | (lengths > samples)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"lengths[{row}] is {int(lengths[row])}: it must be from 0 to {samples}, the samples "
            "there are"
        )


class Spectrogram(nn.Module):
    """Magnitudes or powers of the short-time Fourier transform of padded signals.

    Frame t covers the samples t * hop to t * hop + W - 1, so nothing is padded but signals that are
    shorter than a window. Autocast lowers no precision here.

    Args:
        window: (W,) float32 or float64, its weights; W is the length of the transform too.
        hop: Samples between two frames.
        power: 1 for magnitudes, 2 for powers.
        filters: (W // 2 + 1, bands) of the same dtype that sum bins up to bands, such as
            `mel_filters`; None keeps the bins.
    """

    window: Tensor
    filters: Tensor | None

    def __init__(
        self, window: Tensor, hop: int, *, power: Literal[1, 2] = 1, filters: Tensor | None = None
    ) -> None:
        super().__init__()
        self.hop = hop
        self.power = power
        # They follow from the settings, so checkpoints are spared them.
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Spectrogram:
        """Follow the model to a device and to float64, but to no half type, which have no FFT."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, values in self.named_buffers():
            if values.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, kept[name].to(values.device))
        return self

    def frames(self, samples: Tensor) -> Tensor:
        """How many frames signals of so many samples make: `frame_counts`."""
        return frame_counts(samples, len(self.window), self.hop)

    def forward(self, signals: Tensor, lengths: Tensor) -> Tensor:
        """Transform (M, samples) of any floating type into (M, bins, T) of the window's.

        Frames past `self.frames(lengths)` hold whatever the padding made of them.

        Args:
            signals: On any device. What it holds past ``lengths`` does not matter.
            lengths: (M,) int64 samples on the CPU, at most as many as there are.
        """
        size = len(self.window)
        signals = signals.to(self.window.dtype)
        if signals.shape[1] < size:
            signals = F.pad(signals, (0, size - signals.shape[1]))
        if len(lengths) and int(lengths.min()) < size:
            # The one frame of a short signal reaches past its end.
            past = torch.arange(signals.shape[1], device=lengths.device) >= lengths[:, None]
            signals = signals.masked_fill(past.to(signals.device), 0.0)
        if not len(signals):  # which not every FFT takes
            bins = size // 2 + 1 if self.filters is None else self.filters.shape[1]
            return signals.new_empty((0, bins, (signals.shape[1] - size) // self.hop + 1))
        with torch.autocast(signals.device.type, enabled=False):
            spectrum = torch.stft(
                signals, size, self.hop, window=self.window, center=False, return_complex=True
            )
            if self.power == 2:  # without the root of abs(), which takes longer than the FFT
                values = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
            else:
                values = spectrum.abs()
            if self.filters is not None:
                values = (values.transpose(1, 2) @ self.filters).transpose(1, 2)
        return values


class FrontEnd(nn.Module):
    """The features of speech: (N, samples) audio to (N, bins, T), 0 past each length.

    Args:
        config: Which features. Masks are drawn in training mode only.
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        mel = config.kind == "mel"
        power = config.spectrum == "power" or (config.spectrum == "auto" and mel)
        self.spectrogram = Spectrogram(
            torch.hamming_window(config.window, periodic=False),
            config.hop,
            power=2 if power else 1,
            filters=mel_filters(config.mels, config.window, config.sample_rate) if mel else None,
        )
        self.log = config.log if config.log != "auto" else ("log10" if mel else "log1p")
        self.normalise = config.normalise
        self.time_masks: Masks | None = config.time_masks
        self.freq_masks = config.freq_masks
        self.norm: SpectrogramNorm | None = None
        if config.normalise == "global":
            # One channel. The features of a training set do not change, so all batches count alike.
            self.norm = SpectrogramNorm(
                1, layout="NEFT", log=self.log, log_eps=_LOG_EPS, momentum=None, affine=False,
                time_masks=self.time_masks, freq_masks=self.freq_masks,
            )  # fmt: skip

    def forward(
        self, audio: Tensor, lengths: Tensor, seed: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (N, bins, T) of the audio's dtype and device, and frames (N,) on the CPU.

        Args:
            audio: (N, samples). What it holds past ``lengths`` does not matter.
            lengths: (N,) int64 samples on the CPU.
            seed: Of the masks; None takes one from torch's generator of the CPU.

        Raises:
            ValueError: A length is negative, or above the samples.
        """
        _check_lengths(lengths, audio.shape[1])
        frames = self.spectrogram.frames(lengths)
        values = self.spectrogram(audio, lengths)
        on_device = frames.to(values.device)
        masked = self.training and bool(self.time_masks or self.freq_masks)
        if masked and seed is None:
            # From the host whatever the device: checkpoints carry that generator's state.
            seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device="cpu")
        if self.norm is not None:
            features = self.norm(values[:, None], on_device, seed)[:, 0]
            return features.to(audio.dtype), frames
        if self.normalise == "none":
            values = torch.log1p(values) if self.log == "log1p" else torch.log10(values + _LOG_EPS)
            past = torch.arange(values.shape[2], device=values.device) >= on_device[:, None]
            return values.masked_fill(past[:, None], 0.0).to(audio.dtype), frames
        features = spectrogram_norm(
            values,
            on_device,
            layout="NFT",
            over=_OVER[self.normalise],
            log=self.log,
            log_eps=_LOG_EPS,
            time_masks=self.time_masks if masked else None,
            freq_masks=self.freq_masks if masked else None,
            seed=seed,
        )
        return features.to(audio.dtype), frames


class ChannelFrontEnd(nn.Module):
    """Log power spectra of signals of several channels, each brought to mean 0 and variance 1.

    What an electromyogram is recognised from: log10(power + 1e-6) of Hann windows whose squares sum
    to 1, by the running statistics of each band and electrode (`fastctc.SpectrogramNorm`). The
    defaults are those of surface EMG at 2 kHz: 125 frames per second.

    Args:
        bands, electrodes: The channels.
        window: Samples per frame, which is the FFT length too; window // 2 + 1 bins.
        hop: Samples between two frames.
        time_masks, freq_masks, masks_per_channel: SpecAugment in training mode, see
            `fastctc.spectrogram_norm`.
    """

    def __init__(
        self,
        bands: int = 2,
        electrodes: int = 16,
        *,
        window: int = 64,
        hop: int = 16,
        time_masks: Masks | None = None,
        freq_masks: tuple[int, int] | None = None,
        masks_per_channel: bool = False,
    ) -> None:
        super().__init__()
        hann = torch.hann_window(window)
        self.spectrogram = Spectrogram(hann / hann.square().sum().sqrt(), hop, power=2)
        self.norm = SpectrogramNorm(
            bands * electrodes, layout="TNBEF", log="log10", log_eps=_LOG_EPS,
            time_masks=time_masks, freq_masks=freq_masks, masks_per_channel=masks_per_channel,
        )  # fmt: skip

    def forward(
        self, signals: Tensor, lengths: Tensor, seed: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (T, N, bands, electrodes, bins), 0 past each length, and frames (N,).

        Args:
            signals: (samples, N, bands, electrodes). What it holds past ``lengths`` does
                not matter.
            lengths: (N,) int64 samples on the CPU.
            seed: Of the masks, see `fastctc.spectrogram_norm`.

        Raises:
            ValueError: A length is negative, or above the samples.
        """
        samples, batch, bands, electrodes = signals.shape
        _check_lengths(lengths, samples)
        frames = self.spectrogram.frames(lengths)
        rows = signals.permute(1, 2, 3, 0).flatten(0, 2)
        power = self.spectrogram(rows, lengths.repeat_interleave(bands * electrodes))
        power = power.unflatten(0, (batch, bands, electrodes)).movedim(-1, 0)
        features = self.norm(power, frames.to(power.device), seed)
        return features.to(signals.dtype), frames


def mel_filters(mels: int, window: int, sample_rate: int) -> Tensor:
    """Return (window // 2 + 1, mels) float32 triangles, evenly spaced in mel and of height 1."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    low = 2595 * np.log10(1 + _MEL_LOW_HZ / 700)
    edges = 700 * (10 ** (np.linspace(low, top, mels + 2) / 2595) - 1)
    # A triangle narrower than the bin spacing may hold no bin at all: its sides are at least one
    # bin long, so that every band hears something.
    step = sample_rate / window
    rise = np.maximum(edges[1:-1] - edges[:-2], step)
    fall = np.maximum(edges[2:] - edges[1:-1], step)
    freqs = np.fft.rfftfreq(window, 1 / sample_rate)[:, None]
    up = (freqs - (edges[1:-1] - rise)) / rise
    down = (edges[1:-1] + fall - freqs) / fall
    return torch.from_numpy(np.maximum(0, np.minimum(up, down)).astype(np.float32))
