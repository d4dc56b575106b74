"""N-gram scores, lexicons and hotwords by their definitions: slow, and plain to read.

The compiled decoders add up small steps over states; here a score is worked out from the whole
text. Words are spelled by their letters; a token is any piece of text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

__all__ = ["Fusion", "NGram", "parse_arpa"]

Words = tuple[str, ...]


class NGram:
    """A back-off model: log10 probability and log10 back-off of each n-gram, as in an ARPA file.

    p(w | c) is that of the n-gram c w where it is listed; else the back-off of c times p(w | c'),
    where c' is c without its first word. Where no n-gram is listed for an unknown word, its log10
    probability is -100.
    """

    def __init__(self, ngrams: Mapping[Words, tuple[float, float]]) -> None:
        self.ngrams = dict(ngrams)
        self.ngrams.setdefault(("<unk>",), (-100.0, 0.0))
        self.order = max(map(len, self.ngrams))
        self.words = {words[0] for words in self.ngrams if len(words) == 1}

    def log10(self, context: Sequence[str], word: str) -> float:
        """log10 p(word | context)."""
        known = tuple(w if w in self.words else "<unk>" for w in (*context, word))
        known = known[-self.order :]
        if known in self.ngrams:
            return self.ngrams[known][0]
        return self.ngrams.get(known[:-1], (0.0, 0.0))[1] + self.log10(known[1:-1], known[-1])

    def score(self, context: Sequence[str], word: str) -> float:
        """ln p(word | context)."""
        return self.log10(context, word) * math.log(10)

    def word_scores(self, words: Sequence[str]) -> list[float]:
        """ln p of each word of a sentence and of its end."""
        sentence = ["<s>", *words, "</s>"]
        return [self.score(sentence[:i], sentence[i]) for i in range(1, len(sentence))]


def parse_arpa(text: str) -> NGram:
    """The model of a well-formed ARPA text."""
    ngrams: dict[Words, tuple[float, float]] = {}
    order = 0
    for line in text.splitlines():
        if line.startswith("\\"):
            order = int(line[1 : -len("-grams:")]) if line.endswith("-grams:") else 0
        elif order and line.strip():
            fields = line.split()
            backoff = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            ngrams[tuple(fields[1 : order + 1])] = (float(fields[0]), backoff)
    return NGram(ngrams)


class Fusion:
    """What a decoder adds to the score of a sequence of tokens.

    Args:
        tokens: the text of each class.
        lm: the n-gram model, None for none.
        lm_weight: what its natural logs are multiplied by.
        by_word: the model's words are words, not tokens.
        word_score: for each word.
        lexicon: the words that are not unknown; None: any word is as good as another. A model of
            words is its own lexicon.
        unknown_score: for each word outside the lexicon.
        hotwords: phrases and the bonus of each occurrence, as whole words where there is a
            boundary.
        boundary: the character between words; "" for none.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        lm: NGram | None = None,
        lm_weight: float = 1.0,
        by_word: bool = True,
        word_score: float = 0.0,
        lexicon: Collection[str] | None = None,
        unknown_score: float = 0.0,
        hotwords: Mapping[str, float] | None = None,
        boundary: str = " ",
    ) -> None:
        self.tokens = tokens
        self.lm = lm
        self.lm_weight = lm_weight
        self.by_word = by_word
        self.word_score = word_score
        self.lexicon = lexicon
        if lexicon is None and lm is not None and by_word:
            self.lexicon = {w for w in lm.words if w not in ("<s>", "</s>", "<unk>")}
        self.unknown_score = unknown_score
        self.boundary = boundary
        self.hotwords = {self._fence(phrase): bonus for phrase, bonus in (hotwords or {}).items()}

    def _fence(self, text: str) -> str:
        """Boundaries at both ends, and one between words."""
        if not self.boundary:
            return text
        return self.boundary.join(["", *self._split(text), ""])

    def _split(self, text: str) -> list[str]:
        return [word for word in text.replace(self.boundary, " ").split(" ") if word]

    def start(self) -> Words:
        """The state before the first token: the tokens read."""
        return ()

    def extend(self, state: Words, token: int) -> tuple[float, Words]:
        """What one more token adds, -inf where it is not allowed, and the state after it."""
        longer = (*state, self.tokens[token])
        bonus = self._running(longer)
        return (bonus if bonus == -math.inf else bonus - self._running(state)), longer

    def finish(self, state: Words) -> float:
        """What the end adds, -inf where the tokens cannot end here."""
        total = self.total(state)
        return total if total == -math.inf else total - self._running(state)

    def total(self, tokens: Sequence[str]) -> float:
        """What the whole adds."""
        text = "".join(tokens)
        score = self._hotword_score(self._fence(text))
        words = self._split(text) if self.boundary else []
        for i, word in enumerate(words):
            score += self.word_score + self._word_bonus(words[:i], word)
        if self.lm is not None:
            spoken = words if self.by_word else list(tokens)
            if not self.by_word:
                score += self._token_scores(tokens)
            if "</s>" in self.lm.words:
                score += self.lm_weight * self.lm.score(("<s>", *spoken), "</s>")
        return score

    def _word_bonus(self, context: Sequence[str], word: str) -> float:
        """Of a word that has ended, without the word score."""
        unknown = self.lexicon is not None and word not in self.lexicon
        bonus = self.unknown_score if unknown else 0.0
        if self.lm is not None and self.by_word:
            context = [w if self.lexicon is None or w in self.lexicon else "<unk>" for w in context]
            spoken = "<unk>" if unknown else word
            bonus += self.lm_weight * self.lm.score(("<s>", *context), spoken)
        return bonus

    def _token_scores(self, tokens: Sequence[str]) -> float:
        assert self.lm is not None
        return self.lm_weight * sum(
            self.lm.score(("<s>", *tokens[:i]), token) for i, token in enumerate(tokens)
        )

    def _running(self, tokens: Sequence[str]) -> float:
        """What the tokens have got while more may follow."""
        text = "".join(tokens)
        score = 0.0
        if self.boundary:
            read = self.boundary.join(["", *self._split(text)])
            words = self._split(text)
            done = words if text.endswith(self.boundary) else words[:-1]
            if text.endswith(self.boundary) or not text:
                read += self.boundary
            for i, word in enumerate(done):
                score += self.word_score + self._word_bonus(done[:i], word)
            opened = "" if len(done) == len(words) else words[-1]
            if opened and self._is_lost(opened):
                score += self._word_bonus(done, opened)
        else:
            read = text
        if self.lm is not None and not self.by_word:
            score += self._token_scores(tokens)
        return score + self._hotword_score(read) + self._lent(read)

    def _is_lost(self, begun: str) -> bool:
        """No word of the lexicon begins so."""
        return self.lexicon is not None and not any(w.startswith(begun) for w in self.lexicon)

    def _hotword_score(self, text: str) -> float:
        """Of every occurrence, also of those that overlap."""
        ends = range(1, len(text) + 1)
        return sum(
            bonus
            for phrase, bonus in self.hotwords.items()
            for end in ends
            if text[:end].endswith(phrase)
        )

    def _lent(self, text: str) -> float:
        """The largest share of a phrase that the text ends in the beginning of."""
        shares = [0.0]
        for phrase, bonus in self.hotwords.items():
            letters = len(phrase.replace(self.boundary, "")) if self.boundary else len(phrase)
            for length in range(1, len(phrase)):
                if text.endswith(phrase[:length]):
                    begun = phrase[:length]
                    done = len(begun.replace(self.boundary, "")) if self.boundary else length
                    shares.append(bonus * done / letters)
        return max(shares)
