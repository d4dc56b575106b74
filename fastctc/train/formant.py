"""Formant speech: a small spoken corpus made from nothing but numpy and a seed.

Every letter is one sound. A speaker is a fundamental frequency, a vocal-tract scale and a few
habits; an utterance is a string of letters that a speaker reads, with where each letter starts and
ends.
A source (pulses and noise) is filtered frame by frame and overlap-added: 16 kHz, 5 ms frames.
``docs/formant-speech.md`` says what the corpus is good for and what it is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastctc.train.texts import NEW_WORDS, VOCABULARY, training_text, word_string

SAMPLE_RATE = 16_000
#: Samples between two control frames (5 ms).
FRAME = 80

_WINDOW = 320
_NFFT = 512
_FREQS = np.fft.rfftfreq(_NFFT, 1 / SAMPLE_RATE).astype(np.float32)
# Hann windows a quarter of their length apart add up to 2; the factor makes that 1.
_HANN = (0.25 - 0.25 * np.cos(2 * np.pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)).astype(np.float32)
#: Frame j is windowed around sample 80 j + 160, so it stands for the 80 samples from 80 j + 120.
_FRAME_START = _WINDOW // 2 - FRAME // 2

Floats = npt.NDArray[np.float32]
Split = Literal["train", "validation", "heldout", "new_words"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout", "new_words")


@dataclasses.dataclass(frozen=True)
class Sound:
    """How one letter sounds. Frequencies in Hz, amplitudes relative, duration in ms."""

    kind: Literal["steady", "stop", "catch", "pause"]
    ms: float
    formants: tuple[float, float, float] = (500.0, 1500.0, 2500.0)
    voice: float = 0.0
    noise: float = 0.0
    band: tuple[float, float] = (2000.0, 1000.0)  # centre and standard deviation of the noise
    glide: tuple[float, float, float] | None = None  # formants at the end, where they move


SOUNDS: dict[str, Sound] = {
    "a": Sound("steady", 95, (830, 1330, 2600), voice=1.0),
    "e": Sound("steady", 90, (550, 1880, 2600), voice=1.0),
    "i": Sound("steady", 85, (280, 2350, 3050), voice=0.9),
    "o": Sound("steady", 95, (510, 840, 2500), voice=1.0),
    "u": Sound("steady", 90, (310, 690, 2250), voice=0.9),
    "y": Sound("steady", 80, (290, 1770, 2170), voice=0.9),
    "l": Sound("steady", 75, (370, 1130, 2950), voice=0.6),
    "r": Sound("steady", 75, (430, 1320, 1640), voice=0.6),
    "w": Sound("steady", 80, (320, 570, 2000), voice=0.55, glide=(560, 1050, 2250)),
    "j": Sound("steady", 85, (260, 2250, 2950), 0.5, 0.1, (3300, 900), (480, 1850, 2500)),
    "m": Sound("steady", 75, (250, 930, 2150), voice=0.45),
    "n": Sound("steady", 75, (250, 1700, 2600), voice=0.45),
    "v": Sound("steady", 75, (300, 1100, 2300), 0.35, 0.11, (5500, 3500)),
    "z": Sound("steady", 85, (280, 1600, 2500), 0.3, 0.32, (6300, 1100)),
    "s": Sound("steady", 95, noise=0.45, band=(6300, 1100)),
    "f": Sound("steady", 90, noise=0.17, band=(5500, 3500)),
    "h": Sound("steady", 75, noise=0.24, band=(1700, 1200)),
    "x": Sound("steady", 105, noise=0.4, band=(3300, 650)),
    "c": Sound("steady", 90, noise=0.4, band=(4700, 650)),
    "b": Sound("stop", 75, (250, 820, 2200), 0.8, 0.5, (650, 400)),
    "d": Sound("stop", 75, (250, 1700, 2650), 0.8, 0.42, (4200, 1200)),
    "g": Sound("stop", 80, (250, 2150, 2450), 0.8, 0.42, (2200, 500)),
    "p": Sound("stop", 85, noise=0.85, band=(800, 450)),
    "t": Sound("stop", 85, noise=0.6, band=(4600, 1500)),
    "k": Sound("stop", 90, noise=0.6, band=(2300, 500)),
    "q": Sound("stop", 95, noise=0.65, band=(1400, 280)),
    "'": Sound("catch", 65, (600, 1500, 2500), voice=0.5),
    " ": Sound("pause", 80),
}

_BANDWIDTHS = (70.0, 100.0, 150.0)
_HIGH_FORMANTS = ((3500.0, 200.0), (4500.0, 280.0))
_BURST_FRAMES = 3

# Speakers are drawn from bands, and the bands of training and of held-out speakers never touch:
# a held-out voice is new in its pitch and in the size of its vocal tract.
TRAIN_F0 = ((88.0, 111.0), (124.0, 143.0), (163.0, 189.0), (206.0, 245.0))
HELDOUT_F0 = ((114.0, 121.0), (193.0, 202.0))
TRAIN_TRACT = ((0.86, 0.92), (0.955, 1.025), (1.06, 1.14))
HELDOUT_TRACT = ((0.925, 0.95), (1.03, 1.055))


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A voice. ``f0`` in Hz (its mean: speech moves around it), the others are factors."""

    f0: float
    tract: float
    tempo: float
    tilt: float
    breath: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """Where one letter lies: samples ``start`` (included) to ``end`` (excluded)."""

    letter: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Audio (float32, 16 kHz, within [-1, 1]), its text, the alignment and who spoke."""

    uid: str
    text: str
    audio: Floats
    alignment: tuple[Segment, ...]
    speaker: Speaker


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that decides an utterance but its noise: what ``durations`` needs without synthesis."""

    frames: tuple[int, ...]  # of each letter
    lead: int
    tail: int

    @property
    def total(self) -> int:
        return self.lead + sum(self.frames) + self.tail


