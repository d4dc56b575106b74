"""The compiled beam search against the readable one, the loss and published answers."""

from __future__ import annotations

import math
import random
from typing import Any

import decoder_cases as cases
import numpy as np
import pytest
import torch
from torch import Tensor

import fastctc
from fastctc import CTCDecoder
from fastctc.reference import prefix_beam_search
from fastctc.reference._beam_search import enumerate_paths

pytestmark = pytest.mark.usefixtures("needs_library")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Labellings = list[tuple[tuple[int, ...], float]]


def letters(classes: int) -> list[str]:
    return [chr(0x100 + c) for c in range(classes)]


def decoder(classes: int, beam: int, **options: Any) -> CTCDecoder:
    options = {"nbest": beam, "timesteps": False, "confidence": False} | options
    return CTCDecoder(letters(classes), beam_size=beam, **options)


def decode(scores: Tensor | np.ndarray, beam: int, **options: Any) -> list[Labellings]:
    """Labels and scores of everything in the beam, for (N, T, C) or (T, C)."""
    emissions = torch.as_tensor(scores)
    if emissions.dim() == 2:
        emissions = emissions[None]
    call = {name: options.pop(name) for name in ("lengths", "from_logits") if name in options}
    found = decoder(emissions.size(-1), beam, **options)(emissions, **call)
    return [[(tuple(h.tokens), h.score) for h in row] for row in found]


def assert_same(found: Labellings, expected: Labellings, tolerance: float = 2e-5) -> None:
    """The same labellings with the same scores; close scores may come in either order."""
    wanted = dict(expected)
    assert {tokens for tokens, _ in found} == set(wanted)
    for tokens, score in found:
        assert score == pytest.approx(wanted[tokens], abs=tolerance)
    ordered = [score for _, score in found]
    assert ordered == sorted(ordered, reverse=True)


def reference(scores: np.ndarray, beam: int, **options: Any) -> Labellings:
    return [(h.tokens, h.score) for h in prefix_beam_search(scores, beam, **options)]


def random_case(
    rng: random.Random, numbers: np.random.Generator
) -> tuple[np.ndarray, int, dict[str, Any]]:
    frames, classes = rng.randint(1, 24), rng.choice([2, 3, 5, 17, 29, 70, 300])
    scores = cases.random_log_probs(numbers, frames, classes, rng.choice([0.5, 2.0, 6.0]))
    options: dict[str, Any] = {"blank": rng.randrange(classes)}
    for name, value in [
        ("top_k", rng.randint(1, classes)),
        ("top_p", rng.uniform(0.05, 1)),
        ("beam_threshold", rng.uniform(0.1, 10)),
        ("blank_skip_threshold", rng.uniform(0.3, 1)),
    ]:
        if rng.random() < 0.25:
            options[name] = value
    if rng.random() < 0.15:
        scores = np.where(numbers.random(scores.shape) < 0.3, -np.inf, scores)
    return scores, rng.choice([1, 2, 3, 8, 16, 17, 40]), options


def test_the_beam_is_that_of_the_textbook(cpu_target: str) -> None:
    rng, numbers = random.Random(1), np.random.default_rng(1)
    for case in range(40):
        scores, beam, options = random_case(rng, numbers)
        scores = scores.astype([np.float32, np.float64][case % 2])
        found = decode(scores, beam, **options)[0]
        assert_same(found, reference(scores, beam, **options))


def test_a_wide_beam_is_exact(cpu_target: str) -> None:
    numbers = np.random.default_rng(2)
    for frames, classes, blank in [(5, 3, 1), (5, 4, 0), (4, 3, 2)]:
        scores = cases.random_log_probs(numbers, frames, classes)
        exact = enumerate_paths(scores, blank=blank)
        assert_same(decode(scores, 2000, blank=blank)[0], list(exact.items()), 1e-10)


