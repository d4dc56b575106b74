"""Texts for measuring decoders with language models: the help texts that CPython comes with."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import re
from pydoc_data.topics import topics

from fastctc import NGramModel
from fastctc.estimate import characters

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
# One class for each: the blank, the boundary between words, the letters.
TOKENS = ["", " ", *LETTERS]

_MODEL_WORDS = 60_000
_SENTENCE = 12


@functools.cache
def words() -> list[str]:
    """All words in the order of the topics' names, written in `LETTERS`."""
    text = " ".join(topics[name] for name in sorted(topics)).lower()
    return re.sub(f"[^{LETTERS}]+", " ", text).split()


@functools.cache
def character_model(order: int) -> NGramModel:
    """Of the first words, put into sentences of a dozen."""
    known = words()[:_MODEL_WORDS]
    sentences = [known[i : i + _SENTENCE] for i in range(0, len(known), _SENTENCE)]
    return NGramModel.estimate([characters(" ".join(words)) for words in sentences], order)


def spoken(letters: int) -> list[int]:
    """Classes of a text that the model has not read."""
    text = " ".join(words()[_MODEL_WORDS:])
    return [TOKENS.index(letter) for letter in itertools.islice(itertools.cycle(text), letters)]


def phrases(count: int, rare: bool) -> list[str]:
    """Words of three letters and more, and pairs of them.

    Rare ones occur at most twice, as names and terms do that a model has to be told of; else they
    are of the whole vocabulary, and a half of that is most of what a text says.
    """
    chosen = random.Random(0)
    counts = collections.Counter(word for word in words() if len(word) > 2 and word.isalpha())
    vocabulary = sorted(word for word in counts if not rare or counts[word] <= 2)
    chosen.shuffle(vocabulary)
    singles = vocabulary[: count // 2]
    pairs = [" ".join(chosen.sample(vocabulary, 2)) for _ in range(count - len(singles))]
    return singles + pairs
