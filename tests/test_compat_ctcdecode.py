"""Decoding under ctcdecode's names, against enumeration and what ctcdecode's own tests expect."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import decoder_cases as cases
import numpy as np
import pytest
import torch
from torch import Tensor

from fastctc import NGramModel
from fastctc.compat.ctcdecode import CTCBeamDecoder, DecoderState, OnlineCTCBeamDecoder
from fastctc.estimate import arpa_lines
from fastctc.reference._beam_search import enumerate_paths

pytestmark = pytest.mark.usefixtures("needs_library")

LABELS = ["_", " ", "a", "b"]
ARGUMENTS = {
    "labels": inspect.Parameter.empty,
    "model_path": None,
    "alpha": 0,
    "beta": 0,
    "cutoff_top_n": 40,
    "cutoff_prob": 1.0,
    "beam_width": 100,
    "num_processes": 4,
    "blank_id": 0,
    "log_probs_input": False,
    "is_token_based": False,
}


@pytest.fixture
def words_arpa(tmp_path: Path) -> str:
    path = tmp_path / "words.arpa"
    path.write_text("".join(arpa_lines([t.split() for t in ("a ab", "ab b", "bb a a")], 2)))
    return str(path)


@pytest.fixture
def letters_arpa(tmp_path: Path) -> str:
    path = tmp_path / "letters.arpa"
    path.write_text("".join(arpa_lines([list("abba"), list("aab"), list("b")], 2)))
    return str(path)


def random_log_probs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(2).log_softmax(-1)


def rows(results: tuple[Tensor, ...], n: int = 0) -> list[tuple[tuple[int, ...], float]]:
    """The beams that an utterance has and their scores."""
    labels, scores, _, lengths = results
    return [
        (tuple(labels[n, k, : int(lengths[n, k])].tolist()), float(scores[n, k]))
        for k in range(labels.size(1))
        if math.isfinite(scores[n, k])
    ]


@pytest.mark.parametrize("decoder", [CTCBeamDecoder, OnlineCTCBeamDecoder])
def test_arguments_are_ctcdecodes(decoder: type) -> None:
    parameters = inspect.signature(decoder).parameters
    assert {name: p.default for name, p in parameters.items()} == ARGUMENTS


def test_what_ctcdecodes_own_tests_expect() -> None:
    probs = torch.tensor(np.stack([cases.PADDLE_1, cases.PADDLE_2]), dtype=torch.float32)
    for log_probs_input in (False, True):
        decoder = CTCBeamDecoder(
            cases.PADDLE_TOKENS, beam_width=20, blank_id=6, log_probs_input=log_probs_input
        )
        results = decoder.decode(probs.log() if log_probs_input else probs)
        texts = ["".join(cases.PADDLE_TOKENS[c] for c in rows(results, n)[0][0]) for n in (0, 1)]
        assert texts == ["acdc", "b'a"]
        assert float(results[1][0, 0]) == pytest.approx(-cases.PADDLE_1_BEAM_20[1], abs=1e-4)


def test_the_beams_are_those_of_an_enumeration() -> None:
    log_probs = random_log_probs(2, 5, 4)
    results = CTCBeamDecoder(LABELS, beam_width=300).decode(log_probs.exp(), torch.tensor([5, 3]))
    labels, scores, timesteps, lengths = results
    assert labels.shape == timesteps.shape == (2, 300, 5)
    assert scores.shape == lengths.shape == (2, 300)
    assert [t.dtype for t in results] == [torch.int32, torch.float32, torch.int32, torch.int32]
    for n, frames in enumerate((5, 3)):
        exact = enumerate_paths(log_probs[n, :frames].double().numpy())
        found = dict(rows(results, n))
        assert found.keys() == exact.keys()
        assert all(found[k] == pytest.approx(-exact[k], abs=1e-4) for k in exact)
        assert scores[n].tolist() == sorted(scores[n].tolist())
    past = torch.arange(5) >= lengths[..., None]
    assert not labels[past].any()
    assert not timesteps[past].any()
    assert torch.isposinf(scores[1, len(found) :]).all()


def test_timesteps_are_where_labels_peak() -> None:
    path = "__aaa_b__ b"
    probs = torch.full((1, len(path), 4), 0.05)
    for t, label in enumerate(path):
        probs[0, t, LABELS.index(label)] = 0.85
    probs[0, 3, 2] = 0.9  # the middle of "aaa"
    labels, _, timesteps, lengths = CTCBeamDecoder(LABELS).decode(probs)
    assert "".join(LABELS[c] for c in labels[0, 0, : int(lengths[0, 0])]) == "ab b"
    assert timesteps[0, 0, :4].tolist() == [3, 6, 9, 10]


def words_oracle(
    log_probs: Tensor, model: NGramModel, alpha: float, beta: float
) -> list[tuple[tuple[int, ...], float]]:
    """Labels and minus their natural log, in order of all that counts, by going through all."""
    scored = []
    for labels, score in enumerate_paths(log_probs.double().numpy()).items():
        words = "".join(LABELS[c] for c in labels).split()
        if all(word in model for word in words):
            total = score + alpha * model.score(words) + beta * len(words)
            scored.append((total, labels, -score))
    return [(labels, score) for _, labels, score in sorted(scored, reverse=True)]


def assert_beams(found: list[Any], expected: list[Any]) -> None:
    assert [labels for labels, _ in found] == [labels for labels, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.8, 1.2), (2.0, -0.7)])
def test_a_model_of_words_orders_beams_and_forbids_other_words(
    words_arpa: str, alpha: float, beta: float
) -> None:
    log_probs = random_log_probs(1, 5, 4, seed=1)
    decoder = CTCBeamDecoder(LABELS, words_arpa, alpha, beta, beam_width=800)
    model = NGramModel.from_arpa(words_arpa)
    expected = words_oracle(log_probs[0], model, alpha, beta)
    found = rows(decoder.decode(log_probs.exp()))
    if alpha:
        assert_beams(found, expected)
    else:  # ties between texts that differ in spaces alone
        assert dict(found).keys() == dict(expected).keys()
    assert (decoder.character_based(), decoder.max_order(), decoder.dict_size()) == (False, 2, 4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.0, 1.0), (0.9, 0.0), (0.9, -0.6)])
def test_a_model_of_labels_scores_each_label(letters_arpa: str, alpha: float, beta: float) -> None:
    log_probs = random_log_probs(1, 5, 3, seed=2)
    decoder = CTCBeamDecoder("_ab", letters_arpa, alpha, beta, beam_width=400)
    model = NGramModel.from_arpa(letters_arpa)
    scored = []
    for labels, score in enumerate_paths(log_probs[0].double().numpy()).items():
        total = score + alpha * model.score(["_ab"[c] for c in labels]) + beta * len(labels)
        scored.append((total, labels, -score))
    expected = [(labels, score) for _, labels, score in sorted(scored, reverse=True)]
    assert_beams(rows(decoder.decode(log_probs.exp())), expected)
    assert (decoder.character_based(), decoder.max_order(), decoder.dict_size()) == (True, 2, 0)


def test_labels_of_several_characters_may_be_the_words(tmp_path: Path) -> None:
    path = tmp_path / "pieces.arpa"
    path.write_text("".join(arpa_lines([["ab", "c"], ["c", "ab", "ab"]], 2)))
    labels = ["ab", "c", "_"]
    log_probs = random_log_probs(1, 4, 3, seed=3)
    decoder = CTCBeamDecoder(
        labels, str(path), 1.1, blank_id=2, beam_width=200, is_token_based=True
    )
    model = NGramModel.from_arpa(path)
    exact = enumerate_paths(log_probs[0].double().numpy(), blank=2)
    best = max(exact, key=lambda t: exact[t] + 1.1 * model.score([labels[c] for c in t]))
    assert rows(decoder.decode(log_probs.exp()))[0][0] == best
    with pytest.raises(ValueError, match="needs labels of one character; one is 'ab'"):
        decoder.reset_params(1.0, 0.5)


def test_the_space_is_found_in_a_model_of_characters(tmp_path: Path) -> None:
    path = tmp_path / "spaces.arpa"
    path.write_text("".join(arpa_lines([["a", "|", "b"], ["b", "|", "a"]], 3)))
    probs = torch.full((1, 3, 4), 0.1)
    probs[0, 0, 2] = probs[0, 2, 3] = 0.7
    probs[0, 1] = torch.tensor([0.45, 0.35, 0.1, 0.1])
    for alpha, text in ((0.0, "ab"), (1.0, "a b")):
        decoder = CTCBeamDecoder(LABELS, str(path), alpha, 0.1)
        assert "".join(LABELS[c] for c in rows(decoder.decode(probs))[0][0]) == text


def test_words_that_no_labels_spell_are_left_out(tmp_path: Path) -> None:
    """Neither the blank nor a label in angle brackets lends its letters."""
    path = tmp_path / "odd.arpa"
    path.write_text("".join(arpa_lines([["ab", "a_b", "kab", "ba"]], 2)))
    decoder = CTCBeamDecoder([*LABELS, "<unk>"], str(path), 0.5)
    assert decoder.dict_size() == 2
    probs = torch.full((1, 2, 5), 0.05)
    probs[0, 0, 2] = probs[0, 1, 3] = 0.8
    assert rows(decoder.decode(probs))[0][0] == (2, 3)


def test_parameters_can_be_reset(words_arpa: str) -> None:
    probs = random_log_probs(1, 6, 4, seed=4).exp()
    decoder = CTCBeamDecoder(LABELS, words_arpa, beam_width=50)
    decoder.reset_params(1.3, 0.4)
    expected = CTCBeamDecoder(LABELS, words_arpa, 1.3, 0.4, beam_width=50)
    assert rows(decoder.decode(probs)) == rows(expected.decode(probs))
    plain = CTCBeamDecoder(LABELS)
    plain.reset_params(1.3, 0.4)
    assert (plain.character_based(), plain.max_order(), plain.dict_size()) == (None, None, None)


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("cut", [1, 7, 11])
def test_online_decoding_gives_the_result_of_the_whole(
    with_model: bool, cut: int, words_arpa: str
) -> None:
    options: dict[str, Any] = {"beam_width": 20}
    if with_model:
        options |= {"model_path": words_arpa, "alpha": 0.5, "beta": 1.0}
    probs = random_log_probs(2, 12, 4, seed=5).exp()
    whole = CTCBeamDecoder(LABELS, **options).decode(probs)
    online = OnlineCTCBeamDecoder(LABELS, **options)
    states = [DecoderState(online), DecoderState(online)]
    for _ in range(2):  # a state that has ended begins anew
        first = online.decode(probs[:, :cut], states, [False, False])
        assert first[0].shape == (2, 0, 0)
        assert not first[3].any()
        labels, scores, timesteps, lengths = online.decode(probs[:, cut:], states, [True, False])
        assert torch.equal(lengths[0], whole[3][0])
        assert torch.equal(scores[0], whole[1][0])
        width = labels.size(2)
        assert torch.equal(labels[0], whole[0][0, :, :width])
        assert torch.equal(timesteps[0], whole[2][0, :, :width])
        assert not labels[1].any()
        assert torch.isposinf(scores[1]).all()
        second = online.decode(probs[1:, :0], states[1:], [True])
        assert rows(second) == rows(whole, 1)


def test_lengths_beyond_the_frames_and_no_frames_at_all() -> None:
    decoder = CTCBeamDecoder(LABELS, beam_width=10)
    probs = random_log_probs(2, 6, 4).exp()
    assert rows(decoder.decode(probs, torch.tensor([9, 0]))) == rows(decoder.decode(probs))
    assert rows(decoder.decode(probs, torch.tensor([9, 0])), 1) == [((), 0.0)]
    assert rows(decoder.decode(probs[:, :0])) == [((), 0.0)]
    assert decoder.decode(probs[:0])[0].shape == (0, 10, 6)


def test_another_default_device_changes_nothing() -> None:
    probs, decoder = random_log_probs(2, 6, 4).exp(), OnlineCTCBeamDecoder(LABELS, beam_width=10)
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            found.append(CTCBeamDecoder(LABELS, beam_width=10).decode(probs, [5, 3]))
            states = [DecoderState(decoder), DecoderState(decoder)]
            found.append(decoder.decode(probs, states, [True, False], [5, 3]))
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_probability_of_zero_is_the_least() -> None:
    probs = torch.tensor([[[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]])
    (best, score), *_ = rows(CTCBeamDecoder(LABELS).decode(probs))
    assert best == (2, 3)
    assert score == pytest.approx(0, abs=1e-5)


def test_mistakes_get_a_sentence(words_arpa: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CTCBeamDecoder(LABELS, str(tmp_path / "no.arpa"))
    with pytest.raises(ValueError, match="no word of the n-gram model can be spelled"):
        CTCBeamDecoder("_ xyz", words_arpa)
    with pytest.raises(ValueError, match="blank_id is 4"):
        CTCBeamDecoder(LABELS, blank_id=4)
    with pytest.raises(TypeError, match="probs must be a Tensor, got list"):
        CTCBeamDecoder(LABELS).decode([[[1.0]]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 classes, and the decoder 4 tokens"):
        CTCBeamDecoder(LABELS).decode(torch.ones(1, 2, 5))
    online = OnlineCTCBeamDecoder(LABELS)
    with pytest.raises(ValueError, match="states must be 2"):
        online.decode(torch.ones(2, 2, 4), [DecoderState(online)], [True, True])
    with pytest.raises(ValueError, match=r"states\[1\] is there twice"):
        online.decode(torch.ones(2, 2, 4), [DecoderState(online)] * 2, [True, True])
    with pytest.raises(TypeError, match=r"states must be a sequence, one for .* got NoneType"):
        online.decode(torch.ones(2, 2, 4), None, [True, True])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is_eos_s must be a sequence, one for .* got bool"):
        online.decode(torch.ones(1, 2, 4), [DecoderState(online)], True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decoder must be an OnlineCTCBeamDecoder, got int"):
        DecoderState(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state must be a DecoderState, got NoneType"):
        online.reset_state(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha is -1\.0: it must be at least 0"):
        CTCBeamDecoder(LABELS, words_arpa, alpha=-1)
    with pytest.raises(TypeError, match="labels must be a sequence in the order of the classes"):
        CTCBeamDecoder({"_": 0, "a": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seq_lens must be integers of 64 bits, got"):
        CTCBeamDecoder(LABELS).decode(torch.ones(1, 2, 4), ["a"])


def test_an_online_mistake_changes_no_state() -> None:
    online = OnlineCTCBeamDecoder(LABELS, beam_width=3)
    state, other = DecoderState(online), DecoderState(OnlineCTCBeamDecoder(LABELS, beam_width=5))
    probs = torch.ones(2, 2, 4)
    with pytest.raises(ValueError, match=r"states\[1\] was made for another .* beam_width of 5"):
        online.decode(probs, [state, other], [True, True])
    with pytest.raises(TypeError, match=r"states\[1\] must be a DecoderState, got NoneType"):
        online.decode(probs, [state, None], [True, True])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="seq_lens must be integers of 64 bits, got"):
        online.decode(probs, [state, DecoderState(online)], [True, True], ["a", "b"])
    assert state._stream.frames == other._stream.frames == 0
