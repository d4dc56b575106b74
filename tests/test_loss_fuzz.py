"""Random and hostile input: nothing crashes, and nothing is read or written out of bounds.

These tests are also run under AddressSanitizer and UndefinedBehaviorSanitizer. Every tensor is as
large as its contents, so that a read past its end is seen there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cuda_backends import ON_CUDA
from loss_cases import Case, assert_close, make_case, oracle, ours, padding_mask

import fastctc
from fastctc import _checks, _cpu

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ROUNDS = 60
EXTREMES = (0.0, -0.0, math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-40, -1e30, 6e4, -6e4, 88.0)
HUGE = (-1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, -(2**63))


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, where small ones are as likely as large ones."""
    return int(np.floor(np.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def random_case(rng: np.random.Generator, dtype: torch.dtype) -> Case:
    """Any shape; about every third batch has rows that do not fit into their frames."""
    classes = log_uniform(rng, 1, 200)
    return make_case(
        int(rng.integers(2**31)),
        log_uniform(rng, 1, 80),
        log_uniform(rng, 1, 9),
        classes,
        log_uniform(rng, 1, 40) - 1,
        blank=int(rng.integers(classes)),
        dtype=dtype,
        scale=float(rng.choice([0.0, 1.0, 30.0])),
        layout=str(rng.choice(["padded", "concatenated"])),
        repeats=bool(rng.random() < 0.3),
        fitting=bool(rng.random() < 0.7),
        garbage=int(rng.choice(HUGE)),
    )


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "reduction": str(rng.choice(["none", "mean", "sum"])),
        "from_logits": bool(rng.random() < 0.5),
        "zero_infinity": bool(rng.random() < 0.5),
        "grad": str(rng.choice(["torch", "true"])),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_batches(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(200)
    for _ in range(ROUNDS):
        case, options = random_case(rng, dtype), random_options(rng)
        if not options["from_logits"]:
            case = case.with_scores(case.scores.float().log_softmax(-1).to(dtype))
        assert_close(case, ours(case, **options), oracle(case, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(201)
    for _ in range(ROUNDS):
        case, options = random_case(rng, dtype), random_options(rng)
        clean = ours(case, **options | {"reduction": "none"})
        share = float(rng.choice([0.001, 0.05, 1.0]))
        hit = torch.from_numpy(rng.random(case.scores.shape) < share)
        row = int(rng.integers(case.scores.shape[1]))
        hit[:, torch.arange(hit.shape[1]) != row] = False
        values = rng.choice(EXTREMES, case.scores.shape)
        case.scores[hit] = torch.from_numpy(values)[hit].to(dtype)
        loss, grad = ours(case, **options | {"reduction": "none"})
        padded = grad[padding_mask(case)]
        assert torch.equal(padded, torch.zeros_like(padded))
        others = torch.arange(hit.shape[1]) != row
        torch.testing.assert_close(
            (loss[others], grad[:, others]),
            (clean[0][others], clean[1][:, others]),
            rtol=0,
            atol=0,
            equal_nan=True,
        )
        expected, _ = oracle(case, reduction="none", from_logits=options["from_logits"])
        if math.isfinite(expected[row]) and float(case.scores[:, row].abs().max()) < 1e5:
            torch.testing.assert_close(loss[row].double(), expected[row], rtol=1e-5, atol=1e-5)
        ours(case, **options)


def spoil(rng: np.random.Generator, case: Case) -> None:
    """Put a value that is out of range where a length or a label was."""
    value = int(rng.choice(HUGE))
    row = int(rng.integers(case.scores.shape[1]))
    what = rng.integers(4)
    if what == 0:
        case.input_lengths[row] = value
    elif what == 1:
        case.target_lengths[row] = value
    elif what == 2 and case.targets.numel():
        flat = case.targets.view(-1)
        flat[int(rng.integers(flat.numel()))] = value
    else:
        case.target_lengths += 2**62 // max(1, len(case.target_lengths) // 2)


def within_range(case: Case) -> bool:
    """Whether the lengths and the labels that they cover are in range."""
    frames, _, classes = case.scores.shape
    if not all(0 <= length <= frames for length in case.input_lengths.tolist()):
        return False
    lengths = case.target_lengths.tolist()
    width = case.targets.shape[-1]
    if not all(0 <= length <= width for length in lengths):
        return False
    if case.targets.dim() == 1:
        return sum(lengths) == width and all(0 <= c < classes for c in case.targets.tolist())
    rows = zip(case.targets.tolist(), lengths, strict=True)
    return all(0 <= label < classes for row, length in rows for label in row[:length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_and_labels_out_of_range(cpu_target: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(202)
    refused = 0
    for _ in range(4 * ROUNDS):
        case, options = random_case(rng, dtype), random_options(rng)
        spoil(rng, case)
        if within_range(case):
            ours(case, **options)
            continue
        with pytest.raises((RuntimeError, IndexError)):
            ours(case, **options)
        refused += 1
    assert refused > ROUNDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shapes_that_do_not_fit(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(203)
    for _ in range(ROUNDS):
        case = random_case(rng, dtype)
        arguments = list(case.arguments()[:4])
        index = int(rng.integers(4))
        value = arguments[index]
        arguments[index] = [
            value[..., :0],
            value[None],
            torch.cat([value, value]),
            value.to(torch.complex64),
        ][int(rng.integers(4))]
        blank = int(rng.choice([-1, 0, case.scores.shape[2], 2**62]))
        try:
            loss = fastctc.ctc_loss(*arguments, blank)
        except (RuntimeError, IndexError):
            continue
        assert loss.shape == ()


@pytest.mark.skipif(ON_CUDA, reason="calls the kernel of the CPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside_the_results(cpu_target: str, dtype: torch.dtype) -> None:
    """The gradient and the loss lie between margins, and so do rows of the gradient."""
    rng = np.random.default_rng(204)
    margin = 70
    mark = -7.0
    for _ in range(ROUNDS // 2):
        case, options = random_case(rng, dtype), random_options(rng)
        frames, batch, classes = case.scores.shape
        chosen = _checks.check_options(
            case.blank,
            options["reduction"],
            options["zero_infinity"],
            options["from_logits"],
            False,
            options["grad"],
        )
        problem = _cpu.Cpu().prepare(*case.arguments()[:4], chosen)
        gap = int(rng.integers(0, 5))
        stride_n, stride_t = classes + gap, batch * (classes + gap) + gap
        span = frames * stride_t
        memory = torch.full((margin + span + margin,), mark, dtype=dtype)
        grad = memory[margin:].as_strided((frames, batch, classes), (stride_t, stride_n, 1), margin)
        real = _checks.loss_dtype(dtype)
        losses = torch.full((margin + batch + margin,), mark, dtype=real)
        status = _cpu.ctc_loss_cpu(
            *problem.arguments,
            0,
            losses[margin:].data_ptr(),
            grad.data_ptr(),
            stride_t,
            stride_n,
            1,
        )
        assert status is None
        expected_loss, expected_grad = ours(case, **options)
        assert torch.equal(grad.nan_to_num(9.0), expected_grad.nan_to_num(9.0))
        count = batch if options["reduction"] == "none" else 1
        torch.testing.assert_close(
            losses[margin : margin + count], expected_loss.reshape(-1), rtol=0, atol=0
        )
        grad.fill_(mark)
        losses[margin : margin + count] = mark
        assert torch.all(memory == mark)
        assert torch.all(losses == mark)


@pytest.mark.skipif(ON_CUDA, reason="calls the kernel of the CPU")
def test_nothing_is_written_where_input_is_refused(cpu_target: str) -> None:
    case = make_case(205)
    case.targets[2, 0] = 99
    case.target_lengths[2] = 1
    chosen = _checks.check_options(0, "none", False, True, False, "torch")
    problem = _cpu.Cpu().prepare(*case.arguments()[:4], chosen)
    loss, grad = torch.full((4,), -7.0), torch.full_like(case.scores, -7.0)
    status = _cpu.ctc_loss_cpu(
        *problem.arguments, 0, loss.data_ptr(), grad.data_ptr(), *problem.grad_strides, 1
    )
    assert status == (6, 2, 99, 0)
    assert torch.all(loss == -7.0)
    assert torch.all(grad == -7.0)
