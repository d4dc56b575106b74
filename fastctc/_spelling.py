"""How tokens are spelled in the symbols that lexicons and hotwords are matched by.

A symbol is a character, or a token where a lexicon spells its words in tokens; symbol 0 is the
boundary between words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastctc.lexicon import Lexicon

BOUNDARY = 0
# Ambiguous spellings multiply in a phrase of several words; more than this many are refused.
MOST_SPELLINGS = 256

Symbols = tuple[int, ...]

PIECE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_BOUNDARIES = ("|", " ", "<space>")
_SPECIAL = re.compile(r"<[^<>\s]+>")


def check_tokens(tokens: Any, name: str = "tokens") -> list[str]:
    """The text of each class, as a list.

    Raises:
        TypeError: they are no texts, or in no order.
        ValueError: there is none.
    """
    if isinstance(tokens, (Mapping, set, frozenset)) or not isinstance(tokens, Iterable):
        raise TypeError(
            f"{name} must be a sequence in the order of the classes, got {type(tokens).__name__}"
        )
    listed = list(tokens)
    if not listed:
        raise ValueError(f"{name} is empty: at least one class (the blank) is needed")
    for index, token in enumerate(listed):
        if not isinstance(token, str):
            raise TypeError(f"{name}[{index}] must be a str, got {type(token).__name__}")
    return listed


def check_classes(labels: Iterable[int], classes: int) -> None:
    """Raise a ValueError for a label that is no class."""
    for label in labels:
        if not 0 <= label < classes:
            raise ValueError(f"token {label} is none of the {classes} classes")


def find_boundary(tokens: Sequence[str], blank: int, asked: str | None) -> str:
    """What stands between words: as asked for, or one of the usual ones; "" where words have none.

    Raises:
        TypeError: what was asked for is no text.
        ValueError: no token but the blank has it.
    """
    if asked is not None and not isinstance(asked, str):
        raise TypeError(f"word_boundary must be a str or None, got {type(asked).__name__}")
    tokens = [token for index, token in enumerate(tokens) if index != blank]
    if asked is None:
        if any(token.startswith(PIECE_MARK) for token in tokens):
            return PIECE_MARK
        return next((usual for usual in _BOUNDARIES if usual in tokens), "")
    if asked and not any(
        token == asked or (len(asked) == 1 and asked in token) for token in tokens
    ):
        raise ValueError(f"word_boundary is {asked!r}, which is in no token beside the blank")
    return asked


class Spelling:
    """Tokens in symbols.

    Args:
        tokens: the text of each class.
        blank: the class that is no symbol.
        boundary: what stands between words; "" for nothing.
        lexicon: where it has spellings of its own, symbols are tokens.

    Attributes:
        of_tokens: the symbols of each token.
        names: text of each symbol; that of the boundary is a blank.
    """

    def __init__(
        self, tokens: Sequence[str], blank: int, boundary: str, lexicon: Lexicon | None
    ) -> None:
        self.boundary = boundary
        self._by_token: dict[str, list[Symbols]] | None = None
        self._numbers: dict[str, int] = {}
        by_token = lexicon is not None and lexicon.spellings is not None
        split = self._whole if by_token else self._letters
        self.of_tokens: list[Symbols] = [
            () if index == blank else tuple(map(self._number, split(token)))
            for index, token in enumerate(tokens)
        ]
        self.names = [" ", *self._numbers]
        if lexicon is not None and by_token:
            self._by_token = {}
            for number, spelling in lexicon.spellings or ():
                word = lexicon.words[number]
                self._by_token.setdefault(word, []).append(self._spell_tokens(word, spelling))

    def _number(self, symbol: str | None) -> int:
        if symbol is None:
            return BOUNDARY
        return self._numbers.setdefault(symbol, len(self._numbers) + 1)

    def _letters(self, token: str) -> Iterator[str | None]:
        """The characters of a token, None for each boundary. <noise> and the like are one."""
        if token == self.boundary:
            yield None
        elif _SPECIAL.fullmatch(token):
            yield token
        else:
            for character in token:
                yield None if character == self.boundary else character

    def _whole(self, token: str) -> Iterator[str | None]:
        """The token as one symbol, and None for a boundary at either end of it."""
        if token == self.boundary:
            yield None
            return
        one = len(self.boundary) == 1
        if one and token.startswith(self.boundary):
            yield None
        yield token
        if one and token.endswith(self.boundary):
            yield None

    def _spell_tokens(self, word: str, spelling: Sequence[str]) -> Symbols:
        symbols = []
        for token in spelling:
            if token == self.boundary:
                symbols.append(BOUNDARY)
            elif token in self._numbers:
                symbols.append(self._numbers[token])
            else:
                raise ValueError(f"the lexicon spells {word!r} with {token!r}, which is no token")
        while symbols and symbols[-1] == BOUNDARY:
            symbols.pop()
        while symbols and symbols[0] == BOUNDARY:
            symbols.pop(0)
        if not symbols or BOUNDARY in symbols:
            raise ValueError(
                f"the lexicon's spelling of {word!r} is nothing, or two words: {' '.join(spelling)}"
            )
        return tuple(symbols)

    def lexicon(self, lexicon: Lexicon) -> tuple[NDArray[np.int32], NDArray[np.int64], list[int]]:
        """Symbols of all spellings on end, where each begins and the last ends, and their words.

        Raises:
            ValueError: a word cannot be spelled with the tokens.
        """
        if self._by_token is None:
            symbols, first, spelled = self.letters_of(lexicon.words)
            if len(spelled) < len(lexicon.words):
                missing = sorted(set(range(len(lexicon.words))) - set(spelled))[0]
                self.spell(lexicon.words[missing], "the lexicon's word")
            return symbols, first, spelled
        pairs = [
            (number, symbols_)
            for number, word in enumerate(lexicon.words)
            for symbols_ in self._by_token[word]
        ]
        return *flatten([symbols_ for _, symbols_ in pairs]), [number for number, _ in pairs]

    def letters_of(
        self, words: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], list[int]]:
        """As `lexicon`, of words by their letters, without those that have a letter of no token."""
        codes = np.array([ord(name) if len(name) == 1 else 0 for name in self.names], np.uint32)
        order = np.argsort(codes, kind="stable")
        text = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32)
        found = np.searchsorted(codes, text, sorter=order).clip(max=len(codes) - 1)
        symbols = np.where(codes[order][found] == text, order[found], -1).astype(np.int32)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        owners = np.repeat(np.arange(len(words)), lengths)
        unspelled = np.zeros(len(words), bool)
        unspelled[owners[symbols <= BOUNDARY]] = True
        keep = ~unspelled
        first = np.concatenate([[0], np.cumsum(lengths[keep])])
        return symbols[keep[owners]], first, np.flatnonzero(keep).tolist()

    def spell(self, word: str, what: str) -> list[Symbols]:
        """All spellings of one word.

        Raises:
            ValueError: it cannot be spelled; `what` says in the message what was to be.
        """
        if self._by_token is not None:
            if word not in self._by_token:
                raise ValueError(f"{what} {word!r} is not in the lexicon, which has the spellings")
            return self._by_token[word]
        for letter in word:
            if letter not in self._numbers:
                raise ValueError(f"{what} {word!r} cannot be spelled: no token has {letter!r}")
        return [tuple(self._numbers[letter] for letter in word)]

    def phrase(self, phrase: str) -> list[Symbols]:
        """All spellings of a phrase, from boundary to boundary where words have boundaries.

        Raises:
            ValueError: it is empty, cannot be spelled, or can in too many ways.
        """
        words = phrase.split()
        if not words:
            raise ValueError(f"hotword {phrase!r} is empty")
        if len(words) > 1 and not self.boundary:
            raise ValueError(f"hotword {phrase!r} has a blank; no token is a boundary of words")
        spellings = [self.spell(word, "hotword") for word in words]
        joined: list[Symbols] = []
        for choice in islice(product(*spellings), MOST_SPELLINGS + 1):
            symbols: list[int] = []
            for word in choice:
                symbols += [BOUNDARY, *word] if self.boundary else word
            joined.append((*symbols, BOUNDARY) if self.boundary else tuple(symbols))
        if len(joined) > MOST_SPELLINGS:
            raise ValueError(f"hotword {phrase!r} has more than {MOST_SPELLINGS} spellings")
        return joined


def flatten(sequences: Sequence[Symbols]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Sequences of symbols on end, and where each begins and the last ends."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    first = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((s for sequence in sequences for s in sequence), np.int32, int(first[-1]))
    return flat, first
