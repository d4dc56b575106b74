"""Texts from a trained model's scores: the decoder of its alphabet, and when words are said."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastctc.decoder import CTCDecoder, Hypothesis
from fastctc.lexicon import Lexicon
from fastctc.train import text as alphabet
from fastctc.train.errors import ConfigError
from fastctc.train.features import FeatureConfig
from fastctc.train.model import NetworkConfig

_SPACE = alphabet.encode(" ")[0]


class TimedWord(NamedTuple):
    """A word, where it is said in seconds, and the mean confidence of its letters."""

    word: str
    start: float
    end: float
    confidence: float


def make_decoder(
    beam_size: int, lm: Any = None, *, lexicon: str | None = None, **options: Any
) -> CTCDecoder:
    """Return a decoder of the trainer's alphabet; the options are those of `CTCDecoder`.

    A lexicon is the path of its file, whose words are normalised as texts are, unless they have
    spellings.

    Raises:
        ConfigError: A file cannot be read, an option is out of range, or fastctc was installed
            without its compiled library.
    """
    try:
        return CTCDecoder(
            ["", *alphabet.CHARACTERS],
            blank=alphabet.BLANK,
            beam_size=beam_size,
            lm=lm or None,
            lexicon=None if lexicon is None else _read_lexicon(lexicon),
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"decoding: {error}") from error


def _read_lexicon(path: str) -> Lexicon:
    lexicon = Lexicon.from_file(path)
    return lexicon if lexicon.spellings else Lexicon(map(alphabet.normalise, lexicon.words))


def frame_start(frame: int, network: NetworkConfig, features: FeatureConfig) -> float:
    """Return when a frame of the network's output begins, in seconds.

    Frames follow each other without gaps, and each lies round the middle of what the convolutions
    see of the audio.
    """
    position = frame - 0.5
    for conv in reversed(network.convs):
        position = position * conv.stride[1] - conv.padding[1] + (conv.kernel[1] - 1) / 2
    samples = position * features.hop + features.window / 2
    return max(0.0, samples / features.sample_rate)


def timed_words(
    found: Hypothesis, network: NetworkConfig, features: FeatureConfig
) -> list[TimedWord]:
    """Return the words of a hypothesis that has timesteps and confidences."""
    words: list[TimedWord] = []
    first = 0
    for last in range(len(found.tokens) + 1):
        if last < len(found.tokens) and found.tokens[last] != _SPACE:
            continue
        if last > first:
            confidences = found.confidence[first:last]
            words.append(
                TimedWord(
                    alphabet.decode(found.tokens[first:last]),
                    frame_start(found.timesteps[first][0], network, features),
                    frame_start(found.timesteps[last - 1][1], network, features),
                    sum(confidences) / len(confidences),
                )
            )
        first = last + 1
    return words
