"""The Triton kernels of spectrogram normalisation against the float64 reference.

In triton's interpreter, every address is checked as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from norm_cases import MASKS, OVER, batch, options
from torch import Tensor
from triton_kernels import DEVICE, ON_GPU, every, kernels

from fastctc._norm import LOG1P, LOG10, NO_LOG, NormOptions
from fastctc.reference import spectrogram_norm as reference

pytestmark = [pytest.mark.gpu] if ON_GPU else []
interpreted = pytest.mark.skipif(ON_GPU, reason="looks into the interpreter's memory")

# Of the largest value of each result: the rounding of the result, and of float32 on the way there.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.float16: 1.5e-3,
    torch.bfloat16: 1.2e-2,
}
Results = tuple[Tensor, ...]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles along each axis, the last ones not full."""
    monkeypatch.setattr(kernels, "tiling", lambda *_: kernels.Tiling(4, 4))
    monkeypatch.setattr(kernels, "_MERGED_AT_ONCE", 32)


def assert_close(
    found: Tensor, expected: Tensor, dtype: torch.dtype, at_least: float = 0.0
) -> None:
    """`at_least` stands in for the largest value where that is smaller."""
    found, expected = found.cpu().double(), expected.double()
    assert torch.isfinite(found).all()
    largest = max(float(expected.abs().max()) if expected.numel() else 0.0, at_least)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype] * (largest + 1e-30))


def everything(
    functions: Any,
    x: Tensor,
    lengths: Tensor,
    grad: Tensor,
    chosen: NormOptions,
    affine: tuple[Tensor, Tensor] | None = None,
    masks: Tensor | None = None,
    given: tuple[Tensor, Tensor] | None = None,
) -> Results:
    """y, mean, var, and from statistics that are given: gradient of x, grad_sum, grad_dot."""
    weight, bias = affine or (None, None)
    y, mean, var = functions.forward(x, lengths, weight, bias, masks, MASKS.time_count, chosen)
    given = given or (mean, var)
    backward = functions.backward(grad, x, lengths, *given, weight, masks, MASKS.time_count, chosen)
    return (y, mean, var, *backward)


def compare(
    x: Tensor,
    lengths: Tensor,
    chosen: NormOptions,
    *,
    affine: bool = True,
    per_channel: bool | None = False,
    grad: Tensor | None = None,
) -> None:
    """Hold all results against the reference's; `per_channel` None is without masks."""
    shape = tuple(x.shape)
    dtype = x.dtype
    generator = torch.Generator().manual_seed(1)
    if grad is None:
        grad = torch.randn(shape, generator=generator).to(dtype)
    masks = weights = None
    if per_channel is not None:
        drawing = MASKS._replace(per_channel=per_channel)
        masks = reference.draw_masks(torch.tensor([5]), lengths, shape, drawing)
    if affine:
        size = (*shape[2:4], 1 if chosen.over_freq else shape[4])
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        weights = tuple(torch.rand(size, generator=generator, dtype=wide) + 0.5 for _ in range(2))
    expected = everything(reference, x, lengths, grad, chosen, weights, masks)
    on_device = [None if v is None else v.to(DEVICE) for v in (x, lengths, grad)]
    if weights is not None:
        weights = tuple(v.to(DEVICE) for v in weights)
    found = everything(
        kernels,
        *on_device,
        chosen,
        weights,
        None if masks is None else masks.to(DEVICE),
        tuple(v.to(DEVICE) for v in expected[1:3]),
    )
    statistics = torch.float64 if dtype is torch.float64 else torch.float32
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        # The terms of sums of gradients cancel.
        size = (x.numel() / theirs.numel()) ** 0.5 if index > 3 else 0.0
        assert_close(ours, theirs, dtype if index in (0, 3) else statistics, size)
    assert found[0].dtype is found[3].dtype is dtype
    assert found[0].stride() == torch.empty_like(x).stride()
    padding = ~reference.valid_frames(lengths, shape).expand(shape)
    assert (found[0].cpu()[padding] == 0).all()
    assert (found[3].cpu()[padding] == 0).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("dtype", "over", "log"), every(5, TOLERANCE, OVER, [NO_LOG, LOG1P, LOG10])
)
def test_results_are_those_of_the_reference(dtype: torch.dtype, over: str, log: int) -> None:
    x, lengths = batch((4, 6, 1, 2, 3), (6, 5, 1, 0), dtype)
    compare(x, lengths, options(over, log))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("over", [over for (over,) in every(3, OVER)])
