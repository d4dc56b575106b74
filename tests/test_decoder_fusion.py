"""Language models, lexicons and hotwords in the beam search, against the readable search."""

from __future__ import annotations

import math
import pickle
import threading
from typing import Any

import decoder_cases as cases
import numpy as np
import pytest
import torch
from allocated import assert_nothing_is_kept

from fastctc import CTCDecoder, Lexicon, NGramModel
from fastctc._fusion import Fusion
from fastctc._native import _C
from fastctc.estimate import arpa_lines, characters
from fastctc.reference import prefix_beam_search
from fastctc.reference._beam_search import enumerate_paths

if _C is None:
    pytest.skip("fastctc was installed without its compiled library", allow_module_level=True)

TOKENS = ["-", " ", "a", "b", "c", "ab"]
WORDS = ["a", "ab", "abc", "ba", "cab", "b"]
TEXTS = [text.split() for text in ("a ab abc", "ba cab a", "ab ab ba", "b a b a", "cab")]


def model(texts: list[list[str]], order: int) -> NGramModel:
    return NGramModel._read(["".join(arpa_lines(texts, order)).encode()], -100.0)


OPTIONS: dict[str, dict[str, Any]] = {
    "words": {"lm": model(TEXTS, 3), "lm_weight": 0.7, "unknown_score": -2.0, "word_score": 0.4},
    "characters": {
        "lm": model([characters(" ".join(text)) for text in TEXTS], 3),
        "lm_unit": "token",
        "lm_weight": 0.8,
    },
    "lexicon": {"lexicon": WORDS},
    "hotwords": {"hotwords": {"cab": 3.0, "ab a": 2.0, "b": -1.0}},
    "all": {
        "lm": model(TEXTS, 2),
        "lm_weight": 0.5,
        "lexicon": Lexicon(WORDS),
        "unknown_score": -4.0,
        "hotwords": ["cab", "a b"],
        "hotword_weight": 2.5,
        "word_score": -0.3,
    },
}


class AsFusion:
    """The compiled rules, a token at a time, as the readable search calls them."""

    def __init__(self, fusion: Fusion) -> None:
        self.address = fusion.address

    def start(self) -> Any:
        return _C.fusion_start(self.address)

    def extend(self, state: Any, token: int) -> tuple[float, Any] | None:
        bonus, after = _C.fusion_extend(self.address, state, token)
        return None if bonus == -math.inf else (bonus, after)

    def finish(self, state: Any) -> float:
        bonus: float = _C.fusion_finish(self.address, state)
        return bonus


def decoder(beam: int, **options: Any) -> CTCDecoder:
    settings = {"nbest": beam, "timesteps": False, "confidence": False} | options
    return CTCDecoder(TOKENS, beam_size=beam, **settings)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_beam_is_that_of_the_textbook(name: str, cpu_target: str) -> None:
    numbers = np.random.default_rng(1)
    for frames, beam, pruning in [(4, 3, {}), (12, 8, {}), (12, 20, {"top_k": 4}), (14, 33, {})]:
        search = decoder(beam, **OPTIONS[name], **pruning)
        assert search.fusion is not None
        scores = cases.random_log_probs(numbers, frames, len(TOKENS), 1.5)
        expected = prefix_beam_search(scores, beam, fusion=AsFusion(search.fusion), **pruning)
        found = search(torch.from_numpy(scores)[None])[0]
        wanted = {h.tokens: h for h in expected}
        assert {tuple(h.tokens) for h in found} == set(wanted)
        for h in found:
            twin = wanted[tuple(h.tokens)]
            assert h.score == pytest.approx(twin.score, abs=1e-5)
            assert h.lm_score == pytest.approx(twin.lm_score, abs=1e-5)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_are_all_paths_and_what_the_whole_text_gets(name: str) -> None:
    search = decoder(4000, **OPTIONS[name])
    assert search.fusion is not None
    scores = cases.random_log_probs(np.random.default_rng(2), 4, len(TOKENS))
    exact = enumerate_paths(scores)
    found = search(torch.from_numpy(scores)[None])[0]
    allowed = {tokens for tokens in exact if search.fusion.trace(tokens).allowed}
    assert {tuple(h.tokens) for h in found} == allowed
    for h in found:
        total = search.fusion.trace(h.tokens).total
        assert h.lm_score == pytest.approx(total, abs=1e-5)
        assert h.score == pytest.approx(exact[tuple(h.tokens)] + total, abs=1e-5)


