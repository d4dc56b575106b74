"""The alphabet: what class of the network stands for which character."""

from __future__ import annotations

from collections.abc import Iterable

#: Class of the CTC blank.
BLANK = 0
#: Characters of classes 1, 2, ...: space, a-z and the apostrophe. With the blank, 29 classes.
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
CLASSES = len(CHARACTERS) + 1

_INDEX = {c: k + 1 for k, c in enumerate(CHARACTERS)}
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})


def normalise(text: str) -> str:
    """Return ``text`` in lower case, typographic apostrophes plain, one space between words."""
    return " ".join(text.lower().translate(_APOSTROPHES).split())


def encode(text: str) -> list[int]:
    """Return the classes of ``text``; ValueError names the first character without one."""
    try:
        return [_INDEX[c] for c in text]
    except KeyError as error:
        raise ValueError(
            f"character {error.args[0]!r} is not in the alphabet (a-z, apostrophe, space)"
        ) from None


def decode(classes: Iterable[int]) -> str:
    """Return the characters of ``classes``; blanks are left out, repeats are kept."""
    return "".join(CHARACTERS[c - 1] for c in classes if c != BLANK)
