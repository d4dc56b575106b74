"""Eager calls of spectrogram_norm, past torch's dispatcher, behave as its operator does."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fastctc
from fastctc import _norm_ops
from fastctc._norm import NormOptions
from fastctc._norm_checks import canonical, parse_layout, restored

LAYOUTS = ["NTF", "TNF", "NFT", "TNBEF"]
SIZES = {"N": 3, "T": 20, "B": 2, "E": 3, "F": 7}


def batch(layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = [SIZES[axis] for axis in layout]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.tensor([20, 7, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("over", ["T", "NT"])
def test_eager_calls_give_what_the_operator_gives(layout: str, over: str) -> None:
    x, lengths = batch(layout)
    chosen = parse_layout(layout)
    options = NormOptions(over == "NT", False, 0, 1e-6, 1e-5)
    operator = torch.ops.fastctc.spectrogram_norm
    wanted = restored(
        operator(canonical(x, chosen), lengths, None, None, None, 0, *options)[0], chosen
    )
    found = fastctc.spectrogram_norm(x, lengths, layout=layout, over=over)
    grad = torch.randn(x.shape, dtype=torch.float64)
    (wanted_dx,) = torch.autograd.grad(wanted, x, grad)
    (found_dx,) = torch.autograd.grad(found, x, grad)
    assert torch.equal(found, wanted)
    assert torch.equal(found_dx, wanted_dx)
    assert found.stride() == wanted.stride()
    with torch.no_grad():
        assert torch.equal(fastctc.spectrogram_norm(x, lengths, layout=layout, over=over), wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_may_be_overwritten(layout: str) -> None:
    """As ``nn.Hardtanh(inplace=True)`` does behind a normalisation."""
    x, lengths = batch(layout)
    gradients = []
    for activation in (torch.relu, torch.relu_):
        y = fastctc.spectrogram_norm(x, lengths, layout=layout)
        gradients += torch.autograd.grad(activation(y).square().sum(), x)
    assert torch.equal(*gradients)


def test_an_input_that_was_overwritten_is_noticed() -> None:
    x, lengths = batch("NTF")
    inner = x * 2
    y = fastctc.spectrogram_norm(inner, lengths)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def by_operator(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    view, masks = canonical(x, parse_layout("NTF")), (None, None, None, 0)
    operator = torch.ops.fastctc.spectrogram_norm
    return operator(view, lengths, *masks, True, False, 0, 1e-6, 1e-5)[0]


def by_module(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return fastctc.SequenceBatchNorm(7)(x, lengths)


@pytest.mark.parametrize("norm", [fastctc.spectrogram_norm, by_module, by_operator])
def test_checkpointing_gives_the_same_gradient(norm) -> None:
    """It makes the tensors that a backward pass saved anew, and only once."""
    x, lengths = batch("NTF")
    found = []
    for again in (False, True):
        y = checkpoint(norm, x, lengths, use_reentrant=False) if again else norm(x, lengths)
        found.append(torch.autograd.grad(torch.tanh(y).square().sum(), x))
    torch.testing.assert_close(*found)


def test_gradients_of_many_at_once() -> None:
    x, lengths = batch("NTF")
    y = fastctc.spectrogram_norm(x, lengths)
    grads = torch.randn(4, *x.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    for grad, one in zip(grads, found, strict=True):
        assert torch.allclose(one, torch.autograd.grad(y, x, grad, retain_graph=True)[0])


def test_statistics_take_no_gradient() -> None:
    x, lengths = batch("NTF")
    options = NormOptions(True, False, 0, 1e-6, 1e-5)
    arguments = (lengths, None, None, None, 0, options)
    y, mean, var = _norm_ops.spectrogram_norm(x, parse_layout("NTF"), *arguments)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad


def eval_module(x: torch.Tensor) -> torch.Tensor:
    return fastctc.SequenceBatchNorm(7).eval()(x)


def train_module(x: torch.Tensor) -> torch.Tensor:
    return fastctc.SequenceBatchNorm(7)(x)


def learned_weight(weight: torch.Tensor) -> torch.Tensor:
    x = torch.ones(3, 5, 7, dtype=torch.float64)
    return fastctc.spectrogram_norm(x, weight=weight[0, 0], bias=torch.zeros(7))


@pytest.mark.parametrize(
    "norm", [fastctc.spectrogram_norm, eval_module, train_module, learned_weight]
)
def test_derivatives_that_would_be_lost_are_refused(norm) -> None:
    x = batch("NTF")[0].detach()
    func = torch.func
    for differentiate in (
        lambda: func.jvp(norm, (x,), (x,)),
        lambda: func.jvp(lambda x: func.vmap(norm)(x[None]), (x,), (x,)),
        lambda: func.grad(lambda x: norm(x).sum())(x),
        lambda: func.jacrev(norm)(x),
        lambda: func.vmap(func.grad(lambda x: norm(x).sum()))(x[None]),
    ):
        with pytest.raises(NotImplementedError, match="spectrogram_norm does not support"):
            differentiate()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        norm(forward_ad.make_dual(x, x))


def test_transforms_that_differentiate_by_something_else_are_served() -> None:
    x = batch("NTF")[0].detach()
    wanted = fastctc.spectrogram_norm(x)
    assert torch.equal(torch.func.vmap(fastctc.spectrogram_norm)(x[None])[0], wanted)
    scale = torch.tensor(2.0, dtype=torch.float64)

    def scaled(scale: torch.Tensor) -> torch.Tensor:
        return scale * fastctc.spectrogram_norm(x)

    assert torch.equal(torch.func.jvp(scaled, (scale,), (scale,))[1], 2 * wanted)
    slope = torch.func.grad(lambda scale: scaled(scale).square().sum())(scale)
    torch.testing.assert_close(slope, 4 * wanted.square().sum())


GOOD = {
    "grad": torch.ones(2, 4, 1, 1, 3),
    "x": torch.ones(2, 4, 1, 1, 3),
    "lengths": torch.tensor([4, 2]),
    "mean": torch.zeros(2, 1, 1, 3, dtype=torch.float64),
    "var": torch.ones(2, 1, 1, 3, dtype=torch.float64),
    "weight": torch.ones(1, 1, 3),
    "masks": torch.zeros(2, 1, 2, dtype=torch.int32),
    "time_masks": 1,
    "over_batch": False,
    "over_freq": False,
    "log": 0,
    "log_eps": 0.0,
    "eps": 1e-5,
}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"grad": torch.ones(2, 4, 1, 1, 3).double()}, TypeError, "grad must be torch.float32"),
        ({"grad": torch.ones(2, 3, 1, 1, 3)}, ValueError, "grad must have the shape"),
        ({"x": torch.ones(2, 4, 3)}, ValueError, "x must be .N, T, B, E, F."),
        ({"x": torch.ones(2, 4, 1, 1, 3).int()}, TypeError, "x must be float16"),
        ({"lengths": torch.tensor([4, 2]).int()}, TypeError, "lengths must be torch.int64"),
        ({"lengths": torch.tensor([4])}, ValueError, "lengths must have the shape"),
        ({"mean": torch.zeros(1, 1, 1, 3).double()}, ValueError, "mean must have the shape"),
        ({"var": torch.ones(2, 1, 1, 3)}, TypeError, "var must be torch.float64"),
        ({"weight": torch.ones(1, 1, 2)}, ValueError, "weight must have the shape"),
        ({"weight": torch.ones(1, 1, 6)[..., ::2]}, ValueError, "weight must be contiguous"),
        ({"masks": torch.zeros(2, 1, 2).long()}, TypeError, "masks must be torch.int32"),
        ({"masks": torch.zeros(1, 1, 2).int()}, ValueError, "masks must have the shape"),
        ({"time_masks": 2}, ValueError, "time_masks is 2: it must be from 0 to 1"),
        ({"log": 3}, ValueError, "log must be from 0 to 2, got 3"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
    ],
)
def test_operands_that_do_not_fit_are_named(change, error, said) -> None:
    operator = torch.ops.fastctc.spectrogram_norm_backward
    operator(*GOOD.values())
    with pytest.raises(error, match=said):
        operator(*(GOOD | change).values())


def test_a_weight_without_a_bias_is_refused_by_the_operator() -> None:
    arguments = (GOOD["x"], GOOD["lengths"], GOOD["weight"], None, None, 0)
    with pytest.raises(ValueError, match="weight and bias must be given together"):
        torch.ops.fastctc.spectrogram_norm(*arguments, False, False, 0, 0.0, 1e-5)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({0: torch.ones(2).long()}, ValueError, "seed must have one element"),
        ({0: torch.ones(1)}, TypeError, "seed must be torch.int64"),
        ({1: torch.ones(2).int()}, TypeError, "lengths must be torch.int64"),
        ({1: torch.tensor([4])}, ValueError, "lengths must have the shape"),
        ({2: (2, 4, 3)}, ValueError, "shape must be .N, T, B, E, F."),
        ({3: 65}, ValueError, "time_count is 65: it must be from 0 to 64"),
        ({7: -1}, ValueError, "freq_width is -1"),
    ],
)
def test_masks_that_cannot_be_drawn_are_named(change, error, said) -> None:
    good = [torch.tensor([1]), torch.tensor([4, 2]), (2, 4, 1, 1, 3), 1, 2, 1 << 16, 1, 2, False]
    torch.ops.fastctc.spectrogram_masks(*good)
    with pytest.raises(error, match=said):
        torch.ops.fastctc.spectrogram_masks(*(change.get(i, v) for i, v in enumerate(good)))