def test_the_score_is_minus_the_loss() -> None:
    scores = cases.random_log_probs(np.random.default_rng(3), 8, 5)
    for tokens, score in decode(scores, 20_000)[0][:50]:
        labels = torch.tensor([tokens])
        batch = torch.from_numpy(scores)[:, None]
        loss = fastctc.ctc_loss(batch, labels, [8], [len(tokens)], reduction="sum")
        assert score == pytest.approx(-float(loss), abs=1e-10)


def test_narrow_beams_never_claim_more_than_the_exact_score() -> None:
    numbers = np.random.default_rng(4)
    for beam in (1, 2, 5, 20):
        scores = cases.random_log_probs(numbers, 40, 12, 1.0)
        emissions = torch.from_numpy(scores)
        for tokens, score in decode(scores, beam)[0]:
            loss = fastctc.ctc_loss(emissions, torch.tensor(tokens), [40], [len(tokens)])
            assert score <= -float(loss) * max(len(tokens), 1) + 1e-9


def test_published_answers(cpu_target: str) -> None:
    logits = torch.from_numpy(cases.TENSORFLOW_LOGITS)
    narrow = decode(logits, 2, blank=cases.TENSORFLOW_BLANK, from_logits=True)[0]
    assert [tokens for tokens, _ in narrow] == [tokens for tokens, _ in cases.TENSORFLOW_BEAM_2]
    assert_same(narrow, cases.TENSORFLOW_BEAM_2, 1e-6)
    wide = dict(decode(logits, 5000, blank=cases.TENSORFLOW_BLANK, from_logits=True)[0])
    for tokens, score in cases.TENSORFLOW_EXACT.items():
        assert wide[tokens] == pytest.approx(score, abs=1e-6)
    for probabilities, beam, (answer, score) in [
        (cases.PADDLE_1, 500, cases.PADDLE_1_EXACT),
        (cases.PADDLE_1, 20, cases.PADDLE_1_BEAM_20),
        (cases.PADDLE_1, 40, cases.PADDLE_1_BEAM_40),
        (cases.PADDLE_2, 500, cases.PADDLE_2_EXACT),
    ]:
        search = CTCDecoder(cases.PADDLE_TOKENS, blank=cases.PADDLE_BLANK, beam_size=beam)
        best = search(torch.from_numpy(probabilities).log()[None])[0][0]
        assert best.text == answer
        assert best.score == pytest.approx(score, abs=1e-6)
    trap = decode(np.log(cases.TRAP), 10, blank=cases.TRAP_BLANK)[0]
    assert {tokens: round(math.exp(s), 9) for tokens, s in trap} == cases.TRAP_EXACT


def test_ties_are_broken_by_length_and_then_by_the_tokens(cpu_target: str) -> None:
    for frames, classes, beam, blank in [
        (2, 3, 2, 0),
        (6, 4, 9, 2),
        (9, 29, 30, 0),
        (5, 40, 17, 3),
    ]:
        equal = np.zeros((frames, classes))
        found = decode(equal, beam, blank=blank)[0]
        expected = reference(equal, beam, blank=blank)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    two_levels = np.where(np.arange(30) % 3 == 1, 0.0, -1.0)[None].repeat(7, 0)
    found = decode(two_levels, 33)[0]
    assert_same(found, reference(two_levels, 33), 1e-9)


