"""The loss as a registered operator: torch.compile, fake tensors, dispatch modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loss_cases import Case, make_case, ours
from torch._subclasses.fake_tensor import FakeTensorMode

import fastctc
from fastctc import _checks


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operator_arguments(case: Case, **options: Any) -> tuple[Any, ...]:
    chosen = {
        "blank": 0,
        "reduction": "mean",
        "zero_infinity": False,
        "from_logits": True,
        "batch_first": False,
        "grad": "torch",
        "max_target_length": None,
    } | options
    return (*case.arguments()[:4], *_checks.check_options(**chosen))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("layout", ["padded", "concatenated"])
def test_operator_passes_torch_checks(dtype: torch.dtype, reduction: str, layout: str) -> None:
    case = make_case(70, dtype=dtype, layout=layout)
    plain = operator_arguments(case, reduction=reduction)
    grad_out = torch.ones(4 if reduction == "none" else (), dtype=dtype)
    if dtype is torch.bfloat16:
        grad_out = grad_out.float()
    torch.library.opcheck(torch.ops.fastctc.ctc_loss_backward.default, (grad_out, *plain))
    torch.library.opcheck(torch.ops.fastctc.ctc_loss.default, plain)
    case.scores.requires_grad_()
    for bound in (None, 8):
        torch.library.opcheck(
            torch.ops.fastctc.ctc_loss.default,
            operator_arguments(case, reduction=reduction, max_target_length=bound),
        )


@pytest.mark.parametrize("batch_first", [True, False])
def test_operator_passes_torch_checks_in_other_layouts(batch_first: bool) -> None:
    case = make_case(71, batch=1)
    case.scores = case.scores[:, 0].requires_grad_()
    torch.library.opcheck(
        torch.ops.fastctc.ctc_loss.default,
        operator_arguments(case, batch_first=batch_first, reduction="none"),
    )
    case = make_case(71)
    case.scores = case.scores.transpose(0, 1).requires_grad_()
    torch.library.opcheck(
        torch.ops.fastctc.ctc_loss.default,
        operator_arguments(case, batch_first=True, reduction="none"),
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_to_one_graph(backend: str, dynamic: bool) -> None:
    def step(scores: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        loss = fastctc.ctc_loss(scores * 2, *rest, from_logits=True, reduction="none")
        return (loss * 3).sum()

    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    for seed, frames in ((72, 30), (73, 41)):
        case = make_case(seed, frames=frames)
        scores = case.scores.requires_grad_()
        rest = case.arguments()[1:4]
        expected = step(scores, *rest)
        result = compiled(scores, *rest)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(result, scores), torch.autograd.grad(expected, scores)
        )


def test_compiles_with_lists_and_modules() -> None:
    case = make_case(74, dtype=torch.bfloat16)
    module = fastctc.CTCLoss(from_logits=True, batch_first=True)
    lengths = case.input_lengths.tolist(), case.target_lengths.tolist()

    def step(scores: torch.Tensor) -> torch.Tensor:
        return module(scores, case.targets, *lengths)

    scores = case.scores.transpose(0, 1).contiguous().requires_grad_()
    expected = step(scores)
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(scores)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(result, scores), torch.autograd.grad(expected, scores)
    )


def test_compiles_under_autocast() -> None:
    case = make_case(75)
    weight = torch.randn(9, 9, generator=torch.manual_seed(0))

    def step(scores: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fastctc.ctc_loss(scores @ weight, *case.arguments()[1:4], from_logits=True)

    result = torch.compile(step, fullgraph=True, backend="aot_eager")(case.scores)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, step(case.scores))


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled_code_holds_targets_against_the_bound(dynamic: bool) -> None:
    case = make_case(90)
    compiled = torch.compile(fastctc.ctc_loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    scores = case.scores.requires_grad_()
    expected = fastctc.ctc_loss(scores, *case.arguments()[1:4])
    for bound in (8, 9, 2**40):
        result = compiled(scores, *case.arguments()[1:4], max_target_length=bound)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(result, scores),
            torch.autograd.grad(expected, scores, retain_graph=True),
        )
    with pytest.raises(ValueError, match=r"is 8, above max_target_length=7"):
        compiled(scores, *case.arguments()[1:4], max_target_length=7)
    with pytest.raises(ValueError, match="max_target_length must be at least 0, got -1"):
        torch.ops.fastctc.ctc_loss(*operator_arguments(case)[:-1], -1)


def test_compiled_code_refuses_bad_values() -> None:
    case = make_case(76)
    compiled = torch.compile(fastctc.ctc_loss, fullgraph=True, backend="aot_eager")
    compiled(*case.arguments()[:4])
    case.targets[0, 3] = 9
    with pytest.raises(IndexError, match="label 9 at position 3 of row 0"):
        compiled(*case.arguments()[:4])


def test_patched_torch_compiles() -> None:
    case = make_case(77)
    with fastctc.patch_torch():
        loss = torch.nn.CTCLoss()
        result = torch.compile(
            lambda scores: loss(scores, *case.arguments()[1:4]), fullgraph=True, backend="eager"
        )(case.scores)
    torch.testing.assert_close(result, ours(case)[0])


def test_operator_gradient_equals_the_eager_one() -> None:
    case = make_case(78, dtype=torch.float64, batch=5)
    grad_out = torch.arange(5.0, dtype=torch.float64)
    expected = ours(case, grad_out, reduction="none", from_logits=True)
    scores = case.scores.requires_grad_()
    loss = torch.ops.fastctc.ctc_loss(*operator_arguments(case, reduction="none"))
    (grad,) = torch.autograd.grad(loss, scores, grad_out)
    torch.testing.assert_close((loss.detach(), grad), expected, rtol=1e-14, atol=1e-14)


def test_operator_refuses_a_second_derivative() -> None:
    case = make_case(79)
    case.scores.requires_grad_()
    loss = torch.ops.fastctc.ctc_loss(*operator_arguments(case))
    (grad,) = torch.autograd.grad(loss, case.scores, create_graph=True)
    with pytest.raises(RuntimeError, match=r"fastctc.ctc_loss has no second derivative"):
        grad.sum().backward()


def test_tracers_and_modes_see_the_operator() -> None:
    case = make_case(80)
    rest = case.arguments()[1:4]
    graph = torch.fx.experimental.proxy_tensor.make_fx(
        lambda scores: fastctc.ctc_loss(scores, *rest)
    )(case.scores)
    other = make_case(81, garbage=0).scores
    assert torch.equal(graph(other), fastctc.ctc_loss(other, *rest))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(case.scores)
        assert fastctc.ctc_loss(fake, *rest, reduction="none").shape == (4,)
    assert fastctc.ctc_loss(fake, *rest, reduction="none").shape == (4,)


def test_tensor_classes_keep_their_class() -> None:
    class Tagged(torch.Tensor):
        pass

    case = make_case(82)
    scores = case.scores.as_subclass(Tagged).requires_grad_()
    loss = fastctc.ctc_loss(scores, *case.arguments()[1:4])
    assert type(loss) is Tagged
    expected_loss, expected_grad = ours(case)
    assert torch.equal(loss.detach().as_subclass(torch.Tensor), expected_loss)
    (grad,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(grad.as_subclass(torch.Tensor), expected_grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("patched", [False, True])
def test_torch_jit_traces_the_operator(patched: bool) -> None:
    case = make_case(83)
    rest = case.arguments()[1:4]

    def loss(scores: torch.Tensor) -> torch.Tensor:
        function = torch.nn.functional.ctc_loss if patched else fastctc.ctc_loss
        return function(scores, *rest) * 2

    patch = fastctc.patch_torch()
    try:
        traced = torch.jit.trace(loss, (case.scores,))
    finally:
        patch.undo()
    assert "fastctc::ctc_loss" in str(traced.graph)
    other = make_case(84).scores.requires_grad_()
    expected = fastctc.ctc_loss(other, *rest) * 2
    for _ in range(2):
        torch.testing.assert_close(traced(other), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(traced(other), other), torch.autograd.grad(expected, other)
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda g: g.double(), "grad_out must have the dtype of the loss, torch.float32"),
        (lambda g: g.reshape(-1)[:0], r"grad_out must have the shape of the loss, \(4?,?\), got"),
        (lambda g: g.expand(3, *g.shape), "grad_out must have the shape of the loss"),
        (lambda g: g.to("meta"), "grad_out must be on the device of the loss, cpu, .* meta"),
    ],
)
def test_operator_checks_grad_out(reduction: str, spoil: Any, sentence: str) -> None:
    arguments = operator_arguments(make_case(85), reduction=reduction)
    grad_out = torch.ones(4 if reduction == "none" else ())
    backward = torch.ops.fastctc.ctc_loss_backward
    assert backward(grad_out, *arguments).isfinite().all()
    with pytest.raises(RuntimeError, match=sentence):
        backward(spoil(grad_out), *arguments)


@pytest.mark.parametrize("number", [-1, 3, 2**40])
def test_operators_check_the_number_of_the_reduction(number: int) -> None:
    case = make_case(86)
    arguments = [*operator_arguments(case)]
    arguments[5] = number
    for scores in (case.scores, case.scores.to("meta")):
        arguments[0] = scores
        with pytest.raises(ValueError, match=f"reduction must be 0 .* got {number}"):
            torch.ops.fastctc.ctc_loss(*arguments)
        with pytest.raises(ValueError, match=f"reduction must be 0 .* got {number}"):
            torch.ops.fastctc.ctc_loss_backward(torch.ones(()).to(scores), *arguments)
