"""Spectral features of an utterance, in numpy so that DataLoader workers can make them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastctc.train.errors import ConfigError

Floats = npt.NDArray[np.float32]

_MEL_LOW_HZ = 50.0
# Keeps the logarithm of an empty mel band finite, some 60 dB below a quiet recording.
_MEL_FLOOR = 1e-6


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """What the network sees of the audio.

    Args:
        kind: ``linear`` is log1p of the magnitude of each STFT bin (window / 2 + 1 bins);
            ``mel`` is the log of the power in ``mels`` mel bands.
        window: Samples per frame, which is the FFT length too. Hamming window.
        hop: Samples between two frames.
        mels: Bands of ``mel`` features.
        normalise: ``utterance`` brings each utterance to mean 0 and variance 1, ``bin`` each of
            its bins, ``none`` leaves the values alone.
        sample_rate: Hz. Audio at other rates is resampled or refused (see ``data.resample``).
    """

    kind: Literal["linear", "mel"] = "linear"
    window: int = 320
    hop: int = 160
    mels: int = 40
    normalise: Literal["utterance", "bin", "none"] = "utterance"
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mel"):
            raise ConfigError(f"features.kind is {self.kind!r}: linear and mel exist")
        if self.normalise not in ("utterance", "bin", "none"):
            raise ConfigError(
                f"features.normalise is {self.normalise!r}: utterance, bin and none exist"
            )
        for name in ("window", "hop", "mels", "sample_rate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"features.{name} is {getattr(self, name)}: at least 1 is needed")
        if self.kind == "mel" and self.mels > self.window // 4:
            raise ConfigError(
                f"features.mels is {self.mels}: {self.window // 2 + 1} STFT bins make at most "
                f"{self.window // 4} mel bands"
            )

    @property
    def bins(self) -> int:
        """Number of feature bins per frame."""
        return self.mels if self.kind == "mel" else self.window // 2 + 1

    def frames(self, samples: int) -> int:
        """Return how many frames ``samples`` of audio make: whole windows only, at least one."""
        return 1 + max(0, samples - self.window) // self.hop


def extract(audio: Floats, config: FeatureConfig) -> Floats:
    """Return the (bins, frames) float32 features of (samples,) float32 audio.

    Audio shorter than one window is padded with zeros to one.
    """
    if len(audio) < config.window:
        audio = np.pad(audio, (0, config.window - len(audio)))
    windows = np.lib.stride_tricks.sliding_window_view(audio, config.window)[:: config.hop]
    spectrum = np.abs(np.fft.rfft(windows * _hamming(config.window))).astype(np.float32)
    if config.kind == "linear":
        values = np.log1p(spectrum)
    else:
        filters = _mel_filters(config.mels, config.window, config.sample_rate)
        # Not a matrix product: BLAS would start threads for a tenth of a millisecond's work, in
        # every loading process, and its sums depend on how many there are.
        power = np.einsum("tf,fm->tm", np.square(spectrum), filters)
        values = np.log(power + np.float32(_MEL_FLOOR))
    return np.ascontiguousarray(_normalise(values, config.normalise).T)


def _normalise(values: Floats, how: str) -> Floats:
    if how == "none":
        return values
    axis = 0 if how == "bin" else None
    mean = values.mean(axis=axis, keepdims=True)
    std = values.std(axis=axis, keepdims=True)
    # Digital silence has no variance; it becomes zeros rather than NaN.
    return (values - mean) / (std + np.float32(1e-5))


@functools.lru_cache(maxsize=8)
def _hamming(window: int) -> Floats:
    return np.hamming(window).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _mel_filters(mels: int, window: int, sample_rate: int) -> Floats:
    """Return (window / 2 + 1, mels) triangles, evenly spaced in mel and of height 1."""
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
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)
