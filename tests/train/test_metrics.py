"""Greedy decoding, error rates, and the all-blank plateau."""

from __future__ import annotations

import math

import pytest
import torch

from fastctc.train import text
from fastctc.train.metrics import (
    BlankStatistics,
    ErrorRates,
    StuckWatch,
    blank_statistics,
    greedy_decode,
)

pytest.importorskip("jiwer", reason="jiwer, of the train extra, is missing")


def _scores(paths: list[str]) -> torch.Tensor:
    """Return (T, N, 29) scores whose best path is ``paths``, "_" for blank."""
    out = torch.zeros(max(map(len, paths)), len(paths), text.CLASSES)
    for n, path in enumerate(paths):
        for t, c in enumerate(path):
            out[t, n, 0 if c == "_" else text.encode(c)[0]] = 5.0
    return out


def test_greedy_decoding_merges_repeats_and_stops_at_each_length() -> None:
    paths = ["_hh_e_ll_llo", "aab__b     ", "____", "abcabc"]
    assert greedy_decode(_scores(paths), torch.tensor([12, 6, 4, 4])) == [
        "hello",
        "abb",
        "",
        "abca",
    ]


def test_greedy_decoding_equals_the_definition() -> None:
    torch.manual_seed(0)
    scores = torch.randn(40, 9, text.CLASSES)
    scores[..., 0] += 1
    lengths = torch.randint(0, 41, (9,))
    for n, got in enumerate(greedy_decode(scores, lengths)):
        path = scores[: int(lengths[n]), n].argmax(-1)
        assert got == text.decode(torch.unique_consecutive(path).tolist())


def test_error_rates_are_summed_edits_over_summed_length() -> None:
    rates = ErrorRates()
    rates.add(["the cat"], ["the bat s"])
    rates.add(["a", "go on"], ["", "go on"])
    c, w = rates.characters, rates.words
    assert (c.substitutions, c.insertions, c.deletions, c.length) == (1, 2, 1, 13)
    assert (w.substitutions, w.insertions, w.deletions, w.length) == (1, 1, 1, 5)
    assert rates.cer == pytest.approx(4 / 13)
    assert rates.wer == pytest.approx(3 / 5)


def test_spaces_at_the_ends_count() -> None:
    rates = ErrorRates()
    rates.add(["go"], [" go "])
    assert rates.characters.insertions == 2
    assert rates.wer == 0


def test_without_a_target_there_is_no_rate() -> None:
    assert math.isnan(ErrorRates().cer)


def test_blank_statistics_leave_padding_out() -> None:
    scores = torch.full((4, 2, text.CLASSES), -100.0)
    scores[:, :, 5] = 0.0
    scores[0, 0, 0] = 100.0  # blank, surely
    scores[1:3, 0, 0] = 0.0  # blank as likely as class 5
    scores[3, 0, 0] = 100.0  # past the end
    scores[1:, 1, 0] = 100.0  # past the end
    got = blank_statistics(scores, torch.tensor([3, 1]), labels=2)
    assert got.fraction == pytest.approx(3 / 4)  # argmax takes the first of equals
    assert got.posterior == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert got.frames_per_label == 2


def test_the_plateau_is_told_once_in_words() -> None:
    watch = StuckWatch(patience=3)
    blank = BlankStatistics(fraction=1.0, posterior=0.99, frames_per_label=5.0)
    fine = BlankStatistics(fraction=0.6, posterior=0.6, frames_per_label=5.0)
    told = [watch.update(s) for s in (blank, blank, fine, blank, blank, blank, blank)]
    assert [m is not None for m in told] == [False] * 5 + [True, False]
    message = told[5]
    assert message is not None
    assert "all-blank plateau" in message
    assert "batch norm" in message
    assert "frames per label" not in message


def test_the_plateau_message_names_too_few_frames() -> None:
    tight = BlankStatistics(fraction=1.0, posterior=1.0, frames_per_label=1.2)
    message = StuckWatch(patience=1).update(tight)
    assert message is not None
    assert "1.2 output frames per label" in message