def test_float32_agrees_with_float64() -> None:
    scores = torch.from_numpy(cases.random_log_probs(np.random.default_rng(3), 200, 6, 1.0))[None]
    search = decoder(16, **OPTIONS["all"])
    wide, narrow = search(scores)[0], search(scores.float())[0]
    assert narrow[0].tokens == wide[0].tokens
    assert narrow[0].score == pytest.approx(wide[0].score, abs=1e-3)


def test_a_lexicon_keeps_to_its_words() -> None:
    scores = torch.from_numpy(cases.random_log_probs(np.random.default_rng(4), 30, 6, 1.0))[None]
    for hypothesis in decoder(12, lexicon=WORDS)(scores)[0]:
        assert set(hypothesis.words) <= set(WORDS)
    spelled = decoder(12, lexicon={"ALPHA": ["a", "a b"], "BETA": "b a"}, nbest=1)
    best = spelled(scores)[0][0]
    assert best.words
    assert set(best.words) <= {"ALPHA", "BETA"}
    assert best.text == " ".join(best.words)


def test_hotwords_turn_the_scale() -> None:
    """Nothing tells "a" from "c" in the middle but the hotword."""
    rows = torch.full((3, 6), 0.001)
    rows[0, 4] = rows[2, 3] = 0.9
    rows[1, 2], rows[1, 4] = 0.4, 0.45
    emissions = rows.log()[None]
    assert decoder(8)(emissions)[0][0].text == "cb"
    assert decoder(8, hotwords=["cab"])(emissions)[0][0].text == "cab"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_classes(dtype: torch.dtype, cpu_target: str) -> None:
    """More classes than a state has room for prices of: they take each other's places."""
    numbers = np.random.default_rng(6)
    tokens = ["-", " ", *(chr(0x4E00 + i) for i in range(198))]
    spoken = numbers.choice(tokens[1:40], (60, 12))
    search = CTCDecoder(
        tokens,
        beam_size=30,
        nbest=30,
        timesteps=False,
        confidence=False,
        lm=model([["<space>" if c == " " else c for c in row] for row in spoken.tolist()], 3),
        lm_unit="token",
        hotwords=["".join(pair) for pair in spoken[:, :2].tolist() if " " not in pair],
        hotword_weight=1.5,
    )
    for frames, peak in [(10, 1.0), (25, 2.0)]:
        scores = cases.random_log_probs(numbers, frames, len(tokens), peak)
        expected = prefix_beam_search(scores, 30, fusion=AsFusion(search.fusion))
        found = search(torch.from_numpy(scores)[None].to(dtype))[0]
        tolerance = 1e-5 if dtype is torch.float64 else 1e-4
        for h, twin in zip(found[:10], expected, strict=False):
            assert h.score == pytest.approx(twin.score, abs=tolerance)
        assert tuple(found[0].tokens) == expected[0].tokens


def test_long_utterances_meet_more_states_than_are_kept() -> None:
    """Prices of states that have left the beam make room for others'."""
    numbers = np.random.default_rng(7)
    tokens = ["-", " ", *"abcdefgh"]
    phrases = ["".join(word) for word in numbers.choice(tokens[2:], (3000, 5))]
    search = CTCDecoder(
        tokens, beam_size=40, timesteps=False, confidence=False, hotwords=phrases, word_score=0.5
    )
    scores = cases.random_log_probs(numbers, 250, len(tokens), 1.0)
    expected = prefix_beam_search(scores, 40, fusion=AsFusion(search.fusion))[0]
    best = search(torch.from_numpy(scores)[None])[0][0]
    assert tuple(best.tokens) == expected.tokens
    assert best.score == pytest.approx(expected.score, abs=1e-4)


