"""N-gram language models for the decoders, read from ARPA files."""

from __future__ import annotations

import gzip
import math
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastctc._arguments import path_of, real_number
from fastctc._native import _C
from fastctc.estimate import arpa_lines

__all__ = ["NGramModel", "WordScore"]

# What no text has: the marks of a sentence's ends, and the words for unknown words.
SPECIAL_WORDS = frozenset(("<s>", "</s>", "<unk>", "<UNK>"))
_PIECE = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_LARGEST_EXPONENT = math.log(sys.float_info.max)


def compiled() -> ModuleType:
    """The compiled module, which language models need."""
    if _C is None:
        raise RuntimeError(
            "language models need the compiled library, and fastctc was installed without it: "
            "install it where a C++ compiler is at hand"
        )
    return _C


def address_of(table: bytes) -> int:
    """Where the bytes are, for as long as the object lives."""
    return np.frombuffer(table, np.uint8).ctypes.data


class WordScore(NamedTuple):
    """One word of a sentence and its score."""

    word: str
    score: float
    known: bool


@dataclass(frozen=True, eq=False)
class NGramModel:
    """A back-off n-gram model, in tables that decoders on every device read.

    Made by `from_arpa`. Models can be pickled and shared between threads and decoders.

    Attributes:
        order: length of the longest n-grams.
        counts: how many n-grams of each order the file has, shortest first.
        unknown_is_listed: the file gives a score to unknown words (``<unk>`` or ``<UNK>``).
    """

    order: int
    counts: tuple[int, ...]
    unknown_is_listed: bool
    _table: bytes
    _vocabulary: bytes
    _unknown: int

    @classmethod
    def from_arpa(
        cls, path: str | os.PathLike[str], *, unknown_log10: float = -100.0
    ) -> NGramModel:
        """Read an ARPA file, plain or compressed with gzip.

        Args:
            path: the file; whether it is compressed is seen from its content.
            unknown_log10: log10 probability of unknown words where the file lists none.

        Raises:
            ValueError: the file is no ARPA file; the message names the line.
            OSError: the file cannot be read.
            RuntimeError: fastctc was installed without its compiled library.
        """
        path = path_of("path", path)
        unknown_log10 = real_number("unknown_log10", unknown_log10)
        if not unknown_log10 <= 0:
            raise ValueError(f"unknown_log10 must be at most 0, not {unknown_log10}")
        try:
            with open(path, "rb") as file:
                return cls._read(_pieces(file), unknown_log10)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def estimate(cls, sentences: Iterable[Sequence[str]], order: int = 3) -> NGramModel:
        """A model of the words of sentences, as ``fastctc lm`` estimates it.

        Args:
            sentences: the words of each; `fastctc.estimate.characters` makes words of letters.
            order: length of the longest n-grams.

        Raises:
            ValueError: as `fastctc.estimate.arpa_lines`.
            RuntimeError: fastctc was installed without its compiled library.
        """
        return cls._read((line.encode() for line in arpa_lines(sentences, order)), -100.0)

    @classmethod
    def _read(cls, pieces: Iterable[bytes], unknown_log10: float) -> NGramModel:
        reader = compiled().ArpaReader(unknown_log10 * math.log(10))
        try:
            for piece in pieces:
                reader.feed(piece)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"line {reader.lines + 1}: broken gzip data: {error}") from None
        table, vocabulary, counts, unknown, listed = reader.finish()
        return cls(len(counts), tuple(counts), listed, table, vocabulary, unknown)

    @cached_property
    def words(self) -> list[str]:
        """Every word of the model, the one for unknown words included."""
        return self._vocabulary.decode().split("\n")[:-1]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def number(self, word: str) -> int:
        """The model's number of a word, or that of the unknown word."""
        return self._numbers.get(word, self._unknown)

    def word_scores(
        self, sentence: str | Sequence[str], *, bos: bool = True, eos: bool = True
    ) -> list[WordScore]:
        """The words of a sentence, each with ln p(word | the words before it).

        Args:
            sentence: words, or a text that is split at blanks.
            bos: the sentence begins after ``<s>``; else after nothing.
            eos: add ``</s>`` as the last word, where the model has it.
        """
        if not isinstance(sentence, Iterable):
            raise TypeError(f"sentence must be a text or words, got {type(sentence).__name__}")
        words = sentence.split() if isinstance(sentence, str) else list(sentence)
        if eos and "</s>" in self:
            words.append("</s>")
        numbers = np.array([self.number(word) for word in words], np.int32)
        scores = np.empty(len(words), np.float32)
        compiled().ngram_scores(
            address_of(self._table), numbers.ctypes.data, len(words), bos, scores.ctypes.data
        )
        return [
            WordScore(word, score, number != self._unknown)
            for word, score, number in zip(words, scores.tolist(), numbers.tolist(), strict=True)
        ]

    def score(self, sentence: str | Sequence[str], *, bos: bool = True, eos: bool = True) -> float:
        """Natural log of the probability of a sentence: the sum of `word_scores`."""
        return math.fsum(word.score for word in self.word_scores(sentence, bos=bos, eos=eos))

    def perplexity(self, sentence: str | Sequence[str]) -> float:
        """exp of the average surprise per word, the end of the sentence included."""
        scores = self.word_scores(sentence)
        if not scores:
            raise ValueError("perplexity of no words: the sentence is empty, the model has no </s>")
        surprise = -math.fsum(word.score for word in scores) / len(scores)
        return math.exp(surprise) if surprise < _LARGEST_EXPONENT else math.inf

    def __repr__(self) -> str:
        listed = ", ".join(f"{count} {n}-grams" for n, count in enumerate(self.counts, 1))
        return f"<NGramModel of order {self.order}: {listed}>"


def _pieces(file: BufferedReader) -> Iterator[bytes]:
    """The file's text, decompressed, a piece at a time."""
    if file.peek(2)[:2] != _GZIP_MAGIC:  # without a seek, which pipes cannot do
        while piece := file.read(_PIECE):
            yield piece
        return
    with gzip.open(file) as text:
        while piece := text.read1(_PIECE):
            yield piece
