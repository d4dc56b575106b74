"""Numbers, flags and paths that do not fit get a sentence with their name, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastctc
from fastctc import CTCDecoder, CTCLoss, Lexicon, NGramModel, forced_align, merge_tokens
from fastctc.compat.ctcdecode import CTCBeamDecoder
from fastctc.compat.torchaudio import CUCTCDecoder, ctc_decoder

TOKENS = ["-", "a", "|"]
SCORES = torch.randn(1, 6, 3, generator=torch.manual_seed(0)).log_softmax(-1)
HUGE = 10**400

Call = Callable[..., Any]


def native(**options: Any) -> CTCDecoder:
    return CTCDecoder(TOKENS, **{"lexicon": ["a"], **options})


def torchaudio(**options: Any) -> Any:
    return ctc_decoder(None, TOKENS, **options)


def ctcdecode(**options: Any) -> CTCBeamDecoder:
    return CTCBeamDecoder(TOKENS, **options)


def cuda(**options: Any) -> CUCTCDecoder:
    return CUCTCDecoder(TOKENS, **options)


def norm(**options: Any) -> torch.Tensor:
    return fastctc.spectrogram_norm(torch.ones(1, 4, 2), **options)


def align(**options: Any) -> Any:
    return forced_align(SCORES, torch.tensor([[1]]), **options)


def spans(**options: Any) -> Any:
    return merge_tokens(**{"tokens": torch.zeros(3), "scores": torch.zeros(3), **options})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (call, name)
        for call, names in [
            (native, "blank beam_size nbest top_k top_p lm_weight word_score hotword_weight"),
            (native, "beam_threshold blank_skip_threshold unknown_score"),
            (torchaudio, "nbest beam_size beam_size_token beam_threshold lm_weight word_score"),
            (torchaudio, "unk_score sil_score"),
            (ctcdecode, "alpha beta cutoff_top_n cutoff_prob beam_width blank_id"),
            (cuda, "blank_id beam_size nbest blank_skip_threshold cuda_stream"),
            (norm, "eps log_eps"),
            (CTCLoss, "blank max_target_length"),
            (align, "blank"),
            (spans, "blank tokens scores"),
        ]
        for name in names.split()
    ],
)
@pytest.mark.parametrize("value", [True, "1", 1 + 2j, np.bool_(True), [1]], ids=repr)
def test_what_is_no_number_is_named(call: Call, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be"):
        call(**{name: value})


@pytest.mark.parametrize("value", [HUGE, Fraction(HUGE, 3), -HUGE], ids=["int", "ratio", "below"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        *((native, n) for n in ("top_p", "blank_skip_threshold", "lm_weight", "word_score")),
        *((torchaudio, n) for n in ("lm_weight", "word_score", "sil_score")),
        *((ctcdecode, n) for n in ("alpha", "beta", "cutoff_prob")),
        *((norm, n) for n in ("eps", "log_eps")),
    ],
)
def test_a_number_too_large_for_a_float_is_out_of_range(call: Call, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        call(**{name: value})


def test_a_number_too_large_for_a_float_is_infinite() -> None:
    assert native(beam_threshold=HUGE)(SCORES) == native()(SCORES)
    assert native(unknown_score=-HUGE)(SCORES) == native()(SCORES)
    with pytest.raises(ValueError, match="unknown_score must be a number below infinity"):
        native(unknown_score=HUGE)


@pytest.mark.parametrize("value", [1, "yes", None, torch.tensor(True)], ids=repr)
def test_flags_are_true_or_false(value: Any) -> None:
    for call in (
        lambda: native(timesteps=value),
        lambda: native(confidence=value),
        lambda: native()(SCORES, from_logits=value),
        lambda: native().decode_tensors(SCORES, from_logits=value),
        lambda: native().greedy(SCORES, from_logits=value),
        lambda: native().stream(from_logits=value),
        lambda: align(from_logits=value),
    ):
        with pytest.raises(TypeError, match="must be a bool, got"):
            call()


def test_flags_of_numpy_are_flags() -> None:
    assert native(timesteps=np.bool_(True), confidence=np.bool_(False)).confidence is False
    assert native()(SCORES, from_logits=np.bool_(True)) == native()(SCORES, from_logits=True)


def test_the_number_of_an_open_file_is_no_path(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        number = file.fileno()
        for call in (
            NGramModel.from_arpa,
            Lexicon.from_file,
            lambda path: ctc_decoder(path, TOKENS),
            lambda path: CTCBeamDecoder(TOKENS, path),
        ):
            with pytest.raises(TypeError, match="must be a path, got int"):
                call(number)
        os.fstat(number)  # still open


def test_lengths_are_named_by_forced_align() -> None:
    with pytest.raises(TypeError, match=r"^input_lengths\[0\] must be an int, got float"):
        align(input_lengths=[6.0])
    with pytest.raises(ValueError, match=rf"^target_lengths\[0\] is {HUGE}: it must be"):
        align(target_lengths=[HUGE])
