"""The alphabet."""

from __future__ import annotations

import pytest

from fastctc.train import text


def test_the_alphabet_has_29_classes_with_blank_first() -> None:
    assert (text.CLASSES, text.BLANK) == (29, 0)
    assert text.encode(" az'") == [1, 2, 27, 28]
    assert text.decode([0, 2, 2, 0, 1, 28]) == "aa '"
    assert text.decode(text.encode("it's fine")) == "it's fine"


def test_texts_are_normalised_and_strangers_named() -> None:
    assert text.normalise("  It\u2019s   FINE\t") == "it's fine"
    with pytest.raises(ValueError, match="'7'"):
        text.encode("route 7")
