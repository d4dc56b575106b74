"""Spectrogram normalisation on a GPU: waiting, streams, graphs, repetition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from norm_cases import MASKS, OVER, batch, options
from torch import Tensor

from fastctc._norm import LOG1P
from fastctc.reference import spectrogram_norm as reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from fastctc.triton import spectrogram_norm as kernels  # noqa: E402

SHAPE = (4, 300, 2, 3, 33)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where torch would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step(x: Tensor, lengths: Tensor, seed: Tensor, over: str) -> tuple[Tensor, ...]:
    """Masks, y, mean, var, gradient of x and its sums."""
    chosen = options(over, LOG1P)
    masks = kernels.draw_masks(seed, lengths, tuple(x.shape), MASKS)
    forward = kernels.forward(x, lengths, None, None, masks, MASKS.time_count, chosen)
    rest = (None, masks, MASKS.time_count, chosen)
    return (masks, *forward, *kernels.backward(x, x, lengths, *forward[1:], *rest))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x, lengths = batch(SHAPE, (300, 17, 0, 250), torch.float32)
    return x.cuda(), lengths.cuda(), torch.tensor([3], device="cuda")


def assert_equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("over", OVER)
def test_calls_repeat_to_the_bit_and_wait_for_nothing(over: str) -> None:
    tensors = inputs()
    first = step(*tensors, over)
    with no_waiting():
        second = step(*tensors, over)
    assert_equal(first, second)


@pytest.mark.parametrize("over", OVER)
def test_a_graph_is_replayed_with_other_lengths_and_another_seed(over: str) -> None:
    x, lengths, seed = inputs()
    x = x.nan_to_num(0.5)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(x, lengths, seed, over)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step(x, lengths, seed, over)
    lengths.copy_(torch.tensor([5, 300, 299, 1]))
    seed.fill_(77)
    graph.replay()
    assert_equal(recorded, step(x, lengths, seed, over))


def test_on_a_side_stream() -> None:
    tensors = inputs()
    expected = step(*tensors, "T")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        found = step(*tensors, "T")
    side.synchronize()
    assert_equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_device_that_is_not_the_current_one() -> None:
    tensors = inputs()
    found = step(*(tensor.to("cuda:1") for tensor in tensors), "T")
    assert_equal(tuple(tensor.to("cuda:0") for tensor in found), step(*tensors, "T"))


@pytest.mark.parametrize("shape", [(16, 1500, 1, 1, 161), (4, 4000, 1, 1, 257)])
def test_large_batches(shape: tuple[int, ...]) -> None:
    lengths = tuple(shape[1] - 31 * n for n in range(shape[0]))
    x, lengths_ = batch(shape, lengths, torch.float32)
    for over in ("T", "NT"):
        chosen = options(over, LOG1P)
        expected = reference.forward(x, lengths_, None, None, None, 0, chosen)
        found = kernels.forward(x.cuda(), lengths_.cuda(), None, None, None, 0, chosen)
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left.cpu(), right, rtol=1e-6, atol=4e-6)