def draw_speaker(rng: np.random.Generator, held_out: bool) -> Speaker:
    """Draw a voice from the training bands, or from the held-out ones."""
    f0_bands = HELDOUT_F0 if held_out else TRAIN_F0
    tract_bands = HELDOUT_TRACT if held_out else TRAIN_TRACT
    return Speaker(
        f0=float(rng.uniform(*f0_bands[rng.integers(len(f0_bands))])),
        tract=float(rng.uniform(*tract_bands[rng.integers(len(tract_bands))])),
        tempo=float(rng.uniform(0.85, 1.2)),
        tilt=float(rng.uniform(0.8, 1.2)),
        breath=float(rng.uniform(0.0, 0.02)),
        bandwidth=float(rng.uniform(0.8, 1.25)),
    )


def _plan(text: str, speaker: Speaker, rng: np.random.Generator) -> _Plan:
    tempo = speaker.tempo * rng.uniform(0.93, 1.07)
    wobble = rng.uniform(0.88, 1.12, len(text))
    frames = [
        max(7, round(SOUNDS[letter].ms * tempo * w / 5))
        for letter, w in zip(text, wobble, strict=True)
    ]
    lead, tail = (int(n) for n in rng.integers(10, 30, 2))
    return _Plan(tuple(frames), lead, tail)


def _letter_control(sound: Sound, n: int) -> Floats:
    """Return the (n, 7) control frames of a letter: F1-F3, voice, noise, noise centre, width."""
    rows = np.empty((n, 7), np.float32)
    rows[:, :3] = sound.formants
    if sound.glide is not None:
        share = np.linspace(0, 1, n, dtype=np.float32)[:, None]
        rows[:, :3] += share * (np.asarray(sound.glide, np.float32) - rows[:, :3])
    rows[:, 3], rows[:, 4] = sound.voice, sound.noise
    rows[:, 5], rows[:, 6] = sound.band
    if sound.kind == "stop":
        closed = n * 6 // 10
        rows[:closed, 3] = 0.15 * sound.voice  # what is heard through closed lips
        rows[closed:, 3] = 0.55 * sound.voice
        rows[:closed, 4] = 0
        rows[closed + _BURST_FRAMES :, 4] *= 0.25
    elif sound.kind == "catch":
        rows[n // 3 : 2 * n // 3, 3] = 0
    # The sound dips at letter edges: two equal letters in a row stay two.
    rows[0, 3:5] *= 0.1
    rows[-1, 3:5] *= 0.5
    return rows


def _smooth(rows: Floats, width: int) -> Floats:
    """Return the moving average of each column over ``width`` (odd) rows, edges repeated."""
    half = width // 2
    padded = np.concatenate([rows[:1].repeat(half, 0), rows, rows[-1:].repeat(half, 0)])
    sums = np.cumsum(padded, axis=0, dtype=np.float64)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), sums])
    return ((sums[width:] - sums[:-width]) / width).astype(np.float32)


def _spectra(signal: Floats, frames: int) -> npt.NDArray[np.complex64]:
    windows = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[: frames * FRAME : FRAME]
    return np.fft.rfft(windows * _HANN, _NFFT).astype(np.complex64)


