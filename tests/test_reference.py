"""The float64 reference: right by itself, and a full stand-in for the compiled library."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from loss_cases import Case, make_case, oracle, torch_float64

from fastctc import reference
from fastctc.reference import _binding

NO_LIBRARY = "import sys; sys.modules['fastctc._C'] = None\n"


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("layout", ["padded", "concatenated"])
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("from_logits", [True, False])
def test_agrees_with_torch(
    reduction: str, layout: str, zero_infinity: bool, from_logits: bool
) -> None:
    case = make_case(300, 12, 6, 7, 6, blank=4, layout=layout, fitting=False, dtype=torch.float64)
    if not from_logits:
        case = case.with_scores(case.scores.log_softmax(-1))
    options = {
        "reduction": reduction,
        "zero_infinity": zero_infinity,
        "from_logits": from_logits,
    }
    loss, grad = oracle(case, **options)
    expected_loss, expected_grad = torch_float64(case, **options)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    rows = ~expected_grad.isnan().any(0).any(-1)
    assert rows.any()
    torch.testing.assert_close(grad[:, rows], expected_grad[:, rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", [(), (1,), (1, 1), (1, 2), (2, 1, 2)])
def test_agrees_with_enumerating_all_paths(target: tuple[int, ...]) -> None:
    frames, classes, blank = 5, 3, 0
    probs = np.random.default_rng(1).dirichlet(np.ones(classes), frames)
    likelihood = 0.0
    through = np.zeros((frames, classes))
    for path in itertools.product(range(classes), repeat=frames):
        spelled = tuple(c for c, _ in itertools.groupby(path) if c != blank)
        if spelled == target:
            chance = math.prod(probs[t, c] for t, c in enumerate(path))
            likelihood += chance
            through[range(frames), path] += chance
    loss, grad = reference.ctc_loss(
        np.log(probs)[:, None],
        np.array([target], dtype=np.int64).reshape(1, -1),
        [frames],
        [len(target)],
        reduction="sum",
        true_grad=True,
    )
    np.testing.assert_allclose(loss, -np.log(likelihood), rtol=1e-12)
    np.testing.assert_allclose(grad[:, 0], -through / likelihood, rtol=1e-12, atol=1e-15)


def test_float64_alone_would_not_do() -> None:
    """Paths whose probability is far below the smallest double."""
    case = make_case(301, 3000, 1, 20, 100, dtype=torch.float64, scale=20.0)
    loss, grad = oracle(case, from_logits=True, reduction="none")
    expected = torch_float64(case, from_logits=True, reduction="none")
    assert loss > 5000
    torch.testing.assert_close((loss, grad), expected, rtol=1e-9, atol=1e-9)


def test_grad_out_stays_off_padding() -> None:
    case = make_case(302, dtype=torch.float64)
    _, plain = oracle(case, reduction="none")
    _, scaled = oracle(case, torch.tensor([2.0, math.inf, 0.0, -1.0]), reduction="none")
    assert torch.equal(scaled[:, 0], 2 * plain[:, 0])
    length = int(case.input_lengths[1])
    assert not scaled[:length, 1].isfinite().any()
    assert torch.equal(scaled[length:, 1], torch.zeros_like(scaled[length:, 1]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize(
    ("frame", "class_"),
    [(3, 2), (3, 1), (3, 0), (0, 1), (0, 0), (8, 3), (8, 0)],  # what paths of [1, 2, 3] read
)
def test_bad_score_that_a_path_reads(
    bad: float, zero_infinity: bool, frame: int, class_: int
) -> None:
    case = one_bad_score(bad, frame, class_)
    options = {"reduction": "none", "zero_infinity": zero_infinity}
    loss, grad = oracle(case, **options)
    expected_loss, expected_grad = torch_float64(case, **options)
    assert loss[0].isnan()
    torch.testing.assert_close(
        (loss, grad), (expected_loss, expected_grad), rtol=1e-12, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("frame", "class_"),
    # A class that is no label, labels that cannot have come yet, labels that it is too late for.
    [(0, 4), (5, 4), (8, 4), (0, 2), (0, 3), (8, 1), (8, 2), (7, 1)],
)
def test_bad_score_that_no_path_reads(bad: float, frame: int, class_: int) -> None:
    case = one_bad_score(bad, frame, class_)
    loss, grad = oracle(case, reduction="none")
    expected_loss, expected_grad = torch_float64(case, reduction="none")
    assert loss.isfinite().all()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    case.scores[frame, 0, class_] = -30.0
    elsewhere = torch.ones(grad.shape, dtype=torch.bool)
    elsewhere[frame, 0, class_] = False
    _, clean = oracle(case, reduction="none")
    torch.testing.assert_close(grad[elsewhere], clean[elsewhere], rtol=0, atol=1e-12)
    assert not grad[frame, 0, class_].isfinite()
    # torch lets the other ones spread over its gradient, and makes NaN of inf.
    if class_ == 4 or (frame == 0 and math.isnan(bad)):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12, equal_nan=True)


def one_bad_score(bad: float, frame: int, class_: int) -> Case:
    """Two rows of log-probabilities, one of them with a bad value among its 9 frames."""
    case = make_case(303, 10, 2, 5, 3, dtype=torch.float64)
    case.scores = case.scores.log_softmax(-1)
    case.targets[:] = torch.tensor([1, 2, 3])
    case.input_lengths[:] = torch.tensor([9, 10])
    case.target_lengths[:] = 3
    case.scores[frame, 0, class_] = bad
    return case


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input_lengths": [3, 4]}, r"input_lengths\[1\] is 4"),
        ({"input_lengths": [-1, 3]}, r"input_lengths\[0\] is -1"),
        ({"target_lengths": [1, -2]}, r"target_lengths\[1\] is -2"),
        ({"target_lengths": [1, 3]}, r"target_lengths\[1\] is 3, more than the width"),
        ({"targets": [1, 2, 3]}, "add up to 2"),
        ({"targets": [[1, 2], [4, 2]]}, "label 4 at position 0 of row 1"),
        ({"targets": [[1, 2]]}, "do not fit a batch of 2"),
        ({"input_lengths": [3]}, "2 values each"),
        ({"blank": 4}, "blank is 4"),
        ({"scores": np.zeros((3, 4))}, "3 dimensions"),
    ],
)
def test_refuses_bad_input(change: dict[str, object], sentence: str) -> None:
    good: dict[str, object] = {
        "scores": np.zeros((3, 2, 4)),
        "targets": [[1, 2], [3, 2]],
        "input_lengths": [3, 3],
        "target_lengths": [1, 1],
    }
    reference.ctc_loss(**good)
    with pytest.raises(ValueError, match=sentence):
        reference.ctc_loss(**good | change)


def run_without_library(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_LIBRARY + script],
        env={name: value for name, value in os.environ.items() if name != "FASTCTC_LIBRARY"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


SERVED = """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch, fastctc
    assert not fastctc.build_info()["compiled"]
    torch.manual_seed(0)
    targets = torch.randint(1, 9, (3, 5))
    lengths = torch.tensor([20, 11, 16]), torch.tensor([5, 3, 0])
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for reduction in ("none", "mean"):
            for batch_first in (True, False):
                scores = torch.randn(20, 3, 9).to(dtype).requires_grad_()
                given = scores.transpose(0, 1) if batch_first else scores
                loss = fastctc.ctc_loss(
                    given, targets, *lengths, reduction=reduction, from_logits=True,
                    batch_first=batch_first,
                )
                (grad,) = torch.autograd.grad(loss.sum() * 3, scores)
                exact = scores.detach().double().requires_grad_()
                expected = torch.nn.functional.ctc_loss(
                    exact.log_softmax(-1), targets, *lengths, reduction=reduction
                )
                (expected_grad,) = torch.autograd.grad(expected.sum() * 3, exact)
                torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(
                    grad, expected_grad.to(dtype), rtol=2.0**-8, atol=1e-6
                )
    for bad in ((torch.tensor([20, 21, 3]), lengths[1]), (lengths[0], torch.tensor([5, -1, 0]))):
        try:
            fastctc.ctc_loss(torch.zeros(20, 3, 9), targets, *bad)
        except RuntimeError as error:
            assert "Expected" in str(error)
        else:
            raise AssertionError
