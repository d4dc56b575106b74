"""The gradient as autograd hands it around."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cuda_backends import ON_CUDA
from loss_cases import Case, assert_close, make_case, oracle, ours, padding_mask

import fastctc

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, *HALF)
REDUCTIONS = ("none", "mean", "sum")


def loss_of(case: Case, scores: torch.Tensor, **options: Any) -> torch.Tensor:
    return fastctc.ctc_loss(scores, *case.arguments()[1:], **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.75, 65536.0])
@pytest.mark.parametrize("batch_first", [True, False])
def test_grad_out_scales_the_gradient(
    dtype: torch.dtype, reduction: str, scale: float, batch_first: bool
) -> None:
    case = make_case(50, dtype=dtype, frames=50)
    shape = (4,) if reduction == "none" else ()
    grad_out = torch.full(shape, scale, dtype=torch.float64)
    if reduction == "none":
        grad_out *= torch.tensor([1.0, 0.5, -2.0, 0.0])
    real = torch.float64 if dtype is torch.float64 else torch.float32
    given = case
    if batch_first:
        given = case.with_scores(case.scores.transpose(0, 1))
    loss, grad = ours(
        given,
        grad_out.to(real),
        reduction=reduction,
        from_logits=True,
        batch_first=batch_first,
    )
    if batch_first:
        grad = grad.transpose(0, 1)
    expected = oracle(case, grad_out, reduction=reduction, from_logits=True)
    # The last scale leaves float16: both sides are infinite then.
    narrowed = expected[0], expected[1].to(dtype)
    if dtype is torch.float16:
        grad, narrowed = grad.clamp(-6e4, 6e4), (expected[0], narrowed[1].clamp(-6e4, 6e4))
    tolerance = max(1.0, abs(scale)) * (1e-10 if dtype is torch.float64 else 1e-5)
    if dtype is torch.float16:
        tolerance = max(tolerance, 3e-8)
    torch.testing.assert_close(loss.double(), expected[0].double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        grad.double(),
        narrowed[1].double(),
        rtol=2.0**-7 if dtype is torch.bfloat16 else 2.0**-10 if dtype is torch.float16 else 0,
        atol=tolerance,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", [1.0, 0.3, math.nan, math.inf])
def test_two_backward_passes_give_equal_gradients(
    dtype: torch.dtype, reduction: str, scale: float
) -> None:
    case = make_case(51, dtype=dtype, layout="concatenated")
    scores = case.scores.requires_grad_()
    loss = loss_of(case, scores, reduction=reduction, from_logits=True)
    for grad_out in (torch.full_like(loss, scale), torch.tensor(scale).to(loss).expand(loss.shape)):
        first, second, third = (
            torch.autograd.grad(loss, scores, grad_out, retain_graph=True)[0] for _ in range(3)
        )
        torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(third, first, rtol=0, atol=0, equal_nan=True)
        assert second.data_ptr() != first.data_ptr()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_infinite_grad_out_stays_off_padding(
    cpu_target: str, value: float, dtype: torch.dtype, reduction: str
) -> None:
    case = make_case(52, dtype=dtype)
    shape = (4,) if reduction == "none" else ()
    real = torch.float64 if dtype is torch.float64 else torch.float32
    grad_out = torch.full(shape, value, dtype=real)
    _, grad = ours(case, grad_out, reduction=reduction, from_logits=True)
    padded = padding_mask(case)
    assert torch.equal(grad[padded], torch.zeros_like(grad[padded]))
    assert not grad[~padded].isfinite().any()


def test_infinite_grad_out_on_one_row() -> None:
    case = make_case(53)
    grad_out = torch.tensor([1.0, math.inf, 1.0, 1.0])
    _, grad = ours(case, grad_out, reduction="none")
    _, plain = ours(case, reduction="none")
    others = [0, 2, 3]
    assert torch.equal(grad[:, others], plain[:, others])
    valid = ~padding_mask(case)[:, 1]
    assert not grad[valid, 1].isfinite().any()
    assert torch.equal(grad[~valid, 1], torch.zeros_like(grad[~valid, 1]))


def test_dropped_rows_stay_zero_under_any_grad_out(cpu_target: str) -> None:
    case = make_case(54, frames=8, batch=2, ragged=False, repeats=True, fitting=False)
    for value in (1.0, 2.0, math.inf):
        _, grad = ours(case, torch.tensor(value), reduction="sum", zero_infinity=True)
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.skipif(ON_CUDA, reason="on CUDA the gradient is made in the backward pass")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_first_backward_hands_its_buffer_over(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    case = make_case(55, dtype=dtype)
    scores = case.scores.requires_grad_()
    buffers = []
    empty_like = torch.empty_like

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = empty_like(*args, **kwargs)
        buffers.append(result.data_ptr())
        return result

    monkeypatch.setattr(torch, "empty_like", recording)
    loss_of(case, scores).backward()
    assert buffers == [scores.grad.data_ptr()]


def test_gradient_accumulates() -> None:
    case = make_case(56)
    scores = case.scores.requires_grad_()
    loss_of(case, scores).backward()
    once = scores.grad.clone()
    loss_of(case, scores).backward()
    torch.testing.assert_close(scores.grad, 2 * once, rtol=0, atol=0)


def test_through_a_network() -> None:
    case = make_case(57)
    weight = torch.randn(9, 9, generator=torch.manual_seed(0), dtype=torch.float64)
    grads = []
    for function in (fastctc.ctc_loss, torch.nn.functional.ctc_loss):
        leaf = weight.clone().requires_grad_()
        log_probs = (case.scores.double() @ leaf).log_softmax(-1)
        assert not log_probs.is_leaf
        (function(log_probs, *case.arguments()[1:]) * 3).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient(mode: Any) -> None:
    case = make_case(58)
    expected = loss_of(case, case.scores)
    scores = case.scores.clone().requires_grad_()
    with mode():
        loss = loss_of(case, scores)
        assert torch.equal(loss_of(case, case.scores.clone()), expected)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


def test_scores_made_in_inference_mode() -> None:
    case = make_case(59)
    expected = loss_of(case, case.scores)
    with torch.inference_mode():
        scores = case.scores.clone()
    assert torch.equal(loss_of(case, scores), expected)


@pytest.mark.skipif(ON_CUDA, reason="targets on the host are copied to the device")
def test_changed_inputs_are_noticed() -> None:
    case = make_case(60)
    scores = case.scores.requires_grad_()
    loss = loss_of(case, scores)
    loss.backward(retain_graph=True)
    case.targets += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_graph_is_freed_after_backward() -> None:
    case = make_case(61)
    loss = loss_of(case, case.scores.requires_grad_())
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("from_logits", [True, False])
def test_second_derivative_is_refused(from_logits: bool) -> None:
    case = make_case(62)
    scores = case.scores.requires_grad_()
    expected = ours(make_case(62), from_logits=from_logits)[1]
    loss = loss_of(case, scores, from_logits=from_logits)
    (grad,) = torch.autograd.grad(loss, scores, create_graph=True)
    assert torch.equal(grad, expected)
    with pytest.raises(RuntimeError, match=r"fastctc.ctc_loss has no second derivative"):
        grad.square().sum().backward()


def test_saved_tensors_may_be_moved_away() -> None:
    case = make_case(63)
    expected = ours(case, torch.tensor(2.0))[1]
    scores = case.scores.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy):
        loss = loss_of(case, scores.detach().requires_grad_())
        leaf = scores.detach().requires_grad_()
        loss = loss_of(case, leaf)
    for _ in range(2):
        (grad,) = torch.autograd.grad(loss, leaf, torch.tensor(2.0), retain_graph=True)
        assert torch.equal(grad, expected)


def test_under_checkpointing() -> None:
    case = make_case(64)
    expected = ours(case)[1]
    scores = case.scores.requires_grad_()
    loss = torch.utils.checkpoint.checkpoint(loss_of, case, scores, use_reentrant=False)
    loss.backward()
    assert torch.equal(scores.grad, expected)


def test_transforms_that_would_be_wrong_are_refused() -> None:
    case = make_case(65)
    tangent = torch.ones_like(case.scores)

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return loss_of(case, scores)

    def dual() -> None:
        with torch.autograd.forward_ad.dual_level():
            loss(torch.autograd.forward_ad.make_dual(case.scores, tangent))

    for call in (
        lambda: torch.func.grad(loss)(case.scores),
        lambda: torch.func.vmap(loss)(torch.stack([case.scores] * 2)),
        lambda: torch.func.jvp(loss, (case.scores,), (tangent,)),
        dual,
    ):
        with pytest.raises(NotImplementedError, match=r"fastctc.ctc_loss does not support"):
            call()
    with torch.autograd.forward_ad.dual_level():  # nothing to differentiate here
        assert torch.equal(loss(case.scores), loss(case.scores))


def test_scaled_training_step_in_float16_equals_one_in_float32() -> None:
    case = make_case(66, frames=300, batch=16, labels=100, dtype=torch.float16)
    scale = 65536.0
    scores = case.scores.requires_grad_()
    (loss_of(case, scores, from_logits=True) * scale).backward()
    _, expected = oracle(case, torch.tensor(scale), from_logits=True)
    assert_close(case, (torch.zeros(()), scores.grad), (torch.zeros(()), expected), 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batched_grad_out(dtype: torch.dtype, reduction: str) -> None:
    case = make_case(67, dtype=dtype)
    scores = case.scores.requires_grad_()
    loss = loss_of(case, scores, reduction=reduction, from_logits=True)
    vectors = torch.randn(3, *loss.shape, generator=torch.manual_seed(1)).to(loss)
    expected = [torch.autograd.grad(loss, scores, v, retain_graph=True)[0] for v in vectors]
    (batched,) = torch.autograd.grad(
        loss, scores, vectors, is_grads_batched=True, retain_graph=True
    )
    mapped = torch.func.vmap(lambda v: torch.autograd.grad(loss, scores, v, retain_graph=True)[0])
    for result in (batched, mapped(vectors)):
        torch.testing.assert_close(result, torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("vectorize", [True, False])
def test_jacobian(vectorize: bool) -> None:
    case = make_case(68, 12, labels=4, dtype=torch.float64)
    rest = case.arguments()[1:]
    ours, expected = (
        torch.autograd.functional.jacobian(
            lambda x, loss=loss: loss(x.log_softmax(-1), *rest, "none"),
            case.scores,
            vectorize=vectorize,
        )
        for loss in (fastctc.ctc_loss, torch.nn.functional.ctc_loss)
    )
    assert ours.shape == (4, *case.scores.shape)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("create_graph", [True, False])
def test_scores_changed_in_place_are_noticed(
    dtype: torch.dtype, scale: float, create_graph: bool
) -> None:
    case = make_case(69, dtype=dtype)
    leaf = case.scores.requires_grad_()
    scores = leaf * 1
    loss = loss_of(case, scores, from_logits=True)
    scores.add_(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(
                loss,
                leaf,
                torch.full_like(loss, scale),
                create_graph=create_graph,
                retain_graph=True,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_lazily_negated_grad_out(dtype: torch.dtype, reduction: str) -> None:
    case = make_case(49, dtype=dtype)
    scores = case.scores.requires_grad_()
    loss = loss_of(case, scores, reduction=reduction, from_logits=True)
    scale = torch.tensor([0.7, -1.3, 0.2, 2.5]) if reduction == "none" else torch.tensor(0.7)
    scale = scale.to(loss)
    negated = torch._neg_view(scale)
    assert negated.is_neg()
    (expected,) = torch.autograd.grad(loss, scores, -scale, retain_graph=True)
    for _ in range(2):  # from the gradient at hand, and from a recomputation
        (grad,) = torch.autograd.grad(loss, scores, negated, retain_graph=True)
        torch.testing.assert_close(grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [3.1, 0.3])
def test_bfloat16_gradient_is_the_float32_one_rounded_once(cpu_target: str, scale: float) -> None:
    case = make_case(48, 80, 8, 40, 20, dtype=torch.bfloat16)
    grad_out = torch.tensor(scale)
    _, grad = ours(case, grad_out, from_logits=True, reduction="sum")
    wide = case.with_scores(case.scores.detach().float())
    _, exact = ours(wide, grad_out, from_logits=True, reduction="sum")
    _, unscaled = ours(wide, from_logits=True, reduction="sum")
    twice = (unscaled.bfloat16() * scale).bfloat16()
    # The order of a float32 sum may move a value across the middle of two neighbours, rarely.
    assert (grad != exact.bfloat16()).double().mean() < 1e-3
    assert (twice != exact.bfloat16()).double().mean() > 0.05
