"""Inputs that are hard on floating point, against the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from cuda_backends import ON_CUDA
from loss_cases import ROUNDING, Case, assert_close, make_case, oracle, ours

from fastctc import config

ALONE = 1e-5
COMBINED = 5e-5
INF = float("inf")


def kill_classes(case: Case, seed: int) -> Case:
    """Set some of the classes to -inf everywhere, and others on single frames.

    Labels and the blank keep the frames on which a path needs them: each row stays possible.
    """
    generator = torch.manual_seed(seed)
    frames, batch, classes = case.scores.shape
    dead = torch.rand(frames, batch, classes, generator=generator) < 0.3
    dead |= torch.arange(classes) >= classes - classes // 4
    path = torch.full((frames, batch), case.blank)
    for n, labels in enumerate(rows(case)):
        labels = labels.tolist()
        for i, label in enumerate(labels):
            path[2 * i + 1, n] = label  # a blank on every other frame, then only blanks
    dead.scatter_(2, path[..., None], False)
    return case.with_scores(case.scores.masked_fill(dead, -INF))


def rows(case: Case) -> list[torch.Tensor]:
    """The labels of each row of padded targets."""
    lengths = case.target_lengths.tolist()
    return [row[:length] for row, length in zip(case.targets, lengths, strict=True)]


def surviving_path(case: Case, log_ratio: float = -690.8) -> Case:
    """Log-probabilities whose likely paths all die in the last quarter of the row.

    The blank has probability 1 in the first three quarters and every label 1e-300. In the last
    quarter labels are impossible, so that they had to be emitted before.
    """
    frames, batch, classes = case.scores.shape
    scores = torch.full((frames, batch, classes), log_ratio, dtype=case.scores.dtype)
    scores += case.scores * 0.01
    scores[..., case.blank] = 0.0
    for n, length in enumerate(case.input_lengths.tolist()):
        last = scores[length * 3 // 4 : length, n]
        last[:] = -INF
        last[:, case.blank] = 0.0
    return case.with_scores(scores)


def wrong_transcript(case: Case) -> Case:
    """A model that is sure of something else than the targets, on every frame."""
    scores = case.scores.clone()
    sure = (case.targets.max() + 1) % case.scores.shape[2]
    scores[..., sure] += 60.0
    return case.with_scores(scores)


def fitting_in_half(seed: int, **options: object) -> Case:
    """A case whose rows have at least twice as many frames as labels."""
    case = make_case(seed, **options)  # type: ignore[arg-type]
    needed = 4 * case.target_lengths + 4
    case.input_lengths = torch.maximum(case.input_lengths, needed).clamp(max=case.scores.shape[0])
    return case


INPUTS: dict[str, Callable[[], Case]] = {
    "peaky": lambda: make_case(30, 120, 4, 29, 20, scale=100.0),
    "dead classes": lambda: kill_classes(fitting_in_half(31, frames=120, labels=20), 31),
    "dead classes, peaky": lambda: kill_classes(
        fitting_in_half(32, frames=120, labels=20, scale=100.0), 32
    ),
    "repeated labels": lambda: make_case(33, 120, 4, 29, 30, repeats=True),
    "repeated labels, tight": lambda: make_case(34, 59, 2, 5, 30, repeats=True, ragged=False),
    "wrong transcript": lambda: wrong_transcript(make_case(35, 400, 3, 29, 60)),
    "sure of blank": lambda: surviving_path(fitting_in_half(36, frames=200, labels=20), -20.0),
    "long row of labels": lambda: make_case(37, 700, 2, 29, 340, ragged=False),
    "one class": lambda: make_case(38, 50, 3, 1, 0),
    "many classes": lambda: make_case(39, 40, 2, 5001, 12),
}


@pytest.mark.parametrize("name", INPUTS)
def test_hard_logits(cpu_target: str, name: str) -> None:
    case = INPUTS[name]()
    options = {"from_logits": True, "reduction": "none"}
    expected = oracle(case, **options)
    assert expected[0].isfinite().all()
    assert_close(case, ours(case, **options), expected, ALONE)


@pytest.mark.parametrize("name", INPUTS)
def test_hard_log_probabilities(cpu_target: str, name: str) -> None:
    case = INPUTS[name]()
    case = case.with_scores(case.scores.log_softmax(-1))
    expected = oracle(case, reduction="none")
    assert expected[0].isfinite().all()
    assert_close(case, ours(case, reduction="none"), expected, ALONE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grad", ["torch", "true"])
def test_only_surviving_path_was_hopeless(cpu_target: str, dtype: torch.dtype, grad: str) -> None:
    case = surviving_path(fitting_in_half(40, frames=60, batch=3, labels=5, dtype=dtype))
    options = {"reduction": "none", "grad": grad}
    expected = oracle(case, **options)
    # The likely path is lost after it had been 1e-300 ** labels times likelier.
    assert torch.all(expected[0] >= 600.0 * case.target_lengths)
    tolerance = ALONE if dtype is torch.float32 else 1e-9
    assert_close(case, ours(case, **options), expected, tolerance)


@pytest.mark.parametrize("from_logits", [True, False])
def test_5000_frames(cpu_target: str, from_logits: bool) -> None:
    case = make_case(41, 5000, 2, 32, 200, ragged=False)
    if not from_logits:
        case = case.with_scores(case.scores.log_softmax(-1))
    options = {"from_logits": from_logits, "reduction": "none"}
    assert_close(case, ours(case, **options), oracle(case, **options), ALONE)


def test_everything_at_once(cpu_target: str) -> None:
    case = fitting_in_half(
        42, frames=5000, batch=3, classes=16, labels=150, scale=100.0, repeats=True
    )
    path_alive = kill_classes(case, 42)
    scores = path_alive.scores
    # Labels 1e-300 times less likely than the blank, and impossible at the end of each row.
    others = torch.arange(scores.shape[2]) != case.blank
    scores[..., others] -= 690.8
    for n, length in enumerate(case.input_lengths.tolist()):
        end = scores[length * 3 // 4 : length, n]
        end[:, others] = -INF
        end[:, case.blank].clamp_(min=0.0)
    options = {"from_logits": True, "reduction": "none"}
    expected = oracle(path_alive, **options)
    assert expected[0].isfinite().all()
    assert_close(path_alive, ours(path_alive, **options), expected, COMBINED)


@pytest.mark.parametrize("unused", [True, False])
def test_dead_classes_do_not_make_nan(cpu_target: str, unused: bool) -> None:
    case = make_case(43, ragged=False)
    case.targets[:] = torch.arange(1, 9)
    if unused:
        case.targets[case.targets == 5] = 6
    case.scores[..., 5] = -INF
    case.scores = case.scores.log_softmax(-1)
    loss, grad = ours(case, reduction="none")
    if unused:
        assert loss.isfinite().all()
        assert grad.isfinite().all()
        assert torch.equal(grad[..., 5], torch.zeros_like(grad[..., 5]))
    else:
        assert torch.equal(loss, torch.full_like(loss, INF))
        assert grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_half_precision_is_rounded_once(
    cpu_target: str, dtype: torch.dtype, reduction: str
) -> None:
    case = make_case(44, 80, 8, 40, 20, dtype=dtype)
    scale = torch.tensor(65536.0 if reduction == "mean" else 0.125)
    loss, grad = ours(case, scale, from_logits=True, reduction=reduction)
    assert loss.dtype is torch.float32
    assert grad.dtype is dtype
    _, expected = oracle(case, scale, from_logits=True, reduction=reduction)
    ulp = 2.0 ** (-10 if dtype is torch.float16 else -7)
    error = (grad.double() - expected).abs()
    # Half a unit of the last place, the float32 error before it, and nothing for a second rounding.
    allowed = 0.501 * ulp * expected.abs() + 3e-6 * float(scale) / (
        160 if reduction == "mean" else 1
    )
    assert torch.all(error <= allowed + 3e-8)


@pytest.fixture
def smallest_workspace() -> Iterator[None]:
    before = config.max_workspace_mb
    config.max_workspace_mb = 1
    yield
    config.max_workspace_mb = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("labels", [90, 500])
def test_lattice_kept_in_checkpoints(
    cpu_target: str, smallest_workspace: None, dtype: torch.dtype, labels: int
) -> None:
    """Past the limit on the workspace the forward probabilities are computed a second time."""
    case = make_case(45, 2500, 2, 12, labels, dtype=dtype, ragged=False)
    options = {"from_logits": True, "reduction": "none"}
    result = ours(case, **options)
    assert_close(case, result, oracle(case, **options), None if dtype is torch.float64 else ALONE)
    config.max_workspace_mb = 256
    # On CUDA other kernels serve what fits, and round otherwise.
    rtol, atol = (2 * ROUNDING.get(dtype, 0.0), ALONE) if ON_CUDA else (0, 1e-6)
    torch.testing.assert_close(ours(case, **options), result, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_larger_than_caches(cpu_target: str, dtype: torch.dtype) -> None:
    case = make_case(46, 130, 9, 10007, 12, dtype=dtype)
    options = {"from_logits": True, "reduction": "none"}
    result = ours(case, **options)
    assert_close(case, result, oracle(case, **options), ALONE)
    # Between margins, and at an address that no vector is aligned to.
    unaligned = torch.zeros(case.scores.numel() + 3, dtype=dtype)[3:].view_as(case.scores)
    unaligned.copy_(case.scores)
    torch.testing.assert_close(ours(case.with_scores(unaligned), **options), result)