LETTERS = [
    " ",
    "a",
    "-",
    "b",
    "c",
    "d",
    "'",
]  # one symbol each, so that a state's bonuses are a sum
LETTER_MODEL = {
    "lm": model([characters(" ".join(text)) for text in TEXTS], 3),
    "lm_unit": "token",
    "lm_weight": 0.8,
}
LETTER_OPTIONS: dict[str, dict[str, Any]] = {
    "model": LETTER_MODEL,
    "model, word score": LETTER_MODEL | {"word_score": 0.7},
    "hotwords": {"hotwords": {"cab": 3.0, "ab a": 2.0, "b": -1.0}},
    "hotwords, word score": {"hotwords": {"cab": 3.0, "ab a": 2.0}, "word_score": -0.6},
    "word score": {"word_score": 1.1},
    "all": LETTER_MODEL | {"hotwords": {"cab": 3.0, "ab a": 2.0, "d": 0.5}, "word_score": 0.9},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LETTER_OPTIONS)
def test_rows_of_bonuses(name: str, dtype: torch.dtype, cpu_target: str) -> None:
    numbers = np.random.default_rng(11)
    for frames, beam, pruning in [(9, 5, {}), (14, 12, {"top_k": 4}), (20, 35, {"top_p": 0.95})]:
        search = CTCDecoder(
            LETTERS, blank=2, beam_size=beam, nbest=beam, timesteps=False, confidence=False,
            **LETTER_OPTIONS[name], **pruning,
        )  # fmt: skip
        assert search.fusion is not None
        assert search.fusion.bonus_rows
        scores = torch.from_numpy(cases.random_log_probs(numbers, frames, len(LETTERS), 1.5))
        scores = scores.to(dtype)
        fusion = AsFusion(search.fusion)
        expected = prefix_beam_search(
            scores.double().numpy(), beam, blank=2, fusion=fusion, **pruning
        )
        found = search(scores[None])[0]
        assert {tuple(h.tokens) for h in found} == {h.tokens for h in expected}
        wanted = {h.tokens: h for h in expected}
        tolerance = 1e-5 if dtype is torch.float64 else 1e-4
        for h in found:
            assert h.score == pytest.approx(wanted[tuple(h.tokens)].score, abs=tolerance)
            assert h.lm_score == pytest.approx(wanted[tuple(h.tokens)].lm_score, abs=1e-5)


