"""The readable beam search against enumeration of all paths, the loss, and published answers."""

from __future__ import annotations

import math
from typing import Any

import decoder_cases as cases
import numpy as np
import pytest

from fastctc.reference import ctc_loss, prefix_beam_search
from fastctc.reference._beam_search import enumerate_paths, permitted_tokens

EVERYTHING = 10_000


def text(tokens: tuple[int, ...]) -> str:
    return "".join(cases.PADDLE_TOKENS[c] for c in tokens)


def test_a_beam_that_holds_everything_scores_every_labelling_exactly() -> None:
    rng = np.random.default_rng(0)
    for frames, classes, blank in [(1, 2, 0), (4, 3, 2), (5, 3, 1), (5, 4, 0)]:
        scores = cases.random_log_probs(rng, frames, classes)
        exact = enumerate_paths(scores, blank=blank)
        found = prefix_beam_search(scores, EVERYTHING, blank=blank)
        assert {h.tokens for h in found} == set(exact)
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(exact[hypothesis.tokens], abs=1e-12)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_score_is_minus_the_loss_of_the_labels() -> None:
    pytest.importorskip("numba", reason="the reference loss needs numba")
    scores = cases.random_log_probs(np.random.default_rng(1), 6, 4)
    for hypothesis in prefix_beam_search(scores, EVERYTHING)[:20]:
        labels = np.array([hypothesis.tokens])
        loss, _ = ctc_loss(scores[:, None], labels, [6], [labels.shape[1]], reduction="sum")
        assert hypothesis.score == pytest.approx(-float(loss), abs=1e-12)


def test_narrow_beams_never_claim_more_than_the_exact_score() -> None:
    rng = np.random.default_rng(2)
    for beam in (1, 2, 3, 7):
        scores = cases.random_log_probs(rng, 6, 4, peak=1.0)
        exact = enumerate_paths(scores)
        for hypothesis in prefix_beam_search(scores, beam):
            assert hypothesis.score <= exact[hypothesis.tokens] + 1e-12


def test_published_answers() -> None:
    scores = cases.log_softmax(cases.TENSORFLOW_LOGITS)
    found = prefix_beam_search(scores, 2, blank=cases.TENSORFLOW_BLANK)
    assert [h.tokens for h in found] == [tokens for tokens, _ in cases.TENSORFLOW_BEAM_2]
    for hypothesis, (_, score) in zip(found, cases.TENSORFLOW_BEAM_2, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=1e-6)
    wide = {h.tokens: h.score for h in prefix_beam_search(scores, EVERYTHING, blank=5)}
    for tokens, score in cases.TENSORFLOW_EXACT.items():
        assert wide[tokens] == pytest.approx(score, abs=1e-6)
    for probabilities, beam, (answer, score) in [
        (cases.PADDLE_1, 500, cases.PADDLE_1_EXACT),
        (cases.PADDLE_1, 20, cases.PADDLE_1_BEAM_20),
        (cases.PADDLE_1, 40, cases.PADDLE_1_BEAM_40),
        (cases.PADDLE_2, 500, cases.PADDLE_2_EXACT),
    ]:
        best = prefix_beam_search(np.log(probabilities), beam, blank=cases.PADDLE_BLANK)[0]
        assert text(best.tokens) == answer
        assert best.score == pytest.approx(score, abs=1e-6)
    trap = prefix_beam_search(np.log(cases.TRAP), 10, blank=cases.TRAP_BLANK)
    assert {h.tokens: round(math.exp(h.score), 12) for h in trap} == cases.TRAP_EXACT


def test_ties_go_to_the_shorter_and_then_the_lexicographically_first_prefix() -> None:
    equal = np.full((2, 3), math.log(1 / 3))
    found = prefix_beam_search(equal, 2)
    assert [h.tokens for h in found] == [(1,), ()]  # (2,) and (1, 2) score as () does
    everything = [h.tokens for h in prefix_beam_search(equal, 10)]
    assert everything == [(1,), (2,), (), (1, 2), (2, 1)]


def test_what_the_pruning_options_permit() -> None:
    frame = np.log([0.1, 0.4, 0.2, 0.2, 0.1])
    assert permitted_tokens(frame, 0, None, None) == [1, 2, 3, 4]
    assert permitted_tokens(frame, 1, 2, None) == [2]
    assert permitted_tokens(frame, 0, 2, None) == [1, 2]
    assert permitted_tokens(frame, 0, None, 0.5) == [1, 2]
    assert permitted_tokens(frame, 4, None, 0.95) == [1, 2, 3, 0]


def test_skipped_frames_count_as_blank() -> None:
    scores = np.log([[0.2, 0.8], [0.9, 0.1], [0.2, 0.8]])
    best = prefix_beam_search(scores, 8, blank_skip_threshold=0.85)[0]
    assert best.tokens == (1, 1)
    assert best.score == pytest.approx(math.log(0.8 * 0.9 * 0.8))


def test_the_threshold_drops_what_is_far_below_the_best() -> None:
    scores = np.log([[0.6, 0.3, 0.1]])
    assert len(prefix_beam_search(scores, 8, beam_threshold=1.0)) == 2
    assert len(prefix_beam_search(scores, 8, beam_threshold=2.0)) == 3


class Preference:
    """Rewards token 1, forbids token 3, and rewards an even number of tokens at the end."""

    def start(self) -> int:
        return 0

    def extend(self, state: int, token: int) -> tuple[float, int] | None:
        return None if token == 3 else (0.7 if token == 1 else -0.2, 1 - state)

    def finish(self, state: int) -> float:
        return 0.1 if state == 0 else -0.1


def test_fusion_adds_to_the_exact_score_of_each_prefix() -> None:
    scores = cases.random_log_probs(np.random.default_rng(3), 5, 4)
    exact = enumerate_paths(scores)
    found = prefix_beam_search(scores, EVERYTHING, fusion=Preference())
    assert {h.tokens for h in found} == {tokens for tokens in exact if 3 not in tokens}
    for h in found:
        bonus: Any = sum(0.7 if token == 1 else -0.2 for token in h.tokens)
        bonus += 0.1 if len(h.tokens) % 2 == 0 else -0.1
        assert h.lm_score == pytest.approx(bonus, abs=1e-12)
        assert h.score == pytest.approx(exact[h.tokens] + bonus, abs=1e-12)