def test_masks_of_channels_and_no_masks(over: str) -> None:
    x, lengths = batch((2, 6, 1, 2, 5), (6, 3), torch.float32)
    compare(x, lengths, options(over), per_channel=True)
    compare(x, lengths, options(over), per_channel=None, affine=False)


@pytest.mark.parametrize(
    ("shape", "over"), every(5, [(2, 70, 1, 1, 40), (1, 300, 1, 1, 3), (2, 20, 2, 2, 17)], OVER)
)
def test_tiles_as_they_are_chosen(shape: tuple[int, ...], over: str) -> None:
    lengths = tuple(shape[1] - 5 * n for n in range(shape[0]))
    x, lengths_ = batch(shape, lengths, torch.float32)
    compare(x, lengths_, options(over, LOG1P))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "frames adjacent": lambda x: x.movedim(1, 4).contiguous().movedim(4, 1),
    "every other electrode": lambda x: x.repeat_interleave(2, 3)[:, :, :, ::2],
    "bins apart": lambda x: x.repeat_interleave(3, 4)[..., ::3],
    "bands last": lambda x: x.movedim(2, 4).contiguous().movedim(4, 2),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("layout", "over"), every(3, LAYOUTS, ["T", "NTF"]))
def test_layouts(layout: str, over: str) -> None:
    x, lengths = batch((2, 6, 2, 2, 3), (6, 3), torch.float32)
    compare(LAYOUTS[layout](x), lengths, options(over))
    compare(x, lengths, options(over), grad=LAYOUTS[layout](torch.randn(x.shape)))
    compare(x, lengths, options(over), grad=torch.tensor(0.5).expand(x.shape))


@pytest.mark.usefixtures("small_tiles")
def test_offsets_beyond_32_bits() -> None:
    step = 2**30
    try:
        memory = torch.empty(3 * step + 2, dtype=torch.float16)  # never touched but for 8 values
    except RuntimeError:
        pytest.skip("there is no room for addresses more than 2^31 values apart")
    if ON_GPU:
        memory = torch.empty(3 * step + 2, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((1, 4, 1, 1, 2), (0, step, 0, 0, 1))
    values = torch.tensor([[1.0, 2], [3, 5], [2, 2], [7, 1]]).half().view(1, 4, 1, 1, 2)
    x.copy_(values)
    lengths = torch.tensor([4])
    grad = values.flip(1).roll(1, 4).contiguous()
    expected = everything(reference, values, lengths, grad, options())
    on_device = (lengths.to(DEVICE), grad.to(DEVICE))
    found = everything(kernels, x, *on_device, options())
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, torch.float16)