def many_phrases(letters: int) -> list[str]:
    """Of as many nodes as there are letters in all, nearly."""
    numbers = np.random.default_rng(12)
    return ["".join(word) for word in numbers.choice(list("abcdefgh"), (letters // 12, 12))]


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        pytest.param(["-", *map(chr, range(97, 161))], {"word_boundary": ""}, id="65 classes"),
        pytest.param(["-", *"abcdefgh"], {"hotwords": many_phrases(900_000)}, id="over 32 MiB"),
        pytest.param(["-", *"abcd", "ab"], {}, id="two symbols"),
    ],
)
def test_what_has_no_rows_is_decoded_alike(tokens: list[str], options: dict[str, Any]) -> None:
    phrases = {"ab": 2.0, "cab": 1.0, "b": -1.0}
    search = CTCDecoder(
        tokens, beam_size=9, nbest=9, timesteps=False, confidence=False,
        **{"hotwords": phrases, "hotword_weight": 1.5} | options,
    )  # fmt: skip
    assert search.fusion is not None
    assert not search.fusion.bonus_rows
    scores = cases.random_log_probs(np.random.default_rng(13), 16, len(tokens), 1.5)
    expected = prefix_beam_search(scores, 9, fusion=AsFusion(search.fusion))
    found = search(torch.from_numpy(scores)[None])[0]
    assert [tuple(h.tokens) for h in found] == [h.tokens for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.mark.parametrize("pruning", [{}, {"top_k": 9}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("classes", [15, 16, 17, 31, 33, 63, 64, 65])
def test_classes_that_fill_no_vector(
    classes: int, pruning: dict[str, Any], cpu_target: str
) -> None:
    """Up to 64 classes a state's row has them all."""
    numbers = np.random.default_rng(classes)
    tokens = ["-", *(chr(ord("A") + c) for c in range(1, classes))]
    phrases = {"".join(numbers.choice(tokens[1:], n)): 1.5 for n in (1, 1, 2, 2, 3, 3)}
    search = CTCDecoder(
        tokens, beam_size=7, nbest=7, hotwords=phrases, word_boundary="", timesteps=False,
        confidence=False, **pruning,
    )  # fmt: skip
    scores = cases.random_log_probs(numbers, 12, classes)
    expected = prefix_beam_search(scores, 7, fusion=AsFusion(search.fusion), **pruning)
    found = search(torch.from_numpy(scores)[None])[0]
    assert [tuple(h.tokens) for h in found] == [h.tokens for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "limit", "most"), [(torch.float32, 80, "80"), (torch.float64, 700, "700")]
)
def test_a_bonus_that_the_sums_cannot_hold_is_refused(
    dtype: torch.dtype, limit: float, most: str
) -> None:
    emissions = torch.from_numpy(cases.random_log_probs(np.random.default_rng(8), 9, 6))[None]
    emissions = emissions.to(dtype)
    best = decoder(8, hotwords=["c"], hotword_weight=limit - 1.0)(emissions)[0][0]
    assert "c" in best.words
    excessive = decoder(8, hotwords=["c"], hotword_weight=limit + 20.0)
    with pytest.raises(ValueError, match=f"add {limit + 20} nats .* must be at most {most}"):
        excessive(emissions)
    stream = excessive.stream()
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="nats to a score by one token"):
            stream.feed(emissions[0])
    assert decoder(8, hotwords=["c"], hotword_weight=-1000.0)(emissions)[0]


@pytest.mark.parametrize("beam", [16, 40])
def test_large_bonuses_follow_each_other(beam: int) -> None:
    """Of "b" and "bc", which have long been unlikely, one takes 79 nats and the other 79 more."""
    frames = [[0, -80, -200], [0, -200, -80], [-20, 0, -200], [-20, -200, 0], [-1, -2, -3]]
    log_probs = torch.tensor([frames], dtype=torch.float64)
    search = CTCDecoder(
        "_bc",
        beam_size=beam,
        nbest=beam,
        hotwords=["b", "c"],
        hotword_weight=79.0,
        word_boundary="",
    )
    for length in range(1, 6):
        exact = {tuple(h.tokens): h.score for h in search(log_probs[:, :length])[0]}
        found = {tuple(h.tokens): h.score for h in search(log_probs[:, :length].float())[0]}
        assert found == pytest.approx({tokens: exact[tokens] for tokens in found}, abs=1e-4)
        # float32 loses what is 87 nats below the best of a frame
        assert {
            tokens for tokens, score in exact.items() if score > max(exact.values()) - 8
        } <= set(found)


def test_a_large_bonus_leaves_the_next_frame_its_range() -> None:
    log_probs = torch.tensor([[[-1.0, -9, 0], [-30, 0, -40]]])
    search = CTCDecoder(
        "_bc", beam_size=9, nbest=2, hotwords=["c"], hotword_weight=75.0, word_boundary=""
    )
    found = [(h.tokens, pytest.approx(h.score, abs=1e-4)) for h in search(log_probs)[0]]
    assert found == [([2, 1], 75), ([2], 45)]


def test_streams_and_pickles_keep_the_models() -> None:
    emissions = torch.from_numpy(cases.random_log_probs(np.random.default_rng(5), 40, 6))[None]
    search = CTCDecoder(TOKENS, beam_size=9, nbest=3, **OPTIONS["all"])
    whole = search(emissions)[0]
    assert whole != CTCDecoder(TOKENS, beam_size=9, nbest=3)(emissions)[0]
    assert pickle.loads(pickle.dumps(search))(emissions)[0] == whole
    stream = search.stream()
    for start in range(0, 40, 7):
        stream.feed(emissions[0, start : start + 7])
    assert stream.hypotheses() == whole


def test_memory_does_not_grow_with_models_and_streams() -> None:
    search = CTCDecoder(TOKENS, beam_size=8, nbest=2, **OPTIONS["all"])
    emissions = torch.from_numpy(cases.random_log_probs(np.random.default_rng(6), 12, 6))[None]

    def call() -> None:
        search(emissions)
        stream = search.stream()
        stream.feed(emissions[0])
        stream.hypotheses()

    assert_nothing_is_kept(call)


def test_one_decoder_with_models_serves_many_threads() -> None:
    search = CTCDecoder(TOKENS, beam_size=9, nbest=3, **OPTIONS["all"])
    inputs = [
        torch.from_numpy(cases.random_log_probs(np.random.default_rng(k), 20, 6))[None]
        for k in range(4)
    ]
    expected = [search(emissions) for emissions in inputs]
    right: list[bool] = []

    def work(k: int) -> None:
        for _ in range(20):
            stream = search.stream()
            stream.feed(inputs[k][0])
            right.append([stream.hypotheses()] == search(inputs[k]) == expected[k])

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True] * 80


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="cannot be spelled"):
        decoder(4, hotwords=["xyz"])
    with pytest.raises(ValueError, match="word_boundary is 'x', which is in no token"):
        decoder(4, word_boundary="x")
    with pytest.raises(TypeError, match="hotwords must be texts, got NoneType"):
        decoder(4, hotwords=[None])
    with pytest.raises(TypeError, match="word_score must be a number, got str"):
        decoder(4, word_score="x")
    for lm in (3, b"x"):
        with pytest.raises(TypeError, match="lm must be an NGramModel, the path of an ARPA file"):
            decoder(4, lm=lm)
    with pytest.raises(TypeError, match=r"the lexicon's words must be .* not int"):
        decoder(4, lexicon=5)
    with pytest.raises(TypeError, match="word_boundary must be a str or None, got int"):
        decoder(4, word_boundary=1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lm_weight": math.nan}, ValueError, "lm_weight is nan: it must be from"),
        ({"lm_weight": -1}, ValueError, "lm_weight must be at least 0, not -1"),
        ({"lm_weight": True}, TypeError, "lm_weight must be a number, got bool"),
        ({"lm_unit": "letter"}, ValueError, "lm_unit must be 'token' or 'word', not 'letter'"),
        ({"unknown_score": math.nan}, ValueError, "unknown_score must be a number below infinity"),
        ({"unknown_score": "x"}, TypeError, "unknown_score must be a number, got str"),
        ({"hotword_weight": math.inf}, ValueError, "hotword_weight is inf: it must be from"),
    ],
)
def test_weights_are_checked_without_what_they_are_for(
    options: dict[str, Any], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        decoder(4, **options)


def test_a_model_of_weight_zero_may_have_an_unknown_score() -> None:
    emissions = torch.from_numpy(cases.random_log_probs(np.random.default_rng(3), 9, 6))[None]
    words = {**OPTIONS["words"], "lm_weight": 0, "word_score": 0.0}
    assert decoder(4, **words)(emissions) == decoder(4)(emissions)


def test_the_blank_is_no_boundary() -> None:
    search = CTCDecoder(["|", "a", "b", " "], lexicon=["ab"], nbest=3)
    emissions = torch.from_numpy(cases.random_log_probs(np.random.default_rng(4), 9, 4))[None]
    assert search.word_boundary == " "
    assert {word for found in search(emissions)[0] for word in found.words} == {"ab"}
    with pytest.raises(ValueError, match=r"word_boundary is '\|', which is in no token beside"):
        CTCDecoder(["|", "a", "b", " "], word_boundary="|")
