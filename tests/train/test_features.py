"""Features and the alphabet."""

from __future__ import annotations

import numpy as np
import pytest

from fastctc.train import text
from fastctc.train.errors import ConfigError
from fastctc.train.features import FeatureConfig, extract


def _tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(16_000 * seconds)) / 16_000
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def test_linear_features_are_log1p_of_the_magnitude() -> None:
    config = FeatureConfig(normalise="none")
    audio = _tone(1000)
    features = extract(audio, config)
    assert config.bins == 161
    assert features.shape == (161, config.frames(len(audio)))
    assert features.dtype == np.float32
    # Frame 3 by the definition, without a fast transform.
    window = audio[480:800].astype(np.float64) * np.hamming(320)
    for k in (0, 20, 77, 160):
        expected = abs(np.sum(window * np.exp(-2j * np.pi * k * np.arange(320) / 320)))
        assert features[k, 3] == pytest.approx(np.log1p(expected), abs=1e-5)
    assert int(features[:, 3].argmax()) == 20


def test_257_bins_of_a_longer_window() -> None:
    config = FeatureConfig(window=512, hop=320)
    assert config.bins == 257
    assert extract(_tone(500), config).shape == (257, config.frames(8000))


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 5000.0])
def test_mel_bands_follow_the_frequency(hertz: float) -> None:
    config = FeatureConfig("mel", normalise="none")
    features = extract(_tone(hertz), config)
    assert features.shape[0] == 40
    top = 2595 * np.log10(1 + 8000 / 700)
    low = 2595 * np.log10(1 + 50 / 700)
    mel = 2595 * np.log10(1 + hertz / 700)
    expected = (mel - low) / ((top - low) / 41) - 1
    assert abs(int(features[:, 5].argmax()) - expected) <= 1


def test_normalisation() -> None:
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    whole = extract(noise, FeatureConfig())
    assert abs(float(whole.mean())) < 1e-4
    assert float(whole.std()) == pytest.approx(1, abs=1e-3)
    bins = extract(noise, FeatureConfig(normalise="bin"))
    np.testing.assert_allclose(bins.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(bins.std(axis=1), 1, atol=1e-2)
    # A gain of 10 all but disappears from mel features.
    loud = extract(10 * noise, FeatureConfig("mel"))
    np.testing.assert_allclose(loud, extract(noise, FeatureConfig("mel")), atol=1e-2)


def test_silence_and_snippets_stay_finite() -> None:
    for kind in ("linear", "mel"):
        config = FeatureConfig(kind)  # type: ignore[arg-type]
        assert np.isfinite(extract(np.zeros(4000, np.float32), config)).all()
        assert extract(np.zeros(5, np.float32), config).shape == (config.bins, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mfcc"}, "features.kind is 'mfcc'"),
        ({"hop": 0}, "features.hop is 0"),
        ({"kind": "mel", "mels": 300}, "features.mels is 300"),
        ({"normalise": "global"}, "features.normalise is 'global'"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureConfig(**settings)


def test_the_alphabet_has_29_classes_with_blank_first() -> None:
    assert (text.CLASSES, text.BLANK) == (29, 0)
    assert text.encode(" az'") == [1, 2, 27, 28]
    assert text.decode([0, 2, 2, 0, 1, 28]) == "aa '"
    assert text.decode(text.encode("it's fine")) == "it's fine"


def test_texts_are_normalised_and_strangers_named() -> None:
    assert text.normalise("  It\u2019s   FINE\t") == "it's fine"
    with pytest.raises(ValueError, match="'7'"):
        text.encode("route 7")
