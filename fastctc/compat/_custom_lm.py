"""Language models written in Python for torchaudio's decoder, in the readable beam search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fastctc import _decode
from fastctc.decoder import Hypothesis
from fastctc.reference import prefix_beam_search


class CTCDecoderLMState:
    """State of a language model; a tree whose branches are the words or tokens read.

    Attributes:
        children: the states after one more word or token, by its index.
    """

    def __init__(self) -> None:
        self.children: dict[int, CTCDecoderLMState] = {}

    def child(self, usr_index: int) -> CTCDecoderLMState:
        """The state after one more word or token, made where there is none yet."""
        if usr_index not in self.children:
            self.children[usr_index] = CTCDecoderLMState()
        return self.children[usr_index]

    def compare(self, state: CTCDecoderLMState) -> int:
        """0 for the same state, else -1 or 1."""
        return (id(self) > id(state)) - (id(self) < id(state))


class CTCDecoderLM(ABC):
    """A language model of your own: of words where the decoder has a lexicon, else of tokens."""

    @abstractmethod
    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        """The state before the first word. The decoder passes False: a sentence begins."""

    @abstractmethod
    def score(
        self, state: CTCDecoderLMState, usr_token_idx: int
    ) -> tuple[CTCDecoderLMState, float]:
        """The state after one more word or token, and what it adds to the score."""

    @abstractmethod
    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        """A state after the end, and what ending adds to the score."""


class _State(NamedTuple):
    lm: CTCDecoderLMState
    node: _Node | None  # where the open word stands, the root without one; None: in no lexicon


class _Node:
    """A prefix of spellings: what it goes on with, and the words that it is."""

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.words: list[int] = []


def _no_nan(name: str, score: float) -> float:
    if math.isnan(score):
        raise ValueError(f"the language model's {name} is nan: it must be a number, or -inf")
    return score


class _Rules:
    """What the model adds to prefixes, as the readable search asks for it.

    The words of a prefix follow from its tokens: silence ends a word, and of several words with
    the same spelling the one is taken that the model likes best.
    """

    def __init__(
        self,
        lm: CTCDecoderLM,
        root: _Node | None,
        *,
        silence: int,
        lm_weight: float,
        word_score: float,
        unk_score: float,
        unknown: int,
    ) -> None:
        self.lm = lm
        self.root = root
        self.silence = silence
        self.lm_weight = lm_weight
        self.word_score = word_score
        self.unk_score = unk_score
        self.unknown = unknown

    def start(self) -> _State:
        return _State(self.lm.start(False), self.root)

    def ask(self, state: CTCDecoderLMState, index: int) -> tuple[CTCDecoderLMState, float]:
        after, score = self.lm.score(state, index)
        return after, _no_nan(f"score of {index}", score)

    def extend(self, state: _State, token: int) -> tuple[float, _State] | None:
        if self.root is None:
            after, score = self.ask(state.lm, token)
            return self.lm_weight * score, _State(after, None)
        if token == self.silence:
            ended = self.end_word(state)
            return None if ended is None else ended[:2]
        if state.node is None:
            return 0.0, state
        if (node := state.node.children.get(token)) is not None:
            return 0.0, _State(state.lm, node)
        return self.leave_lexicon(state)

    def leave_lexicon(self, state: _State) -> tuple[float, _State] | None:
        """The open word turns out to be none of the lexicon's."""
        if self.unk_score == -math.inf:
            return None
        after, score = self.ask(state.lm, self.unknown)
        return self.lm_weight * score + self.unk_score - self.word_score, _State(after, None)

    def end_word(self, state: _State) -> tuple[float, _State, int | None] | None:
        """What the open word adds, the state after it, and its number; None: it is forbidden."""
        if state.node is self.root:
            return 0.0, state, None
        if state.node is None or not state.node.words:
            left = (0.0, state) if state.node is None else self.leave_lexicon(state)
            if left is None:
                return None
            return left[0] + self.word_score, _State(left[1].lm, self.root), self.unknown
        scored = [(*self.ask(state.lm, word), word) for word in state.node.words]
        after, score, word = max(scored, key=lambda item: item[1])
        return self.lm_weight * score + self.word_score, _State(after, self.root), word

    def finish(self, state: _State) -> float:
        ended = (0.0, state) if self.root is None else self.end_word(state)
        if ended is None:
            return -math.inf
        score = _no_nan("finish", self.lm.finish(ended[1].lm)[1])
        return ended[0] + self.lm_weight * score

    def words(self, tokens: Sequence[int]) -> list[int]:
        """The words of an allowed prefix."""
        found, state = [], self.start()
        for token in [*tokens, self.silence]:
            ended = self.end_word(state) if token == self.silence else None
            if ended is not None and ended[2] is not None:
                found.append(ended[2])
            step = self.extend(state, token)
            assert step is not None
            state = step[1]
        return found