def _resonator(centre: Floats, width: float) -> npt.NDArray[np.complex64]:
    """Return 1 / transfer of a resonance per frame: shape (frames, bins), or (bins,)."""
    square = centre * centre
    out = np.empty(np.broadcast_shapes(centre.shape, _FREQS.shape), np.complex64)
    out.real = 1 - _FREQS * _FREQS / square
    out.imag = _FREQS * np.float32(width) / square
    return out


def _vocal_tract(formants: Floats, speaker: Speaker) -> npt.NDArray[np.complex64]:
    """Return the (frames, bins) transfer of the vocal tract; ``formants`` (frames, 3) in Hz."""
    fixed = np.ones_like(_FREQS, dtype=np.complex64)
    for centre, width in _HIGH_FORMANTS:
        fixed *= _resonator(np.asarray([centre * speaker.tract], np.float32), width)
    # Voice loses some 6 dB per octave, and lips radiate the high end.
    slope = (1 + (_FREQS / 400) ** 2) ** np.float32(-0.5 * speaker.tilt) * (1 + _FREQS / 500)
    inverse = _resonator(formants[:, :1], _BANDWIDTHS[0] * speaker.bandwidth)
    for k in (1, 2):
        inverse *= _resonator(formants[:, k : k + 1], _BANDWIDTHS[k] * speaker.bandwidth)
    return (slope / fixed)[None] / inverse


def _pulses(f0: Floats, length: int) -> Floats:
    """Return unit-power pulses at ``f0`` Hz (one value per frame), ``length`` samples."""
    phase = np.cumsum(np.repeat(f0, FRAME), dtype=np.float64) / SAMPLE_RATE
    out = np.zeros(length, np.float32)
    out[1 : len(phase)] = np.diff(np.floor(phase))
    return out * np.float32(np.sqrt(SAMPLE_RATE / f0.mean()))


def _one_pole_noise(rng: np.random.Generator, length: int) -> Floats:
    """Return unit-power background noise that falls smoothly towards high frequencies."""
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    pole = rng.uniform(0.2, 0.6)
    spectrum /= 1 - pole * np.exp(-1j * np.linspace(0, np.pi, len(spectrum)))
    noise = np.fft.irfft(spectrum, size)[:length]
    return (noise * np.sqrt(1 - pole * pole)).astype(np.float32)