def test_given_statistics_are_constants() -> None:
    x, lengths = batch(dtype=torch.float32)
    chosen = options("NT", LOG1P)
    statistics = reference.moments(x.flip(0).nan_to_num(1.0), lengths, chosen)
    grad = torch.randn(x.shape)
    given = (*statistics, None, None, 0, None, None, chosen)
    expected = reference.input_gradient(grad, x, lengths, *given)
    tensors = [v.to(DEVICE) for v in (grad, x, lengths, *statistics)]
    found = kernels.input_gradient(*tensors, None, None, 0, None, None, chosen)
    assert_close(found, expected, torch.float32)
    y = kernels.normalise(*tensors[1:], None, None, None, 0, chosen)
    wanted = reference.normalise(x, lengths, *statistics, None, None, None, 0, chosen)
    assert_close(y, wanted, torch.float32)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_masks_are_the_reference_s_to_the_bit(seed: int, per_channel: bool) -> None:
    lengths = torch.tensor([50, 8, 1, 0, 99, -3])
    shape = (6, 50, 2, 3, 6)
    drawing = MASKS._replace(per_channel=per_channel)
    tensors = torch.tensor([seed]), lengths
    expected = reference.draw_masks(*tensors, shape, drawing)
    found = kernels.draw_masks(*(v.to(DEVICE) for v in tensors), shape, drawing)
    assert found.dtype is torch.int32
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize("over", OVER)
def test_mean_far_above_the_deviation(over: str, outlier: bool) -> None:
    x = torch.randn((2, 500, 1, 1, 3), generator=torch.Generator().manual_seed(0)) + 1e4
    if outlier:
        x[:, 0] = 3e4
    lengths = torch.tensor([500, 300])
    chosen = options(over)
    expected = reference.forward(x, lengths, None, None, None, 0, chosen)
    found = kernels.forward(x.to(DEVICE), lengths.to(DEVICE), None, None, None, 0, chosen)
    largest = float(expected[0].abs().max())
    assert float((found[0].cpu() - expected[0]).abs().max()) < 1e-6 * largest
    assert float((found[2].cpu() / expected[2] - 1).abs().max()) < 1e-6


def test_logarithm_of_one_plus_little() -> None:
    x = torch.rand((1, 60, 1, 1, 3), generator=torch.Generator().manual_seed(0)) * 1e-5
    x[0, 0, 0, 0, 0] = 0.0
    lengths = torch.tensor([60])
    compare(x, lengths, options("T", LOG1P, eps=0.0), per_channel=None, affine=False)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", ["T", "NT"])
def test_constant_features_without_eps(over: str, dtype: torch.dtype) -> None:
    x = torch.full((3, 11, 1, 1, 2), 0.1, dtype=dtype, device=DEVICE)
    lengths = torch.tensor([11, 6, 0], device=DEVICE)
    chosen = options(over, LOG10, eps=0.0)
    y, mean, var, dx, _, _ = everything(kernels, x, lengths, torch.randn_like(x), chosen)
    assert (var == 0).all()
    assert (y == 0).all()
    assert (dx == 0).all()
    assert torch.isfinite(mean).all()


@pytest.mark.usefixtures("small_tiles")
def test_lengths_are_brought_into_range() -> None:
    x, _ = batch((3, 9, 1, 1, 5), (9, 9, 9), torch.float32)
    for over in ("T", "NTF"):
        results = []
        for lengths in ([99, -1, 3], [9, 0, 3]):
            tensors = x.to(DEVICE), torch.tensor(lengths, device=DEVICE), x.to(DEVICE)
            results.append(everything(kernels, *tensors, options(over)))
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0, 4, 1, 1, 2), (2, 0, 1, 1, 2), (2, 4, 1, 1, 0)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device=DEVICE)
    lengths = torch.zeros(shape[0], dtype=torch.int64, device=DEVICE)
    for over in OVER:
        found = everything(kernels, x, lengths, x, options(over))
        expected = everything(reference, x.cpu(), lengths.cpu(), x.cpu(), options(over))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.cpu(), theirs)


def test_batches_beyond_the_grid_are_refused() -> None:
    x = torch.empty((2**20, 2**20, 1, 1, 2**10), device="meta")
    with pytest.raises(ValueError, match="programs on the GPU; 2147483647 of each are possible"):
        kernels.moments(x, torch.empty(2**20, device="meta"), options())


MARGIN = 64


