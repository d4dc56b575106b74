"""The float64 reference of spectrogram normalisation against autograd and the definition."""

from __future__ import annotations

import pytest
import torch
from norm_cases import MASKS, OVER, batch, options, plain

from fastctc._norm import LOG1P, LOG10, NO_LOG, counts
from fastctc.reference import spectrogram_norm as reference


@pytest.mark.parametrize("log", [NO_LOG, LOG1P, LOG10])
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_autograd(over: str, log: int, masked: bool) -> None:
    x, lengths = batch()
    chosen = options(over, log)
    masks = None
    keep = None
    if masked:
        masks = reference.draw_masks(torch.tensor([7]), lengths, tuple(x.shape), MASKS)
        keep = reference.kept(lengths, tuple(x.shape), masks, MASKS.time_count)
    group = (2, 3, 1) if "F" in over else (2, 3, 5)
    weight = (torch.rand(group, dtype=torch.float64) + 0.5).requires_grad_()
    bias = torch.rand(group, dtype=torch.float64).requires_grad_()
    y, mean, var = reference.forward(
        x, lengths, weight.detach(), bias.detach(), masks, MASKS.time_count, chosen
    )
    leaf = x.clone().requires_grad_()
    expected = plain(leaf, lengths, chosen, weight, bias, keep)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-12, atol=1e-12)

    grad = torch.randn(x.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (leaf, weight, bias), grad)
    dx, grad_sum, grad_dot = reference.backward(
        grad, x, lengths, mean, var, weight.detach(), masks, MASKS.time_count, chosen
    )
    valid = reference.valid_frames(lengths, tuple(x.shape)).expand_as(dx)
    torch.testing.assert_close(dx[valid], wanted[0][valid], rtol=1e-10, atol=1e-10)
    assert (dx[~valid] == 0).all()
    torch.testing.assert_close(grad_dot.sum(0), wanted[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad_sum.sum(0), wanted[2], rtol=1e-10, atol=1e-10)


def test_given_statistics_are_constants_of_the_gradient() -> None:
    x, lengths = batch()
    chosen = options("NT", LOG1P)
    mean, var = reference.moments(x, lengths, chosen)
    grad = torch.randn(x.shape, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    z = (torch.log1p(leaf) - mean.unsqueeze(1)) / torch.sqrt(var.unsqueeze(1) + chosen.eps)
    (wanted,) = torch.autograd.grad(z, leaf, grad)
    dx = reference.input_gradient(grad, x, lengths, mean, var, None, None, 0, None, None, chosen)
    valid = reference.valid_frames(lengths, tuple(x.shape)).expand_as(dx)
    torch.testing.assert_close(dx[valid], wanted[valid])
    assert (dx[~valid] == 0).all()


def test_philox_gives_its_published_words() -> None:
    # Known answers of the generator's authors: kat_vectors of Random123, philox4x32 10.
    zero = torch.zeros(1, dtype=torch.int64)
    assert [int(w) for w in reference.philox((zero, zero), zero[0])] == [0x6627E8D5, 0xE169C58D]


def test_masks_lie_within_their_bounds_and_use_all_of_them() -> None:
    lengths = torch.tensor([50, 8, 1, 0] * 50)
    shape = (len(lengths), 50, 1, 1, 6)
    masks = reference.draw_masks(torch.tensor([3]), lengths, shape, MASKS).long()
    start, end = masks.unbind(-1)
    width = end - start
    time = slice(0, MASKS.time_count)
    limit = torch.minimum(lengths // 2, torch.tensor(MASKS.time_width))[:, None]
    assert (start >= 0).all()
    assert (end[:, time] <= lengths[:, None]).all()
    assert (width[:, time] <= limit).all()
    assert (end[:, MASKS.time_count :] <= 6).all()
    assert set(width[lengths == 50][:, time].unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(width[:, MASKS.time_count :].unique().tolist()) == {0, 1, 2}
    assert start[lengths == 50][:, time].max() > 40


def test_masks_of_channels_are_drawn_apart() -> None:
    lengths = torch.tensor([40, 40])
    chosen = MASKS._replace(per_channel=True)
    masks = reference.draw_masks(torch.tensor([1 << 40]), lengths, (2, 40, 2, 3, 5), chosen)
    assert masks.shape == (12, 4, 2)
    assert len({tuple(row.flatten().tolist()) for row in masks}) > 6
    same_low_word = reference.draw_masks(torch.tensor([0]), lengths, (2, 40, 2, 3, 5), chosen)
    assert not torch.equal(masks, same_low_word)


def test_counts_of_groups() -> None:
    lengths = torch.tensor([9, 4, 12])
    shape = (3, 9, 2, 3, 5)
    assert counts(lengths, shape, options("T")).flatten().tolist() == [9, 4, 9]
    assert counts(lengths, shape, options("TF")).flatten().tolist() == [45, 20, 45]
    assert counts(lengths, shape, options("NTF")).flatten().tolist() == [110]
