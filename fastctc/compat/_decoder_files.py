"""The files of torchaudio's decoder: tokens, and lexicons spelled in them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence

from fastctc._arguments import path_of
from fastctc._spelling import PIECE_MARK, check_tokens

Path = str | os.PathLike[str]
Spellings = dict[str, list[list[str]]]

_UNKNOWN = "<unk>"  # no word, whatever a lexicon says of it


def fields_of_lines(path: str) -> Iterable[list[str]]:
    """The fields of each line that has any."""
    with open(path, encoding="utf-8") as file:
        try:
            yield from filter(None, map(str.split, file))
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None


def read_tokens(tokens: Path | Sequence[str], argument: str = "tokens") -> dict[str, int]:
    """The index of each name, in order; the names on one line of a file have one index.

    Raises:
        TypeError: the names are no texts, or in no order.
        ValueError: a name is there twice, or there is none.
    """
    if isinstance(tokens, (str, os.PathLike)):
        lines = fields_of_lines(path_of(argument, tokens))
    else:
        lines = [[token] for token in check_tokens(tokens, argument)]
    indices: dict[str, int] = {}
    for index, names in enumerate(lines):
        for name in names:
            if name in indices:
                raise ValueError(f"{argument}: {name!r} is listed twice")
            indices[name] = index
    return indices


def read_lexicon(path: Path, indices: Mapping[str, int], names: Sequence[str]) -> Spellings:
    """Each word's spellings, in the first names of their tokens."""
    found: Spellings = {}
    path = path_of("lexicon", path)
    for word, *spelling in fields_of_lines(path):
        if word == _UNKNOWN:
            continue
        if not spelling:
            raise ValueError(f"{path}: {word!r} has no spelling")
        if unknown := [token for token in spelling if token not in indices]:
            raise ValueError(f"{path}: {word!r} is spelled with {unknown[0]!r}, which is no token")
        found.setdefault(word, []).append([names[indices[token]] for token in spelling])
    if not found:
        raise ValueError(f"{path}: no word in the lexicon")
    return found


def in_indices(spellings: Spellings, indices: Mapping[str, int]) -> dict[str, list[list[int]]]:
    """The spellings in the indices of their tokens."""
    return {
        word: [[indices[token] for token in spelling] for spelling in ways]
        for word, ways in spellings.items()
    }


def word_boundary(names: Sequence[str], silence: str, spellings: Spellings | None) -> str:
    """What stands between words: silence, or the mark that word pieces begin with."""
    if spellings is None:
        return silence
    if any(silence in spelling for word in spellings.values() for spelling in word):
        return silence
    if any(name.startswith(PIECE_MARK) for name in names):
        return PIECE_MARK
    warnings.warn(
        f"no word of the lexicon is spelled with the silence {silence!r}; fastctc takes it to "
        "stand between words all the same, and finds no words where the network leaves it out",
        stacklevel=3,
    )
    return silence
