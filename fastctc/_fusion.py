"""What a decoder adds to the network's scores, put together for the compiled decoders.

The rules are in csrc/core/fusion.h, which decoders on every device include.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastctc._arguments import real_number
from fastctc._spelling import BOUNDARY, PIECE_MARK, Spelling, check_classes, find_boundary, flatten
from fastctc.lexicon import Lexicon
from fastctc.lm import SPECIAL_WORDS, NGramModel, address_of, compiled

NO_MODEL, BY_TOKEN, BY_WORD = 0, 1, 2
_UNITS = {"token": BY_TOKEN, "word": BY_WORD}
_LARGEST = 1e6  # of weights and bonuses: float32 still tells hundredths apart
# How ARPA files, which have no word that is a blank, write one.
WRITTEN_BLANKS = ("<space>", "|", PIECE_MARK, "_")


class TracedWord(NamedTuple):
    """A word of a hypothesis: its text, its tokens [begin, end), whether the lexicon has it."""

    text: str
    begin: int
    end: int
    known: bool


class Trace(NamedTuple):
    """What a hypothesis gets from its beginning to its end, in natural logs.

    `allowed` is False where the lexicon forbids it; the scores mean nothing then. `words` is empty
    where no token is a boundary of words.
    """

    allowed: bool
    lm_score: float  # ln p of the n-gram model, not weighted
    word_score: float
    hotword_score: float
    total: float
    words: list[TracedWord]


class Fusion:
    """An n-gram model, a lexicon, a word score and hotwords, any of which may be missing.

    Args:
        tokens: the text of each class.
        blank: the class that is no token.
        lm: the n-gram model.
        lm_weight: what its natural logs are multiplied by; at least 0, and 0 is without it.
        lm_unit: "token" or "word", what the model's words are. By default "token" where more than
            half of the model's words are tokens.
        word_score: added for each word.
        lexicon: the words that may be written; or, with `unknown_score`, that are preferred.
        unknown_score: added for each word outside the lexicon, or outside the vocabulary of a word
            model; -inf forbids them. Default: -inf with a lexicon, else 0.
        hotwords: phrases, each with `hotword_weight`, or with a bonus of its own in a mapping.
        hotword_weight: added for each occurrence of a hotword.
        word_boundary: what stands between words. Default: U+2581 where a token begins with it, else
            the first of "|", a blank and "<space>" among the tokens. "": nothing does.

    Attributes:
        words: what word numbers stand for: the lexicon's words, or those of the model.
        address: of the FusionView in host memory, as long as this object lives.
        bonus_rows: address of its rows of bonuses, likewise; 0 where it has none.

    Raises:
        ValueError: an argument is out of range or does not fit the tokens; the message says which.
    """

    words: list[str]

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        blank: int = 0,
        lm: NGramModel | None = None,
        lm_weight: float = 1.0,
        lm_unit: str | None = None,
        word_score: float = 0.0,
        lexicon: Lexicon | None = None,
        unknown_score: float | None = None,
        hotwords: Iterable[str] | Mapping[str, float] | None = None,
        hotword_weight: float = 0.0,
        word_boundary: str | None = None,
    ) -> None:
        check_scores(lm_weight, lm_unit, word_score, unknown_score, hotword_weight)
        self.tokens = list(tokens)
        boundary = find_boundary(self.tokens, blank, word_boundary)
        spelling = Spelling(self.tokens, blank, boundary, lexicon)
        if not boundary:
            _refuse_words(lexicon, word_score)
        left_out = lm is not None and lm_weight == 0
        if left_out:
            lm = None
        unit = NO_MODEL if lm is None else self._unit(lm, lm_unit, boundary, blank)

        self._ngram = lm._table if lm is not None else b""
        self._lexicon = self._make_lexicon(spelling, lexicon, lm if unit == BY_WORD else None)
        self._hotwords = _make_hotwords(spelling, hotwords, hotword_weight)
        self._token_table = self._make_token_table(spelling, lm if unit == BY_TOKEN else None)
        self._spelled = [
            tuple(None if s == BOUNDARY else spelling.names[s] for s in symbols)
            for symbols in spelling.of_tokens
        ]
        self._has_boundary = any(None in symbols for symbols in self._spelled)
        if unknown_score is None:
            unknown_score = 0.0 if lexicon is None else -math.inf
        elif not self._lexicon:
            if not left_out:
                raise ValueError("unknown_score needs a lexicon, or an n-gram model of words")
            unknown_score = 0.0
        weight = float(lm_weight) if lm else 0.0
        unknown_score = real_number("unknown_score", unknown_score)
        self._scores = (unit, weight, float(word_score), unknown_score)
        self._blank = blank
        self._set_view()

    def _unit(self, lm: NGramModel, asked: str | None, boundary: str, blank: int) -> int:
        if asked is None:
            tokens = {token for index, token in enumerate(self.tokens) if index != blank}
            known = sum(_written(t, boundary, lm) is not None for t in tokens - SPECIAL_WORDS)
            words = sum(word not in SPECIAL_WORDS for word in lm.words)
            unit = BY_TOKEN if 2 * known > words else BY_WORD
        else:
            unit = _UNITS[asked]
        if unit == BY_WORD and not boundary:
            raise ValueError(
                "an n-gram model of words needs a token that is a boundary of words; "
                "name it as word_boundary"
            )
        return unit

    def _make_lexicon(
        self, spelling: Spelling, lexicon: Lexicon | None, lm: NGramModel | None
    ) -> bytes:
        """The table of the lexicon, or of the model's words where there is no lexicon."""
        if lexicon is not None:
            self.words = lexicon.words
            symbols, first, spelled = spelling.lexicon(lexicon)
        elif lm is not None:
            self.words = lm.words
            written = [i for i, word in enumerate(lm.words) if word not in SPECIAL_WORDS]
            symbols, first, found = spelling.letters_of([lm.words[i] for i in written])
            if not found:
                one = f"; one is {lm.words[written[-1]]!r}" if written else ""
                raise ValueError(
                    f"none of the {len(written)} words of the n-gram model can be spelled with "
                    f"the tokens{one}. A model of tokens is lm_unit='token'"
                )
            spelled = [written[i] for i in found]
        else:
            self.words = []
            return b""
        indices = np.array(spelled, np.int32)
        ngram_words = indices
        if lexicon is not None:
            ngram_words = np.array(
                [lm.number(lexicon.words[i]) if lm else 0 for i in spelled], "i4"
            )
        table: bytes = compiled().make_lexicon(
            symbols.ctypes.data,
            first.ctypes.data,
            len(spelled),
            indices.ctypes.data,
            ngram_words.ctypes.data,
        )
        return table

    def _make_token_table(self, spelling: Spelling, lm: NGramModel | None) -> bytes:
        symbols, first = flatten(spelling.of_tokens)
        parts = [first.astype(np.int32), symbols]
        if lm is not None:
            written = [_written(token, spelling.boundary, lm) for token in self.tokens]
            if not any(written):
                raise ValueError(
                    "none of the tokens is a word of the n-gram model, whose unit is 'token'"
                )
            numbers = [lm._unknown if word is None else lm.number(word) for word in written]
            parts.append(np.array(numbers, np.int32))
        return np.concatenate(parts).tobytes()

    def _set_view(self) -> None:
        tables = (self._ngram, self._lexicon, self._hotwords, self._token_table)
        addresses = [address_of(table) if table else 0 for table in tables]
        self._host = addresses
        params = self._params(addresses)
        self._view = compiled().fusion_view(params)
        self.address = address_of(self._view)
        self._bonus_rows = compiled().make_bonus_rows(params, self._blank)
        self.bonus_rows = address_of(self._bonus_rows) if self._bonus_rows else 0
        self._on_device: dict[torch.device, tuple[bytes, list[torch.Tensor]]] = {}

    def _params(self, addresses: Sequence[int]) -> Any:
        pairs = zip(self._host, addresses, strict=True)
        return compiled().FusionParams(*pairs, len(self.tokens), *self._scores)

    def view_on(self, device: torch.device) -> bytes:
        """The FusionView for kernels on a device, where the tables are copied at the first call."""
        if device not in self._on_device:
            tables = (self._ngram, self._lexicon, self._hotwords, self._token_table)
            copies = [
                torch.from_numpy(np.frombuffer(table, np.uint8).copy()).to(device)
                for table in tables
            ]
            addresses = [copy.data_ptr() if len(copy) else 0 for copy in copies]
            view = compiled().fusion_view(self._params(addresses))
            # another thread may have been quicker, and kernels may be reading its copies
            self._on_device.setdefault(device, (view, copies))
        view, copies = self._on_device[device]
        if device.type == "cuda":
            # made on another stream, perhaps; this one may still read them when they are let go of
            for copy in copies:
                copy.record_stream(torch.cuda.current_stream(device))
        return view

    @property
    def largest_bonus(self) -> float:
        """No token adds more than this to a score."""
        bonus: float = compiled().fusion_largest_bonus(self.address)
        return bonus

    def trace(self, tokens: Sequence[int]) -> Trace:
        """What a hypothesis gets, from its first token to its end, and its words.

        Raises:
            ValueError: a token is no class.
        """
        check_classes(tokens, len(self.tokens))
        array = np.asarray(tokens, np.int32)
        allowed, lm_score, word_score, hotword_score, spans = compiled().fusion_trace(
            self.address, array.ctypes.data, len(array)
        )
        total = self._scores[1] * lm_score + word_score + hotword_score
        texts = self._texts(array.tolist())
        words = [
            TracedWord(text if number < 0 else self.words[number], begin, end, number >= 0)
            for text, (number, begin, end) in zip(texts, spans, strict=True)
        ]
        return Trace(allowed, lm_score, word_score, hotword_score, total, words)

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        """Words as they are spelled."""
        if not self._has_boundary:
            return []
        words: list[list[str]] = [[]]
        for symbol in (symbol for token in tokens for symbol in self._spelled[token]):
            if symbol is None:
                words.append([])
            else:
                words[-1].append(symbol)
        return ["".join(word) for word in words if word]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        made = ("_host", "_view", "address", "_bonus_rows", "bonus_rows", "_on_device")
        for name in made:
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_view()


