"""Scores at the edge of what numbers hold: NaN, infinities, far apart, large, nearly 0."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_backends import ON_CUDA
from loss_cases import Case, make_case, oracle, ours, torch_float64

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def log_probabilities(frames: int, dtype: torch.dtype = torch.float32) -> Case:
    """Three rows with the labels 1, 2, 3 out of 6 classes; the first has a frame of padding."""
    case = make_case(120, frames, 3, 6, 3)
    case.scores = case.scores.log_softmax(-1).to(dtype)
    case.targets[:] = torch.tensor([1, 2, 3])
    case.target_lengths[:] = 3
    case.input_lengths[:] = torch.tensor([frames - 1, frames, frames])
    return case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("zero_infinity", [True, False])
def test_bad_score_that_a_path_reads(
    cpu_target: str, dtype: torch.dtype, bad: float, zero_infinity: bool
) -> None:
    frames = 71
    options = {"reduction": "none", "zero_infinity": zero_infinity}
    clean = ours(log_probabilities(frames, dtype), **options)
    # A label and the blank, on the first frame, amid, and on the last frame of the row.
    for frame, class_ in ((0, 1), (0, 0), (1, 2), (33, 1), (33, 2), (40, 0), (69, 3), (69, 0)):
        case = log_probabilities(frames, dtype)
        case.scores[frame, 0, class_] = bad
        loss, grad = ours(case, **options)
        assert loss[0].isnan(), (frame, class_)
        assert grad[:-1, 0].isnan().all(), (frame, class_)
        assert torch.equal(grad[-1, 0], torch.zeros(6, dtype=dtype))
        torch.testing.assert_close((loss[1:], grad[:, 1:]), (clean[0][1:], clean[1][:, 1:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("frames", [6, 71])
def test_bad_score_that_no_path_reads(
    cpu_target: str, dtype: torch.dtype, bad: float, frames: int
) -> None:
    last = frames - 2
    # A class that is no label, labels that cannot have come yet, labels that it is too late for.
    for frame, class_ in ((0, 5), (last, 5), (0, 2), (0, 3), (last, 1), (last, 2), (last - 1, 1)):
        case = log_probabilities(frames, dtype)
        case.scores[frame, 0, class_] = bad
        loss, _ = ours(case, reduction="none")
        expected, _ = torch_float64(case, reduction="none")
        assert expected.isfinite().all()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("from_logits", [True, False])
def test_labels_far_below_an_unused_class(cpu_target: str, from_logits: bool) -> None:
    case = make_case(121, 6, 2, 4, 2, scale=0.3, ragged=False)
    case.scores -= 2000.0
    case.scores[..., 3] += 5000.0
    case.targets[:] = torch.tensor([1, 2])
    if not from_logits:
        case.scores = case.scores.double().log_softmax(-1).float()
    options = {"from_logits": from_logits, "reduction": "none"}
    loss, grad = ours(case, **options)
    expected_loss, expected_grad = torch_float64(case, **options)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [-3e-8, -1e-6, -1e-5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_of_a_model_that_is_sure(cpu_target: str, dtype: torch.dtype, value: float) -> None:
    scores = torch.full((5000, 1, 2), -16.0, dtype=dtype)
    scores[..., 0] = value
    empty = torch.zeros(1, 0, dtype=torch.int64)
    case = Case(scores, empty, torch.tensor([5000]), torch.tensor([0]))
    loss, _ = ours(case, reduction="sum")
    torch.testing.assert_close(loss.item(), -5000 * scores[0, 0, 0].item(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [3e5, -3e5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_log_probabilities(cpu_target: str, dtype: torch.dtype, value: float) -> None:
    scores = torch.full((20, 1, 3), value, dtype=dtype)
    case = Case(scores, torch.tensor([[1]]), torch.tensor([20]), torch.tensor([1]))
    loss, grad = ours(case, reduction="sum", grad="true")
    expected_loss, expected_grad = torch_float64(case, reduction="sum")
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    _, exact = oracle(case, reduction="sum", grad="true")
    torch.testing.assert_close(grad.double(), exact, rtol=0, atol=1e-5)
    if value < 0:  # the probabilities themselves vanish, and torch's gradient is the true one
        torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-5)


LONG_ROW = """
import torch, fastctc

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def step(frames, labels):
    scores = torch.zeros(frames, 1, 8, requires_grad=True)
    targets = torch.arange(labels)[None] % 7 + 1
    fastctc.ctc_loss(scores, targets, [frames], [labels], from_logits=True).backward()
    assert scores.grad.isfinite().all()

torch.set_num_threads(1)
step(10, 2)
before = peak()
step(20000, 1500)
print(peak() - before)
"""


def growth(megabytes: int) -> int:
    """KiB that one long row adds to the largest memory of a process."""
    done = subprocess.run(
        [sys.executable, "-c", LONG_ROW],
        env=os.environ | {"FASTCTC_MAX_WORKSPACE_MB": str(megabytes)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(ON_CUDA, reason="looks at the memory of the host")
def test_checkpoints_take_less_memory(needs_library: None) -> None:
    status = Path("/proc/self/status")
    if not status.exists() or "VmHWM" not in status.read_text():
        pytest.skip("the system does not tell the largest memory that a process had")
    assert growth(1) < growth(4096) / 3
