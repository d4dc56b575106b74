"""The built-in corpus: the same bits from a seed, true alignments, splits that do not overlap."""

from __future__ import annotations

import numpy as np
import pytest

from fastctc.train import formant
from fastctc.train.formant import FormantCorpus, Speaker, synthesise
from fastctc.train.texts import NEW_WORDS, VOCABULARY, pseudo_word

SPEAKER = Speaker(f0=120.0, tract=1.0, tempo=1.0, tilt=1.0, breath=0.01, bandwidth=1.0)


def test_an_utterance_depends_on_seed_split_and_index_alone() -> None:
    forwards = FormantCorpus("train", 6, seed=3)
    first = [forwards[k] for k in range(6)]
    backwards = FormantCorpus("train", 6, seed=3)
    for k in reversed(range(6)):
        again = backwards[k]
        assert again.text == first[k].text
        assert again.alignment == first[k].alignment
        np.testing.assert_array_equal(again.audio, first[k].audio)
    longer = FormantCorpus("train", 9, seed=3)
    np.testing.assert_array_equal(longer[2].audio, first[2].audio)


def test_another_seed_is_another_corpus() -> None:
    one, other = FormantCorpus("train", 20, seed=0), FormantCorpus("train", 20, seed=1)
    assert one.texts != other.texts
    assert one.speakers != other.speakers


def test_audio_is_in_range_and_as_long_as_announced() -> None:
    corpus = FormantCorpus("heldout", 5)
    for k in range(5):
        utterance = corpus[k]
        assert utterance.audio.dtype == np.float32
        assert 0.09 < np.abs(utterance.audio).max() <= 0.71
        assert len(utterance.audio) == round(corpus.duration(k) * formant.SAMPLE_RATE)


def test_alignment_covers_every_letter_without_gaps() -> None:
    utterance = FormantCorpus("train", 3)[1]
    assert "".join(s.letter for s in utterance.alignment) == utterance.text
    for before, after in zip(utterance.alignment, utterance.alignment[1:], strict=False):
        assert before.end == after.start
        assert before.end - before.start >= 7 * formant.FRAME
    assert utterance.alignment[0].start > 0
    assert utterance.alignment[-1].end < len(utterance.audio)


def _band_energy(audio: np.ndarray, start: int, end: int, low: float, high: float) -> float:
    """Return the mean power of audio[start:end] between ``low`` and ``high`` Hz."""
    spectrum = np.abs(np.fft.rfft(audio[start:end] * np.hanning(end - start))) ** 2
    freqs = np.fft.rfftfreq(end - start, 1 / formant.SAMPLE_RATE)
    return float(spectrum[(freqs >= low) & (freqs < high)].sum() / (end - start))


@pytest.mark.parametrize("seed", range(5))
def test_the_sound_is_where_the_alignment_says(seed: int) -> None:
    audio, alignment = synthesise("as a", SPEAKER, np.random.default_rng(seed))
    vowel, hiss, space, _ = alignment
    low = [_band_energy(audio, s.start, s.end, 600, 1600) for s in (vowel, hiss, space)]
    high = [_band_energy(audio, s.start, s.end, 5000, 7500) for s in (vowel, hiss, space)]
    assert low[0] > 10 * max(low[1:])
    assert high[1] > 2 * high[0]
    assert high[1] > 2 * high[2]  # at 10 dB, background noise is a good part of it

    # The vowel's power arrives within 10 ms of where it is said to start.
    smooth = np.convolve(audio[: hiss.start] ** 2, np.ones(80) / 80, mode="same")
    onset = int(np.argmax(smooth > 0.25 * smooth.max()))
    assert abs(onset - vowel.start) < 160 + 80


def test_a_doubled_letter_dips_in_the_middle() -> None:
    audio, (first, second) = synthesise("aa", SPEAKER, np.random.default_rng(0))
    power = np.convolve(audio**2, np.ones(160) / 160, mode="same")
    middle = power[first.end - 120 : first.end + 120].min()
    inside = min(power[(first.start + first.end) // 2], power[(second.start + second.end) // 2])
    assert middle < 0.6 * inside


def test_background_noise_has_no_notch() -> None:
    rng = np.random.default_rng(0)
    spectrum = np.zeros(257)
    for _ in range(40):
        noise = formant._one_pole_noise(rng, 512 * 8)
        spectrum += np.mean(np.abs(np.fft.rfft(noise.reshape(8, 512))) ** 2, axis=0)
    bands = spectrum[1:].reshape(16, 16).mean(axis=1)
    # It falls all the way, so that no band is far below the one above it.
    assert np.all(bands[:-1] > 0.8 * bands[1:])
    assert bands[-1] > 0.02 * bands[0]


def _between(value: float, bands: tuple[tuple[float, float], ...]) -> bool:
    return any(low <= value <= high for low, high in bands)


@pytest.mark.parametrize("split", ["validation", "heldout", "new_words"])
def test_held_out_speakers_share_no_band_with_training(split: formant.Split) -> None:
    training = FormantCorpus("train", 1).speakers
    for speaker in FormantCorpus(split, 1).speakers:
        assert not _between(speaker.f0, formant.TRAIN_F0)
        assert not _between(speaker.tract, formant.TRAIN_TRACT)
        assert all(speaker.f0 != t.f0 and speaker.tract != t.tract for t in training)
    for speaker in training:
        assert not _between(speaker.f0, formant.HELDOUT_F0)
        assert not _between(speaker.tract, formant.HELDOUT_TRACT)


def test_the_sets_have_speakers_of_their_own() -> None:
    splits = [FormantCorpus(s, 1).speakers for s in ("validation", "heldout", "new_words")]
    voices = [speaker for speakers in splits for speaker in speakers]
    assert len(set(voices)) == len(voices)


def test_word_lists_are_disjoint_and_speakable() -> None:
    assert not set(VOCABULARY) & set(NEW_WORDS)
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert len(set(NEW_WORDS)) == len(NEW_WORDS)
    assert set("".join(VOCABULARY + NEW_WORDS)) <= set(formant.SOUNDS)
    # Every letter is heard in training and tested on new words.
    assert set(formant.SOUNDS) - {" "} <= set("".join(VOCABULARY) + "".join(NEW_WORDS))


def test_training_never_says_a_new_word() -> None:
    spoken = {w for text in FormantCorpus("train", 2000).texts for w in text.split()}
    assert not spoken & set(NEW_WORDS)
    assert spoken - set(VOCABULARY), "training has pseudo-words"


def test_pseudo_words_avoid_both_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    banned = {pseudo_word(rng) for _ in range(300)}
    monkeypatch.setattr("fastctc.train.texts._KNOWN", frozenset(banned))
    rng = np.random.default_rng(0)
    assert not {pseudo_word(rng) for _ in range(300)} & banned


def test_held_out_texts_are_not_in_the_avoided_ones() -> None:
    before = FormantCorpus("heldout", 200).texts
    after = FormantCorpus("heldout", 200, avoid=before).texts
    assert not set(before) & set(after)
    assert {w for t in after for w in t.split()} <= set(VOCABULARY)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="split is 'tests'"):
        FormantCorpus("tests", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size is 0"):
        FormantCorpus("train", 0)
    with pytest.raises(IndexError, match="utterance 3 of 3"):
        FormantCorpus("train", 3)[3]
    with pytest.raises(ValueError, match="'é'"):
        synthesise("café", SPEAKER, np.random.default_rng(0))
    with pytest.raises(ValueError, match="empty"):
        synthesise("", SPEAKER, np.random.default_rng(0))
