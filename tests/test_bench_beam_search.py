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


def test_phrases_are_distinct_and_can_be_spelled() -> None:
    phrases = texts.phrases(200)
    assert len(set(phrases)) == len(phrases) == 200
    assert set("".join(phrases)) <= {" ", *texts.LETTERS}
