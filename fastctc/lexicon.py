"""Lexicons: the words that a decoder may write, and how they are spelled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastctc._arguments import path_of

__all__ = ["Lexicon"]

Spelling = str | Sequence[str]


class Lexicon:
    """Words, and their spellings in tokens where those are not the words' letters.

    Args:
        words: words that are spelled by their letters; or a mapping from each word to its
            spelling, a text of tokens with blanks between, or to the list of its spellings. A list
            is always one of spellings, each such a text or a sequence of tokens. The boundary
            between words need not be spelled; at either end of a spelling it is ignored.

    Attributes:
        words: each word once, in the order given.
        spellings: (number of the word, its tokens) for each spelling, words in order; None where
            words are spelled by their letters.

    Raises:
        TypeError: words or spellings are no texts.
        ValueError: there is no word, a word is empty or has a blank in it, or has no spelling.
    """

    words: list[str]
    spellings: list[tuple[int, tuple[str, ...]]] | None

    def __init__(self, words: Iterable[str] | Mapping[str, str | Sequence[Spelling]]) -> None:
        if isinstance(words, (str, bytes)) or not isinstance(words, Iterable):
            got = "one text" if isinstance(words, str) else type(words).__name__
            raise TypeError(
                f"the lexicon's words must be a mapping or a collection of words, not {got}"
            )
        self.words = list(dict.fromkeys(words))
        if not self.words:
            raise ValueError("a lexicon needs at least one word")
        for word in self.words:
            if not isinstance(word, str):
                raise TypeError(f"the lexicon's words must be texts, got {type(word).__name__}")
            if not word or word.split() != [word]:
                raise ValueError(f"{word!r} is no word: it is empty or has a blank in it")
        self.spellings = None
        if isinstance(words, Mapping):
            self.spellings = [
                (number, spelling)
                for number, word in enumerate(self.words)
                for spelling in _spellings(word, words[word])
            ]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Lexicon:
        """Read a UTF-8 file with a word and its spelling on each line: ``hello h e l l o |``.

        A word on several lines has several spellings. Where no line has a spelling, words are
        spelled by their letters.

        Raises:
            ValueError: some lines have a spelling and others have none, or there is no word, or
                the text is not UTF-8.
            OSError: the file cannot be read.
        """
        name = path_of("path", path)
        spellings: dict[str, list[Spelling]] = {}
        spelled: bool | None = None
        with open(name, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
                except UnicodeDecodeError:
                    raise ValueError(f"{name}: line {number}: not UTF-8 text") from None
                if not fields:
                    continue
                if spelled is None:
                    spelled = len(fields) > 1
                if spelled != (len(fields) > 1):
                    has = "a" if not spelled else "no"
                    raise ValueError(
                        f"{name}: line {number}: {fields[0]!r} has {has} spelling, "
                        "unlike the words before it"
                    )
                spellings.setdefault(fields[0], []).append(fields[1:])
        if not spellings:
            raise ValueError(f"{name}: no word in the file")
        return cls(spellings if spelled else list(spellings))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        spelled = "by letters" if self.spellings is None else f"in {len(self.spellings)} ways"
        return f"<Lexicon of {len(self)} words, spelled {spelled}>"


def _spellings(word: str, given: str | Sequence[Spelling]) -> list[tuple[str, ...]]:
    spellings = [given] if isinstance(given, str) else _listed(word, given)
    split = [tuple(s.split() if isinstance(s, str) else _listed(word, s)) for s in spellings]
    if not all(isinstance(token, str) for spelling in split for token in spelling):
        raise TypeError(f"the lexicon spells {word!r} with what is no text")
    if not split or not all(split):
        raise ValueError(f"the lexicon has an empty spelling, or none, for {word!r}")
    return split


def _listed(word: str, given: Any) -> list[Any]:
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise TypeError(
            f"the lexicon's spelling of {word!r} must be a text or a list of spellings, got "
            f"{type(given).__name__}"
        )
    return list(given)