def assert_same_best(found: Labellings, expected: Labellings, count: int) -> None:
    """Scores of half precision are coarse: sums that are equal may round to either side, and which
    of them the end of the beam holds is open. The best ones are not."""
    wanted = dict(expected)
    for (tokens, score), (_, best) in zip(found[:count], expected, strict=False):
        assert score == pytest.approx(best, abs=2e-5)
        assert score == pytest.approx(wanted[tokens], abs=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_logits(dtype: torch.dtype, cpu_target: str) -> None:
    for classes in (5, 29):
        logits = torch.randn(2, 10, classes, generator=torch.manual_seed(classes)).mul(3).to(dtype)
        expected = cases.log_softmax(logits.double().numpy())
        found = decode(logits, 30, from_logits=True)
        for row, scores in zip(found, expected, strict=True):
            assert_same_best(row, reference(scores, 30), 5)
        as_given = decode(logits, 30)
        for row, scores in zip(as_given, logits.double().numpy(), strict=True):
            assert_same_best(row, reference(scores, 30), 5)


def test_layouts_and_lengths() -> None:
    emissions = torch.randn(4, 20, 11, generator=torch.manual_seed(0)).log_softmax(-1)
    lengths = [20, 0, 7, 13]
    expected = [decode(emissions[n, :t], 9)[0] for n, t in enumerate(lengths)]
    assert expected[1] == [((), 0.0)]
    assert decode(emissions, 9, lengths=lengths) == expected
    assert decode(emissions, 9, lengths=torch.tensor(lengths, dtype=torch.int32)) == expected
    time_major = emissions.transpose(0, 1).contiguous().transpose(0, 1)
    assert decode(time_major, 9, lengths=lengths) == expected
    classes_apart = emissions.transpose(1, 2).contiguous().transpose(1, 2)
    assert decode(classes_apart, 9, lengths=lengths) == expected
    assert decode(emissions[:0], 9) == []


def test_threads_change_nothing(threads: None) -> None:
    emissions = torch.randn(9, 30, 29, generator=torch.manual_seed(1)).mul(2).log_softmax(-1)
    torch.set_num_threads(1)
    alone = decode(emissions, 20)
    torch.set_num_threads(3)
    assert decode(emissions, 20) == alone


def test_many_classes_and_wide_beams(cpu_target: str) -> None:
    numbers = np.random.default_rng(5)
    scores = cases.random_log_probs(numbers, 6, 20_000, 3.0)
    assert_same(decode(scores, 30)[0], reference(scores, 30, top_k=40))
    scores = cases.random_log_probs(numbers, 8, 29, 1.0)
    assert_same(decode(scores, 300)[0], reference(scores, 300))


def test_top_k_of_the_beam_and_two_changes_nothing() -> None:
    scores = cases.random_log_probs(np.random.default_rng(6), 25, 60, 1.5)
    assert decode(scores, 10, top_k=12) == decode(scores, 10)
    assert decode(scores, 10, top_k=2) != decode(scores, 10)


def test_long_utterances_let_go_of_dead_prefixes(cpu_target: str) -> None:
    """The tree of prefixes is collected and grown many times over."""
    scores = cases.random_log_probs(np.random.default_rng(7), 600, 4, 0.7).astype(np.float32)
    assert_same(decode(scores, 7)[0], reference(scores, 7), 1e-4)


def test_sure_models_and_far_fetched_scores() -> None:
    spikes = np.full((40, 6), -60.0)
    spikes[np.arange(40), np.arange(40) % 6] = 0
    tokens, score = decode(spikes.astype(np.float32), 8)[0][0]
    assert tokens == tuple(c for c in np.arange(40) % 6 if c)
    assert score == pytest.approx(0, abs=1e-5)
    shifted = decode(spikes + 1e4, 8)[0][0]
    assert shifted[0] == tokens
    assert shifted[1] == pytest.approx(40 * 1e4, rel=1e-9)


def test_frames_that_say_nothing() -> None:
    scores = cases.random_log_probs(np.random.default_rng(8), 5, 4)
    with_nan = scores.copy()
    with_nan[2, 1] = np.nan
    without = scores.copy()
    without[2, 1] = -np.inf
    assert decode(with_nan, 8) == decode(without, 8)
    for dead in (-np.inf, np.nan):
        scores[3] = dead
        assert decode(scores, 8) == [[]]


def test_results_do_not_depend_on_what_was_decoded_before() -> None:
    numbers = np.random.default_rng(9)
    first = cases.random_log_probs(numbers, 50, 29, 1.0)
    second = cases.random_log_probs(numbers, 50, 29, 4.0)
    alone = decode(second, 20)[0]
    assert decode(np.stack([first, second]), 20)[1] == alone
    assert decode(second, 20)[0] == alone