def check_scores(
    lm_weight: Any, lm_unit: Any, word_score: Any, unknown_score: Any, hotword_weight: Any
) -> None:
    """Check the options of `Fusion` that say how much things count.

    Raises:
        TypeError: one is no number.
        ValueError: one is out of range, or there is no such unit.
    """
    check_weight("lm_weight", lm_weight)
    check_weight("word_score", word_score)
    check_weight("hotword_weight", hotword_weight)
    if lm_weight < 0:
        raise ValueError(f"lm_weight must be at least 0, not {lm_weight}")
    if lm_unit not in (None, *_UNITS):
        raise ValueError(f"lm_unit must be 'token' or 'word', not {lm_unit!r}")
    if unknown_score is None:
        return
    if not real_number("unknown_score", unknown_score) < math.inf:
        raise ValueError(f"unknown_score must be a number below infinity, not {unknown_score}")


def check_weight(name: str, value: Any) -> float:
    """A weight or a bonus that sums of float32 can take.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    number = real_number(name, value)
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{name} is {value}: it must be from {-_LARGEST:g} to {_LARGEST:g}")
    return number


def _refuse_words(lexicon: Lexicon | None, word_score: float) -> None:
    """Without a boundary, no word ever ends."""
    for name, given in (("lexicon", lexicon is not None), ("word_score", word_score != 0)):
        if given:
            raise ValueError(
                f"{name} needs a token that is a boundary of words; name it as word_boundary"
            )


def _written(token: str, boundary: str, lm: NGramModel) -> str | None:
    """A token as the model writes it."""
    if token in lm:
        return token
    if token == boundary:
        return next((written for written in WRITTEN_BLANKS if written in lm), None)
    return None


def _make_hotwords(
    spelling: Spelling, hotwords: Iterable[str] | Mapping[str, float] | None, weight: float
) -> bytes:
    if hotwords is None:
        return b""
    if isinstance(hotwords, (str, bytes)) or not isinstance(hotwords, Iterable):
        got = "one text" if isinstance(hotwords, str) else type(hotwords).__name__
        raise TypeError(f"hotwords must be a collection of phrases, not {got}")
    bonuses = dict(hotwords) if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords, weight)
    spelled, worth = [], []
    for phrase, bonus in bonuses.items():
        if not isinstance(phrase, str):
            raise TypeError(f"hotwords must be texts, got {type(phrase).__name__}")
        check_weight(f"the bonus of hotword {phrase!r}", bonus)
        for symbols in spelling.phrase(phrase):
            spelled.append(symbols)
            worth.append(bonus)
    if not spelled:
        return b""
    symbols_, first = flatten(spelled)
    array = np.array(worth, np.float32)
    table: bytes = compiled().make_hotwords(
        symbols_.ctypes.data,
        first.ctypes.data,
        len(spelled),
        array.ctypes.data,
        bool(spelling.boundary),
    )
    return table