class Guarded:
    """torch, but what it allocates has a margin on both sides; and what may be accessed."""

    def __init__(self) -> None:
        self.memories: list[tuple[Tensor, Tensor]] = []
        self.readable: set[int] = set()
        self.writable: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def embed(self, values: Tensor) -> Tensor:
        """A copy of the same strides, with margins of NaN or a number that stands out."""
        reach = sum(
            (size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True)
        )
        fill = torch.nan if values.is_floating_point() else -(2**30)
        memory = torch.full((reach + 1 + 2 * MARGIN,), fill, dtype=values.dtype)
        inside = memory.as_strided(values.shape, values.stride(), MARGIN)
        inside.copy_(values)
        margins = torch.cat([memory[:MARGIN], memory[-MARGIN:]])
        self.memories.append((memory, margins))
        return inside

    def new(self, values: Tensor) -> Tensor:
        inside = self.embed(values.fill_(-77))
        self.readable |= addresses(inside)
        self.writable |= addresses(inside)
        return inside

    def empty(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.new(torch.empty(*args, **kwargs))

    def empty_like(self, x: Tensor) -> Tensor:
        return self.new(torch.empty_like(x))

    def check(self) -> None:
        for memory, margins in self.memories:
            now = torch.cat([memory[:MARGIN], memory[-MARGIN:]])
            assert torch.equal(now.nan_to_num(12345), margins.nan_to_num(12345))


def addresses(values: Tensor, chosen: Tensor | None = None) -> set[int]:
    """Where the values lie, or those chosen by a mask."""
    at = np.zeros(values.shape, dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        shape = [1] * values.dim()
        shape[axis] = size
        at += (np.arange(size) * stride * values.element_size()).reshape(shape)
    if chosen is not None:
        at = at[chosen.expand(values.shape).numpy()]
    return set((at.ravel() + values.data_ptr()).tolist())


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    from triton.runtime import interpreter

    guard = Guarded()
    monkeypatch.setattr(kernels, "torch", guard)
    memory = interpreter._interpreter

    def load(pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        assert set(pointers[mask].ravel().tolist()) <= guard.readable
        return memory.load(pointers, mask, other, dtype)

    def store(pointers: Any, values: Any, mask: Any) -> Any:
        assert set(pointers[mask].ravel().tolist()) <= guard.writable
        return memory.store(pointers, values, mask)

    monkeypatch.setattr(interpreter, "_interpreter", SimpleNamespace(load=load, store=store))
    yield guard
    assert guard.memories
    guard.check()


@interpreted
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("layout", ["time first", "every other electrode", "frames adjacent"])
@pytest.mark.parametrize("over", OVER)
def test_nothing_is_touched_but_valid_frames(over: str, layout: str, guarded: Guarded) -> None:
    x, lengths = batch((3, 7, 1, 2, 3), (7, 3, 0), torch.float32)
    chosen = options(over, LOG1P)
    shape = tuple(x.shape)
    drawing = MASKS._replace(per_channel=layout == "time first")
    masks = reference.draw_masks(torch.tensor([5]), lengths, shape, drawing)
    valid = reference.valid_frames(lengths, shape)
    kept = reference.kept(lengths, shape, masks, MASKS.time_count)
    x = guarded.embed(LAYOUTS[layout](x))
    grad = guarded.embed(torch.where(kept, torch.randn(shape), torch.nan))
    lengths = guarded.embed(lengths)
    weight = guarded.embed(torch.rand((1, 2, 1 if "F" in over else 3)))
    guarded.readable |= addresses(x, valid) | addresses(grad, kept)
    guarded.readable |= addresses(lengths) | addresses(weight)
    seed = guarded.embed(torch.tensor([5]))
    guarded.readable |= addresses(seed)
    drawn = kernels.draw_masks(seed, lengths, shape, drawing)
    assert torch.equal(drawn, masks)
    found = everything(kernels, x, lengths, grad, chosen, (weight, weight), drawn)
    expected = everything(reference, x, lengths, grad, chosen, (weight, weight), masks)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, torch.float32)
