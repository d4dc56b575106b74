"""Forced alignment under torchaudio's names."""

from __future__ import annotations

import inspect

import pytest
import torch
from loss_cases import make_case

import fastctc
from fastctc.compat import torchaudio as compat

SIGNATURE = ["log_probs", "targets", "input_lengths", "target_lengths", "blank"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_arguments_and_results_are_torchaudios(dtype: torch.dtype, integers: torch.dtype) -> None:
    assert list(inspect.signature(compat.forced_align).parameters) == SIGNATURE
    assert list(inspect.signature(compat.merge_tokens).parameters) == ["tokens", "scores", "blank"]
    case = make_case(600, ragged=False, dtype=dtype)
    log_probs = case.scores.transpose(0, 1)[:1].log_softmax(-1)
    targets = case.targets[:1].to(integers)
    paths, scores = compat.forced_align(log_probs, targets, blank=0)
    assert paths.dtype is integers
    assert scores.dtype is dtype
    assert paths.shape == scores.shape == log_probs.shape[:2]
    assert torch.equal(scores, log_probs.gather(2, paths[..., None].long())[..., 0])
    assert torch.equal(paths, fastctc.forced_align(log_probs, targets)[0])
    spans = compat.merge_tokens(paths[0], scores[0])
    assert [span.token for span in spans] == targets[0].tolist()
    assert all(type(span) is compat.TokenSpan and len(span) > 0 for span in spans)


# What torchaudio 2.11 answers: log-probabilities in whole numbers, with ties, target and path.
VECTORS = [
    (
        [
            [-2, -4, -4, -5],
            [0, -4, -1, 0],
            [-5, -2, 0, 0],
            [-3, 0, -5, -1],
            [-3, -3, 0, -3],
            [-2, -1, -1, -3],
        ],
        [2, 1],
        [0, 0, 2, 1, 1, 1],
    ),
    (
        [
            [-5, 0, -4, -3],
            [-1, -2, -5, -1],
            [-4, -5, 0, -5],
            [-2, -4, -5, -2],
            [-4, -4, 0, -2],
            [-2, -5, -5, -5],
            [-1, -2, -2, -4],
            [-3, -3, -1, -2],
        ],
        [1, 3],
        [1, 0, 0, 3, 3, 0, 0, 0],
    ),
    (
        [
            [-2, -3, -1, -5],
            [-3, -2, -5, -3],
            [-3, -1, -1, -5],
            [0, 0, -4, -2],
            [-1, -3, -4, -5],
            [0, -3, -2, -5],
            [-5, 0, -3, -4],
        ],
        [2, 2, 1],
        [2, 0, 2, 0, 0, 0, 1],
    ),
    (
        [
            [-5, -2, -1, -2],
            [0, -4, -1, -5],
            [-2, -1, 0, -2],
            [-2, -2, 0, -2],
            [-1, 0, -1, -3],
            [-1, -2, -2, -3],
            [0, -4, -5, -3],
            [-2, -2, -1, -4],
            [-1, -2, -3, -5],
        ],
        [1, 2, 1, 1],
        [1, 0, 2, 2, 1, 0, 0, 1, 0],
    ),
    (
        [
            [-4, -3, 0, -5],
            [-1, -2, -4, -5],
            [0, 0, -5, -4],
            [-1, 0, -1, -1],
            [0, 0, -5, -4],
            [-3, 0, 0, -4],
            [-1, -3, -4, -4],
            [0, -5, -1, -2],
        ],
        [2, 2, 3],
        [2, 0, 0, 0, 0, 2, 0, 3],
    ),
]


@pytest.mark.parametrize(("log_probs", "target", "path"), VECTORS)
def test_torchaudios_answers(
    cpu_target: str, log_probs: list[list[int]], target: list[int], path: list[int]
) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        scores = torch.tensor([log_probs], dtype=dtype)
        assert compat.forced_align(scores, torch.tensor([target]))[0].tolist() == [path]


@pytest.mark.parametrize("blank", [0, 2])
def test_blanks_in_targets_are_refused(blank: int) -> None:
    with pytest.raises(ValueError, match="is the blank"):
        compat.forced_align(torch.zeros(1, 5, 3), torch.tensor([[1, blank]]), blank=blank)


def test_spans_equal_torchaudios() -> None:
    functional = pytest.importorskip(
        "torchaudio.functional", reason="torchaudio, whose answers are compared, is not installed"
    )
    for seed in range(60):
        case = make_case(
            seed, 50, 1, 7, 12, dtype=torch.float64, ragged=False, repeats=seed % 3 == 0
        )
        log_probs = case.scores.transpose(0, 1).log_softmax(-1).contiguous()
        arguments = (log_probs, case.targets[:, : int(case.target_lengths[0])].contiguous())
        ours, theirs = compat.forced_align(*arguments), functional.forced_align(*arguments)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        spans = [m(ours[0][0], ours[1][0]) for m in (compat.merge_tokens, functional.merge_tokens)]
        assert [(s.token, s.start, s.end) for s in spans[0]] == [
            (s.token, s.start, s.end) for s in spans[1]
        ]
        assert [s.score for s in spans[0]] == pytest.approx([s.score for s in spans[1]])