own = [str(w.message) for w in seen if "fastctc" in str(w.message)]
print(len(own), own[0])
"""


def test_serves_the_package_without_its_library() -> None:
    done = run_without_library(SERVED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 fastctc was installed without its compiled library")


def test_bfloat16_is_rounded_as_torch_does() -> None:
    # Every upper half of a float32, followed by the bits around a tie.
    upper = np.arange(0, 2**16, 7, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = torch.from_numpy((upper[:, None] + lower).view(np.float32))
    expected = values.bfloat16()
    narrowed = torch.from_numpy(_binding.narrow_bfloat16(values.double().numpy()).view(np.int16))
    torch.testing.assert_close(
        narrowed.view(torch.bfloat16), expected, rtol=0, atol=0, equal_nan=True
    )
    widened = _binding.widen_bfloat16(expected.view(torch.int16).numpy().view(np.uint16))
    torch.testing.assert_close(
        torch.from_numpy(widened), expected.double(), rtol=0, atol=0, equal_nan=True
    )


def test_names_the_extra_where_numba_is_absent() -> None:
    done = run_without_library(
        "sys.modules['numba'] = None\n"
        "import fastctc, torch\n"
        "fastctc.ctc_loss(torch.zeros(3, 1, 4), torch.ones(1), [3], [1])\n"
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: the reference implementation of fastctc needs numba: "
        "pip install fastctc[reference]"
    )


def test_import_is_light() -> None:
    script = "import fastctc, sys; print([m for m in ('numba', 'lightning') if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert output.stdout.strip() == "[]"
