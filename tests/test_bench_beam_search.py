"""What the benchmark of the beam search measures."""

from __future__ import annotations

import pytest

from benchmarks import bench_beam_search as bench
from benchmarks import decoder_texts as texts

pytestmark = pytest.mark.usefixtures("needs_library")


def test_emissions_spell_the_text_they_are_made_from() -> None:
    spoken = texts.spoken(60)
    emissions = bench.peaky(120, len(texts.TOKENS), text=spoken)
    for token, frame in zip(spoken, emissions[3:117:6], strict=False):
        assert token in frame.topk(2).indices  # beside it a rival, or the blank


@pytest.mark.parametrize("rare", [False, True])
def test_phrases_are_distinct_and_can_be_spelled(rare: bool) -> None:
    phrases = texts.phrases(200, rare)
    assert len(set(phrases)) == len(phrases) == 200
    assert set("".join(phrases)) <= {" ", *texts.LETTERS}


def test_rare_phrases_are_little_of_a_text() -> None:
    shares = []
    for rare in (False, True):
        singles = {phrase for phrase in texts.phrases(5000, rare) if " " not in phrase}
        said = texts.words()[60_000:]
        shares.append(sum(word in singles for word in said) / len(said))
    assert shares[1] < 0.1 < 0.5 < shares[0]