def _overlap_add(frames: Floats) -> Floats:
    """Add (n, 512) frames up, 80 samples apart."""
    n = len(frames)
    out = np.zeros((n + _NFFT // FRAME + 1, FRAME), np.float32)
    for k in range(0, _NFFT, FRAME):
        piece = frames[:, k : k + FRAME]
        out[k // FRAME : k // FRAME + n, : piece.shape[1]] += piece
    return out.reshape(-1)[: n * FRAME + _NFFT]


def _render(control: Floats, speaker: Speaker, rng: np.random.Generator) -> Floats:
    n = len(control)
    length = n * FRAME + _NFFT
    formants = _smooth(control[:, :3], 7) * np.float32(speaker.tract)
    levels = _smooth(control[:, 3:5], 3)
    voice, noise = levels[:, :1], levels[:, 1:]
    centre, width = control[:, 5:6] * np.float32(speaker.tract**0.5), control[:, 6:7]

    time = np.linspace(0, 1, n)
    swing = np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * time + rng.random()))
    jitter = rng.standard_normal(n)
    f0 = speaker.f0 * (1.08 - 0.18 * time + 0.05 * swing + 0.01 * jitter)
    pulses = _spectra(_pulses(f0.astype(np.float32), length), n)
    hiss = _spectra(rng.standard_normal(length, dtype=np.float32), n)

    tract = _vocal_tract(formants, speaker)
    bands = np.exp(-0.5 * ((_FREQS - centre) / width) ** 2)
    spectrum = pulses * (tract * voice)
    spectrum += hiss * (bands * (1.6 * noise) + np.abs(tract) * (voice * speaker.breath))
    return _overlap_add(np.fft.irfft(spectrum, _NFFT).astype(np.float32))


def synthesise(
    text: str, speaker: Speaker, rng: np.random.Generator, plan: _Plan | None = None
) -> tuple[Floats, tuple[Segment, ...]]:
    """Let ``speaker`` read ``text``.

    Args:
        text: Letters a-z, apostrophes and spaces.
        speaker: The voice.
        rng: Decides durations (unless ``plan`` does), intonation, noise (10-30 dB) and gain.

    Returns:
        Audio (float32, 16 kHz, peak 0.1 to 0.7) and one segment per letter, spaces included.

    Raises:
        ValueError: ``text`` is empty or holds a character that has no sound.
    """
    if not text:
        raise ValueError("text is empty: there is nothing to speak")
    for letter in text:
        if letter not in SOUNDS:
            raise ValueError(f"text holds {letter!r}, which has no sound: a-z, ' and space have")
    plan = plan or _plan(text, speaker, rng)
    silence = SOUNDS[" "]
    pieces = [_letter_control(silence, plan.lead)]
    pieces += [_letter_control(SOUNDS[c], n) for c, n in zip(text, plan.frames, strict=True)]
    pieces.append(_letter_control(silence, plan.tail))
    audio = _render(np.concatenate(pieces), speaker, rng)

    level = float(np.sqrt(np.mean(audio * audio)))
    snr_db = rng.uniform(10, 30)
    audio += np.float32(level * 10 ** (-snr_db / 20)) * _one_pole_noise(rng, len(audio))
    audio *= np.float32(rng.uniform(0.1, 0.7) / np.abs(audio).max())

    edges = (plan.lead + np.cumsum([0, *plan.frames])) * FRAME + _FRAME_START
    alignment = tuple(Segment(c, int(edges[k]), int(edges[k + 1])) for k, c in enumerate(text))
    return audio, alignment


class FormantCorpus:
    """One split of the corpus: a sequence of utterances, each made when it is asked for.

    Utterance ``i`` depends on ``(seed, split, i)`` alone, so any process may make any of them, in
    any order, with the same bits. Texts and durations are known without synthesis.

    The splits: ``train`` reads the vocabulary and pseudo-words; ``heldout`` has other speakers and
    strings of vocabulary words that training does not hold; ``new_words`` has such speakers and
    words that no training text holds. ``validation`` is made like ``heldout``, with voices and
    strings of its own, so that a checkpoint chosen by it has not been chosen by ``heldout``.

    Args:
        split: Which of the four.
        size: How many utterances, at least 1.
        seed: Makes the corpus; another seed is another corpus (texts, speakers and noise).
        pseudo_fraction: Share of pseudo-words among the words of ``train``.
        avoid: Texts that ``validation`` and ``heldout`` must not hold: those of the training split,
            and for ``heldout`` those of ``validation``.
        speakers: How many voices.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        *,
        pseudo_fraction: float = 0.5,
        avoid: Iterable[str] = (),
        speakers: int = 100,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; the formant corpus has {', '.join(SPLITS)}")
        if size < 1:
            raise ValueError(f"size is {size}: a corpus holds at least one utterance")
        self.split: Split = split
        self.seed = seed
        key = SPLITS.index(split)
        voices = np.random.default_rng([seed, key, 0])
        self.speakers = [draw_speaker(voices, split != "train") for _ in range(speakers)]
        self.texts = _texts(split, size, seed, pseudo_fraction, frozenset(avoid))
        self._entropy = (seed, key, 1)

    def __len__(self) -> int:
        return len(self.texts)

    def _start(self, index: int) -> tuple[np.random.Generator, Speaker, _Plan]:
        rng = np.random.default_rng([*self._entropy, index])
        speaker = self.speakers[int(rng.integers(len(self.speakers)))]
        return rng, speaker, _plan(self.texts[index], speaker, rng)

    def uid(self, index: int) -> str:
        """Return the name of utterance ``index``, for messages."""
        return f"formant/{self.split}/{self.seed}/{index}"

    def duration(self, index: int) -> float:
        """Return the length of utterance ``index`` in seconds, without making it."""
        return (self._start(index)[2].total * FRAME + _NFFT) / SAMPLE_RATE

    def __getitem__(self, index: int) -> Utterance:
        """Make utterance ``index`` (some milliseconds); IndexError outside 0..len-1."""
        if not 0 <= index < len(self.texts):
            raise IndexError(f"utterance {index} of {len(self.texts)}")
        rng, speaker, plan = self._start(index)
        text = self.texts[index]
        audio, alignment = synthesise(text, speaker, rng, plan)
        return Utterance(self.uid(index), text, audio, alignment, speaker)


def _texts(
    split: Split, size: int, seed: int, pseudo_fraction: float, avoid: frozenset[str]
) -> list[str]:
    key = SPLITS.index(split)
    if split == "train":
        return [
            training_text(np.random.default_rng([seed, key, 2, k]), pseudo_fraction)
            for k in range(size)
        ]
    rng = np.random.default_rng([seed, key, 2])
    words = NEW_WORDS if split == "new_words" else VOCABULARY
    return [word_string(rng, words, avoid) for _ in range(size)]