class CustomSearch:
    """A beam search with a model that is asked for each new token or word.

    Args:
        lm: the model.
        spellings: of each word in tokens; None: the model is one of tokens.
        words: the model's words in order of their indices. None: those of the lexicon in its
            order, and `unk_word` after them.
        others: as for `ctc_decoder`.

    Raises:
        ValueError: a word of the lexicon is none of the model's, or `unk_word` is not.
    """

    def __init__(
        self,
        lm: CTCDecoderLM,
        *,
        blank: int,
        silence: int,
        beam_size: int,
        beam_size_token: int | None,
        beam_threshold: float,
        lm_weight: float,
        word_score: float,
        unk_score: float,
        unk_word: str,
        spellings: Mapping[str, Sequence[Sequence[int]]] | None,
        words: Sequence[str] | None,
    ) -> None:
        self._beam_size = beam_size
        self._beam_threshold = beam_threshold
        self._top_k = beam_size_token
        self._blank = blank
        self._names: list[str] = []
        root, unknown = None, -1
        if spellings is not None:
            self._names = list(words or dict.fromkeys([*spellings, unk_word]))
            numbers = {word: number for number, word in enumerate(self._names)}
            if missing := [word for word in [*spellings, unk_word] if word not in numbers]:
                raise ValueError(f"lm_dict has no {missing[0]!r}, which the decoder needs")
            root, unknown = _trie(spellings, numbers, silence), numbers[unk_word]
        self._rules = _Rules(
            lm,
            root,
            silence=silence,
            lm_weight=lm_weight,
            word_score=word_score,
            unk_score=unk_score,
            unknown=unknown,
        )

    def __call__(self, emissions: Tensor, lengths: Tensor | None = None) -> list[list[Hypothesis]]:
        """All that the beam ends with for (N, T, C) emissions, best first, without timesteps."""
        batch, frames, _ = emissions.shape
        ends = _decode.check_lengths(lengths, batch, frames).tolist()
        rows = emissions.double().cpu()
        return [self._search(row[:end]) for row, end in zip(rows, ends, strict=True)]

    def _search(self, emissions: Tensor) -> list[Hypothesis]:
        found = prefix_beam_search(
            emissions.numpy(),
            self._beam_size,
            blank=self._blank,
            beam_threshold=self._beam_threshold,
            top_k=self._top_k,
            fusion=self._rules,
        )
        hypotheses = []
        for tokens, score, lm_score in found:
            words = [] if self._rules.root is None else self._rules.words(tokens)
            names = [self._names[word] for word in words]
            hypotheses.append(
                Hypothesis(list(tokens), " ".join(names), names, score, lm_score, [], [])
            )
        return hypotheses


def _trie(
    spellings: Mapping[str, Sequence[Sequence[int]]], numbers: Mapping[str, int], silence: int
) -> _Node:
    """The spellings as a tree, silence at their ends left out."""
    root = _Node()
    for word, ways in spellings.items():
        for way in ways:
            tokens = [token for token in way if token != silence]
            inner = "".join("s" if token == silence else "t" for token in way).strip("s")
            if "s" in inner or not tokens:
                raise ValueError(f"the lexicon's spelling of {word!r} is nothing, or two words")
            node = root
            for token in tokens:
                node = node.children.setdefault(token, _Node())
            node.words.append(numbers[word])
    return root
