"""Values and gradients of the loss on ordinary inputs, in every layout."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import LAYOUTS, Case, assert_close, make_case, oracle, ours, torch_float64

import fastctc

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "mean", "sum")


def log_probs_of(case: Case) -> Case:
    return case.with_scores(case.scores.float().log_softmax(-1).to(case.scores.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("from_logits", [True, False])
def test_agrees_with_the_oracle(
    cpu_target: str, dtype: torch.dtype, reduction: str, layout: str, from_logits: bool
) -> None:
    case = make_case(1, dtype=dtype, layout=layout)
    if not from_logits:
        case = log_probs_of(case)
    options = {"reduction": reduction, "from_logits": from_logits}
    assert_close(case, ours(case, **options), oracle(case, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("from_logits", [True, False])
def test_agrees_with_torch(
    reduction: str, layout: str, zero_infinity: bool, from_logits: bool
) -> None:
    case = make_case(2, blank=3, layout=layout, fitting=False, frames=9, batch=7)
    if not from_logits:
        case = log_probs_of(case)
    options = {
        "reduction": reduction,
        "zero_infinity": zero_infinity,
        "from_logits": from_logits,
    }
    loss, grad = ours(case, **options)
    expected_loss, expected_grad = torch_float64(case, **options)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    if from_logits and not zero_infinity:
        # Behind a log-softmax torch spreads the NaN of an impossible row over its padding, too.
        rows = ~expected_grad.isnan().any(0).any(-1)
        grad, expected_grad = grad[:, rows], expected_grad[:, rows]
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_true_gradient_leaves_out_the_softmax(cpu_target: str, dtype: torch.dtype) -> None:
    case = make_case(3, dtype=dtype)  # logits given as if they were log-probabilities
    loss, grad = ours(case, grad="true", reduction="none")
    assert_close(case, (loss, grad), oracle(case, grad="true", reduction="none"))
    frames = torch.arange(case.scores.shape[0])[:, None] < case.input_lengths
    # A posterior distribution over the classes: minus the gradient adds up to 1 in each frame.
    total = -grad.double().sum(-1)
    torch.testing.assert_close(total, frames.double(), rtol=0, atol=0.02)


def test_true_gradient_without_effect_on_logits() -> None:
    case = make_case(4)
    torch.testing.assert_close(
        ours(case, from_logits=True, grad="true"), ours(case, from_logits=True), rtol=0, atol=0
    )


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """What a path spells: repetitions merged, blanks removed."""
    merged = [label for label, _ in itertools.groupby(path)]
    return tuple(label for label in merged if label != blank)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target", [(), (1,), (1, 1), (1, 3), (3, 1, 3), (1, 1, 1)])
def test_agrees_with_enumerating_all_paths(
    cpu_target: str, blank: int, target: tuple[int, ...]
) -> None:
    frames, classes = 5, 4
    logits = torch.randn(frames, classes, generator=torch.manual_seed(5), dtype=torch.float64)
    probs = logits.softmax(-1)
    through = torch.zeros(frames, classes, dtype=torch.float64)
    for path in itertools.product(range(classes), repeat=frames):
        if collapse(path, blank) == target:
            chance = math.prod(float(probs[t, c]) for t, c in enumerate(path))
            for t, c in enumerate(path):
                through[t, c] += chance
    likelihood = through[0].sum()
    assert likelihood > 0
    scores = logits[:, None].float().requires_grad_()
    loss = fastctc.ctc_loss(
        scores,
        torch.tensor([target], dtype=torch.int64),
        [frames],
        [len(target)],
        blank,
        "sum",
        from_logits=True,
    )
    loss.backward()
    torch.testing.assert_close(loss.double(), -likelihood.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        scores.grad[:, 0].double(), probs - through / likelihood, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("from_logits", [True, False])
def test_gradcheck(cpu_target: str, from_logits: bool) -> None:
    case = make_case(6, frames=6, batch=3, classes=4, labels=2, dtype=torch.float64)
    scores = case.scores.requires_grad_()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return fastctc.ctc_loss(
            values,
            *case.arguments()[1:],
            reduction="none",
            from_logits=from_logits,
            grad="true",
        )

    assert torch.autograd.gradcheck(loss, (scores,))
    assert torch.autograd.gradcheck(lambda x: loss(x.log_softmax(-1)), (scores,))


@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(1, 40),
    batch=st.integers(1, 6),
    classes=st.integers(1, 140),
    labels=st.integers(0, 20),
    blank=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    reduction=st.sampled_from(REDUCTIONS),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_any_shape(
    cpu_target: str,
    seed: int,
    frames: int,
    batch: int,
    classes: int,
    labels: int,
    blank: float,
    dtype: torch.dtype,
    layout: str,
    reduction: str,
    scale: float,
    flags: tuple[bool, bool, bool, bool],
) -> None:
    from_logits, zero_infinity, repeats, true_grad = flags
    case = make_case(
        seed,
        frames,
        batch,
        classes,
        labels,
        blank=round(blank * (classes - 1)),
        dtype=dtype,
        scale=scale,
        layout=layout,
        repeats=repeats,
        fitting=False,
        garbage=-(2**40),
    )
    if not from_logits:
        case = log_probs_of(case)
    options = {
        "from_logits": from_logits,
        "zero_infinity": zero_infinity,
        "reduction": reduction,
        "grad": "true" if true_grad else "torch",
    }
    assert_close(case, ours(case, **options), oracle(case, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(cpu_target: str, dtype: torch.dtype) -> None:
    case = make_case(7, dtype=dtype)
    expected = ours(case, from_logits=True)
    frames, batch, classes = case.scores.shape
    wide = torch.full((2 * frames, batch + 1, classes + 3), math.nan, dtype=dtype)
    strided = wide[::2, 1:, 2:-1]
    strided.copy_(case.scores)
    class_first = case.scores.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    batch_first = case.scores.transpose(0, 1).contiguous().transpose(0, 1)
    for scores in (strided, class_first, batch_first):
        assert not scores.is_contiguous()
        loss, grad = ours(case.with_scores(scores), from_logits=True)
        assert grad.is_contiguous()
        torch.testing.assert_close((loss, grad), expected, rtol=0, atol=0)


def test_expanded_and_negated_scores() -> None:
    case = make_case(8, ragged=False)
    one = case.scores[:, :1]
    expanded = case.with_scores(one.expand(-1, 4, -1))
    copied = case.with_scores(one.repeat(1, 4, 1))
    torch.testing.assert_close(ours(expanded), ours(copied), rtol=0, atol=0)
    # Tensors may carry a minus sign that their memory does not show.
    imaginary = torch.complex(case.scores, case.scores).conj().imag
    negative = ours(case.with_scores(-case.scores))
    for lazily in (imaginary, torch._neg_view(case.scores)):
        assert lazily.is_neg()
        torch.testing.assert_close(ours(case.with_scores(lazily)), negative, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_batch_first(cpu_target: str, reduction: str, contiguous: bool) -> None:
    case = make_case(9)
    expected_loss, expected_grad = ours(case, from_logits=True, reduction=reduction)
    scores = case.scores.transpose(0, 1)
    if contiguous:
        scores = scores.contiguous()
    loss, grad = ours(
        case.with_scores(scores), from_logits=True, reduction=reduction, batch_first=True
    )
    assert grad.is_contiguous()
    assert torch.equal(loss, expected_loss)
    assert torch.equal(grad, expected_grad.transpose(0, 1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_one_utterance(reduction: str, batch_first: bool) -> None:
    case = make_case(10, batch=1)
    expected_loss, expected_grad = ours(case, reduction=reduction)
    scores = case.scores[:, 0].contiguous().requires_grad_()
    lengths = (case.input_lengths, case.target_lengths)
    for targets in (case.targets[0], case.targets):
        for frames, labels in (lengths, (lengths[0][0], lengths[1][0]), ([30], (8,))):
            loss = fastctc.ctc_loss(
                scores, targets, frames, labels, reduction=reduction, batch_first=batch_first
            )
            assert loss.shape == ()
            assert torch.equal(loss, expected_loss.reshape(()))
            (grad,) = torch.autograd.grad(loss, scores)
            assert torch.equal(grad, expected_grad[:, 0])


def test_targets_and_lengths_of_any_dtype_and_kind() -> None:
    case = make_case(11, garbage=0)
    expected = ours(case)
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    integers += [torch.uint16, torch.uint32, torch.uint64]
    for dtype in [*integers, torch.float32, torch.float64, torch.float16]:
        other = Case(case.scores, case.targets.to(dtype), case.input_lengths, case.target_lengths)
        torch.testing.assert_close(ours(other), expected, rtol=0, atol=0)
    for dtype in integers:
        lengths = case.input_lengths.to(dtype), case.target_lengths.to(dtype)
        torch.testing.assert_close(
            ours(Case(case.scores, case.targets, *lengths)), expected, rtol=0, atol=0
        )
    frames, labels = case.input_lengths, case.target_lengths
    numpy_integers = [np.int64(value) for value in frames.tolist()]
    for lengths in (
        (frames.tolist(), labels.tolist()),
        (tuple(frames.tolist()), labels.tolist()),
        (numpy_integers, list(labels)),
        (frames[:, None], labels[None, :]),
        (frames.repeat_interleave(2)[::2], labels),
    ):
        loss = fastctc.ctc_loss(case.scores, case.targets, *lengths)
        assert torch.equal(loss, expected[0])


def test_targets_with_strides() -> None:
    case = make_case(12)
    expected = ours(case)
    transposed = case.targets.t().contiguous().t()
    assert not transposed.is_contiguous()
    case.targets = transposed
    torch.testing.assert_close(ours(case), expected, rtol=0, atol=0)
    same = make_case(13, ragged=False)
    row = same.targets[:1]
    same.targets = row.expand(4, -1)
    expected = ours(same)
    same.targets = row.repeat(4, 1)
    torch.testing.assert_close(ours(same), expected, rtol=0, atol=0)


@pytest.mark.parametrize("empty", [torch.zeros(0), torch.zeros(4, 0, dtype=torch.int64)])
def test_empty_targets(cpu_target: str, empty: torch.Tensor) -> None:
    case = make_case(14)
    case.targets = empty
    case.target_lengths = torch.zeros(4, dtype=torch.int64)
    result = ours(case, from_logits=True, reduction="none")
    case.targets = torch.zeros(0, dtype=torch.int64)
    assert_close(case, result, oracle(case, from_logits=True, reduction="none"))
    torch.testing.assert_close(
        result[0].double(), torch_float64(case, from_logits=True, reduction="none")[0]
    )


def test_rows_without_frames(cpu_target: str) -> None:
    case = make_case(15, batch=3)
    case.input_lengths = torch.tensor([0, 0, 30])
    case.target_lengths = torch.tensor([0, 3, 8])
    case.targets[2] = torch.arange(1, 9)
    loss, grad = ours(case, reduction="none")
    assert loss[0] == 0
    assert loss[1] == math.inf
    assert loss[2].isfinite()
    assert torch.equal(grad[:, :2], torch.zeros_like(grad[:, :2]))
    loss, _ = ours(case, reduction="none", zero_infinity=True)
    assert loss[:2].tolist() == [0, 0]


def test_impossible_rows(cpu_target: str) -> None:
    case = make_case(16, frames=8, batch=2)
    case.targets[:] = torch.tensor([1, 1, 1, 1, 1, 2, 3, 4])  # 12 frames at least
    case.input_lengths = torch.tensor([6, 8])
    case.target_lengths = torch.tensor([5, 4])
    loss, grad = ours(case, reduction="none")
    assert loss[0] == math.inf
    assert loss[1].isfinite()
    assert grad[:6, 0].isnan().all()
    assert torch.equal(grad[6:, 0], torch.zeros(2, 9))
    assert grad[:, 1].isfinite().all()
    loss, dropped = ours(case, reduction="none", zero_infinity=True)
    assert loss[0] == 0
    assert torch.equal(dropped[:, 0], torch.zeros(8, 9))
    assert torch.equal(dropped[:, 1], grad[:, 1])


def test_blank_inside_a_target_is_a_label_like_any_other(cpu_target: str) -> None:
    case = make_case(17, ragged=False)
    case.targets[:, ::3] = case.blank
    options = {"reduction": "none", "from_logits": True}
    assert_close(case, ours(case, **options), torch_float64(case, **options))


@pytest.mark.parametrize("from_logits", [True, False])
def test_nan_stays_in_its_row(cpu_target: str, from_logits: bool) -> None:
    case = make_case(18, ragged=False)
    expected_loss, expected_grad = ours(case, reduction="none", from_logits=from_logits)
    case.scores[5, 2] = math.nan
    loss, grad = ours(case, reduction="none", from_logits=from_logits, zero_infinity=True)
    others = [0, 1, 3]
    assert loss[2].isnan()
    assert grad[:, 2].isnan().all()
    assert torch.equal(loss[others], expected_loss[others])
    assert torch.equal(grad[:, others], expected_grad[:, others])


def test_nan_in_padding_is_not_seen(cpu_target: str) -> None:
    case = make_case(19)
    expected = ours(case, from_logits=True)
    for n, length in enumerate(case.input_lengths.tolist()):
        case.scores[length:, n] = math.nan
    torch.testing.assert_close(ours(case, from_logits=True), expected, rtol=0, atol=0)


def test_results_repeat_under_deterministic_algorithms(threads: None) -> None:
    case = make_case(20, batch=8)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        first = ours(case, from_logits=True)
        for _ in range(3):
            torch.testing.assert_close(ours(case, from_logits=True), first, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_default_device_is_not_used() -> None:
    case = make_case(21)
    expected = ours(case)
    with torch.device("meta"):
        loss, grad = ours(case)
        from_lists = fastctc.ctc_loss(
            case.scores, case.targets, case.input_lengths.tolist(), case.target_lengths.tolist()
        )
    torch.testing.assert_close((loss, grad), expected, rtol=0, atol=0)
    assert torch.equal(from_lists, expected[0])
