"""Features of speech and of several channels, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastctc.train.errors import ConfigError
from fastctc.train.features import (
    ChannelFrontEnd,
    FeatureConfig,
    FrontEnd,
    Spectrogram,
    frame_counts,
)

# 0.2 s, less than a window, one window to the sample, and one sample.
LENGTHS = torch.tensor([3200, 150, 320, 1])
MASKED = {"time_masks": (2, 10), "freq_masks": (2, 20)}


def _tone(hertz: float, seconds: float = 0.5) -> Tensor:
    return 0.3 * torch.sin(2 * np.pi * hertz * torch.arange(int(16_000 * seconds)) / 16_000)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _features(audio: Tensor, **settings: Any) -> Tensor:
    """(bins, T) of (samples,)."""
    front_end = FrontEnd(FeatureConfig(**settings)).eval()
    features, frames = front_end(audio[None], torch.tensor([len(audio)]))
    assert features.shape[2] == int(frames[0])
    return features[0]


def _by_definition(window: np.ndarray, bins: int) -> np.ndarray:
    """Magnitudes of one windowed frame without a fast transform."""
    k, n = np.arange(bins)[:, None], np.arange(len(window))
    return abs((window * np.exp(-2j * np.pi * k * n / len(window))).sum(1))


def test_linear_features_are_log1p_of_the_magnitude() -> None:
    audio = _tone(1000)
    features = _features(audio, normalise="none")
    assert features.shape == (161, 49)
    assert features.dtype == torch.float32
    expected = _by_definition(audio[480:800].double().numpy() * np.hamming(320), 161)
    np.testing.assert_allclose(features[:, 3], np.log1p(expected), atol=1e-5)
    assert int(features[:, 3].argmax()) == 20
    power = _features(audio, normalise="none", spectrum="power", log="log10")
    np.testing.assert_allclose(power[:, 3], np.log10(expected**2 + 1e-6), atol=1e-2)


@pytest.mark.parametrize("window", [512, 1024])
def test_bins_of_longer_windows(window: int) -> None:
    assert _features(_tone(500), window=window, hop=320).shape == (
        window // 2 + 1,
        1 + (8000 - window) // 320,
    )


def test_frames_of_each_recipe() -> None:
    seconds = torch.tensor([1, 2, 10])
    # 20 ms windows every 10 ms, and 32 ms windows every 20 ms, at 16 kHz.
    assert frame_counts(seconds * 16_000, 320, 160).tolist() == [99, 199, 999]
    assert frame_counts(seconds * 16_000, 512, 320).tolist() == [49, 99, 499]
    # A window of 4 s of electromyogram with 1800 samples before and 200 after it, at 2 kHz.
    assert frame_counts(torch.tensor([10_000]), 64, 16).tolist() == [622]
    assert frame_counts(torch.tensor([0, 1, 320, 479, 480]), 320, 160).tolist() == [0, 1, 1, 1, 2]
    # What makes the 112, 123 and 107 frames of the utterances that DeepSpeech2 is overfitted to.
    assert frame_counts(torch.tensor([18_080, 19_840, 17_439]), 320, 160).tolist() == [
        112,
        123,
        107,
    ]


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 5000.0])
def test_mel_bands_follow_the_frequency(hertz: float) -> None:
    features = _features(_tone(hertz), kind="mel", normalise="none")
    assert features.shape[0] == 40
    top = 2595 * np.log10(1 + 8000 / 700)
    low = 2595 * np.log10(1 + 50 / 700)
    mel = 2595 * np.log10(1 + hertz / 700)
    expected = (mel - low) / ((top - low) / 41) - 1
    assert abs(int(features[:, 5].argmax()) - expected) <= 1


def test_every_mel_band_hears_something() -> None:
    quiet = np.log10(1e-6)
    assert (_features(_noise(8000), kind="mel", normalise="none") > quiet + 1).all()


def test_normalisation_of_an_utterance_and_of_its_bins() -> None:
    noise = _noise(8000)
    plain = _features(noise, normalise="none").double()
    whole = (plain - plain.mean()) / plain.std(correction=0)
    torch.testing.assert_close(_features(noise).double(), whole, rtol=0, atol=1e-4)
    bins = (plain - plain.mean(1, keepdim=True)) / plain.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(_features(noise, normalise="bin").double(), bins, rtol=0, atol=1e-3)
    # A gain of 10 all but disappears from mel features.
    loud, quiet = (_features(gain * noise, kind="mel") for gain in (10, 1))
    torch.testing.assert_close(loud, quiet, rtol=0, atol=1e-2)


def test_global_normalisation_evaluates_with_the_mean_over_the_batches_of_training() -> None:
    front_end = FrontEnd(FeatureConfig(normalise="global"))
    plain = FrontEnd(FeatureConfig(normalise="none"))
    lengths = torch.tensor([4000, 2000])
    means, variances = [], []
    for seed in range(3):
        audio = (seed + 1) * _noise(2, 4000, seed=seed)
        features, frames = front_end(audio, lengths)
        values, _ = plain(audio, lengths)
        valid = torch.cat([values[k, :, :n].flatten() for k, n in enumerate(frames.tolist())])
        expected = (valid[:5] - valid.mean()) / valid.std()
        torch.testing.assert_close(features[0, 0, :5], expected, rtol=1e-4, atol=1e-4)
        means.append(float(valid.mean()))
        variances.append(float(valid.var()))
    front_end.eval()
    expected = (values - np.mean(means)) / np.sqrt(np.mean(variances) + 1e-5)
    features, frames = front_end(audio, lengths)
    torch.testing.assert_close(features[0], expected[0], rtol=1e-4, atol=1e-4)
    assert (features[1, :, frames[1] :] == 0).all()


EVERY = [
    {},
    {"kind": "mel"},
    {"kind": "mel", "normalise": "bin"},
    {"normalise": "global"},
    {"normalise": "none"},
]


@pytest.mark.parametrize("settings", EVERY)
def test_padding_reaches_no_feature(settings: dict[str, Any]) -> None:
    front_end = FrontEnd(FeatureConfig(**settings)).eval()
    audio = _noise(4, 3200)
    results = []
    for width, padding in ((3200, 0.0), (3200, float("nan")), (5000, 1e6)):
        padded = torch.full((4, width), padding)
        for row, n in enumerate(LENGTHS.tolist()):
            padded[row, :n] = audio[row, :n]
        features, frames = front_end(padded, LENGTHS)
        assert frames.tolist() == [19, 1, 1, 1]
        past = torch.arange(features.shape[2]) >= frames[:, None]
        assert (features.movedim(1, 2)[past] == 0).all()
        results.append(features[:, :, :19])
    for other in results[1:]:
        assert torch.equal(other, results[0])
    alone, _ = front_end(audio[1:2, :150], LENGTHS[1:2])
    torch.testing.assert_close(alone, results[0][1:2, :, :1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", EVERY)
def test_silence_and_snippets_stay_finite(settings: dict[str, Any]) -> None:
    front_end = FrontEnd(FeatureConfig(**settings))
    for samples in (4000, 5, 1):
        features, frames = front_end(torch.zeros(2, samples), torch.tensor([samples, 0]))
        assert torch.isfinite(features).all()
        assert (features[1] == 0).all()
        assert int(frames[1]) == 0


@pytest.mark.parametrize("normalise", ["utterance", "bin", "global"])
def test_masks_are_of_training_and_replayed(normalise: Any) -> None:
    audio, lengths = _noise(3, 8000), torch.tensor([8000, 4000, 8000])
    front_end = FrontEnd(FeatureConfig(normalise=normalise, **MASKED))
    whole, frames = FrontEnd(FeatureConfig(normalise=normalise))(audio, lengths)
    first, _ = front_end(audio, lengths, seed=3)
    covered = (first == 0) & (whole != 0)
    assert covered.any()
    assert torch.equal(first[~covered], whole[~covered])
    # Whole frames and whole bins, of each utterance on its own.
    for row, n in enumerate(frames.tolist()):
        there = covered[row, :, :n]
        lines = there.all(0, keepdim=True) | there.all(1, keepdim=True)
        assert torch.equal(lines.expand_as(there), there)
    assert not torch.equal(covered[0], covered[2])
    assert torch.equal(front_end(audio, lengths, seed=3)[0], first)
    assert not torch.equal(front_end(audio, lengths, seed=4)[0], first)
    # Without a seed, torch's generator gives one: a checkpoint that holds its state replays it.
    state = torch.get_rng_state()
    drawn, _ = front_end(audio, lengths)
    assert not torch.equal(front_end(audio, lengths)[0], drawn)
    torch.set_rng_state(state)
    assert torch.equal(front_end(audio, lengths)[0], drawn)
    front_end.eval()
    before = torch.get_rng_state()
    evaluated, _ = front_end(audio, lengths)
    assert torch.equal(torch.get_rng_state(), before)
    assert not ((evaluated == 0) & (whole != 0)).any()


def test_features_are_float32_under_autocast() -> None:
    audio, lengths = _noise(1, 4000), torch.tensor([4000])
    front_end = FrontEnd(FeatureConfig(kind="mel"))
    expected, _ = front_end(audio, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = front_end(audio, lengths)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("normalise", ["utterance", "global", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_type_has_features_of_that_type(
    dtype: torch.dtype, normalise: Any
) -> None:
    audio, lengths = _noise(1, 4000), torch.tensor([4000])
    config = FeatureConfig(kind="mel", normalise=normalise)
    expected, _ = FrontEnd(config)(audio.to(dtype).float(), lengths)
    found, _ = FrontEnd(config).to(dtype)(audio.to(dtype), lengths)
    assert found.dtype is dtype
    tolerance = 0.02 if dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_checkpoints_are_spared_what_follows_from_the_settings() -> None:
    assert not FrontEnd(FeatureConfig(kind="mel")).state_dict()


@pytest.mark.parametrize("settings", EVERY)
def test_a_batch_of_no_utterances(settings: dict[str, Any]) -> None:
    none = torch.empty(0, dtype=torch.int64)
    for samples in (3200, 5):
        config = FeatureConfig(**settings)
        features, frames = FrontEnd(config)(torch.empty(0, samples), none)
        assert features.shape == (0, config.bins, 19 if samples == 3200 else 1)
        assert frames.shape == (0,)


def test_lengths_that_do_not_fit_are_named() -> None:
    signals = torch.zeros(1000, 2, 2, 16)
    for lengths, message in (
        ([9, -3], r"lengths\[1\] is -3: it must be from 0 to 1000"),
        ([1001, 9], r"lengths\[0\] is 1001"),
    ):
        with pytest.raises(ValueError, match=message):
            FrontEnd(FeatureConfig())(signals[:, :, 0, 0].T, torch.tensor(lengths))
        with pytest.raises(ValueError, match=message):
            ChannelFrontEnd()(signals, torch.tensor(lengths))


@pytest.mark.parametrize("normalise", ["utterance", "global", "none"])
def test_another_default_device_changes_nothing(normalise: Any) -> None:
    masks = {} if normalise == "none" else MASKED
    front_end = FrontEnd(FeatureConfig(normalise=normalise, **masks))
    audio = _noise(4, 3200)
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        with torch.device(device):
            features, _ = front_end(audio, LENGTHS)
        found.append(features)
    assert torch.equal(*found)


# ---- several channels


def test_channels_are_torchs_batch_norm_of_log_power() -> None:
    front_end = ChannelFrontEnd()
    assert sum(p.numel() for p in front_end.parameters()) == 2 * 32
    signals = _noise(1000, 3, 2, 16) * torch.arange(1, 33).view(2, 16)
    features, frames = front_end(signals, torch.tensor([1000] * 3))
    assert features.shape == (59, 3, 2, 16, 33)
    assert frames.tolist() == [59] * 3
    hann = np.hanning(65)[:64]
    frame = signals[160:224, 1, 1, 7].double().numpy() * hann / np.sqrt((hann**2).sum())
    power = front_end.spectrogram(signals[:, 1, 1, 7][None], torch.tensor([1000]))
    np.testing.assert_allclose(power[0, :, 10], _by_definition(frame, 33) ** 2, rtol=1e-3)
    rows = signals.permute(1, 2, 3, 0).reshape(96, 1000)
    spectra = front_end.spectrogram(rows, torch.full((96,), 1000))
    theirs = nn.BatchNorm2d(32)
    expected = theirs(torch.log10(spectra + 1e-6).view(3, 32, 33, 59))
    expected = expected.view(3, 2, 16, 33, 59).movedim(-1, 0)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(front_end.norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(front_end.norm.running_var, theirs.running_var)


def test_channels_leave_padding_out() -> None:
    front_end = ChannelFrontEnd(time_masks=(1, 4), masks_per_channel=True)
    lengths = torch.tensor([1000, 400])
    signals = _noise(1000, 2, 2, 16)
    signals[400:, 1] = torch.nan
    features, frames = front_end(signals, lengths, seed=1)
    assert frames.tolist() == [59, 22]
    assert torch.isfinite(features).all()
    assert (features[22:, 1] == 0).all()
    state = dict(front_end.norm.state_dict())
    assert all(torch.isfinite(value).all() for value in state.values())
    front_end.eval()
    both, _ = front_end(signals, lengths)
    alone, _ = front_end(signals[:400, 1:], lengths[1:])
    torch.testing.assert_close(both[:22, 1:], alone, rtol=1e-5, atol=1e-5)


def test_spectra_have_a_gradient() -> None:
    # In float64, which the class itself does not ask for.
    spectrogram = Spectrogram(torch.hamming_window(8, dtype=torch.float64), 4, power=2)
    signals = _noise(2, 20).double().requires_grad_()
    lengths = torch.tensor([20, 5])
    assert torch.autograd.gradcheck(lambda x: spectrogram(x, lengths), signals)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mfcc"}, "features.kind is 'mfcc': linear and mel exist"),
        ({"hop": 0}, "features.hop is 0"),
        ({"window": True}, "features.window is True: a whole number of at least 1"),
        ({"window": 320.0}, "features.window is 320.0: a whole number"),
        ({"kind": "mel", "mels": 300}, "features.mels is 300"),
        ({"normalise": "whitened"}, "features.normalise is 'whitened'"),
        ({"spectrum": "cepstrum"}, "'cepstrum': auto, magnitude and power exist"),
        ({"log": "ln"}, "features.log is 'ln'"),
        ({"time_masks": (1,)}, r"features: time_masks must be \(count, width\)"),
        ({"freq_masks": (1, -2)}, "whole numbers from 0"),
        ({"freq_masks": (1, 2), "normalise": "none"}, "features.normalise is 'none': choose"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureConfig(**settings)
