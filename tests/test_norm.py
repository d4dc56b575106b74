"""spectrogram_norm against the definition: values, gradients, padding, masks, layouts, mistakes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from norm_cases import MASKS, OVER, batch, options, plain

import fastctc
from fastctc import _norm_checks, _norm_ops
from fastctc._native import _C
from fastctc.reference import spectrogram_norm as reference

LOGS = [None, "log1p", "log10"]
# Steps of rounding, and a float32 sum's share beside them.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 5e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def relaid(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same values with their axes in another order in memory."""
    back = tuple(order.index(axis) for axis in range(x.dim()))
    return x.permute(order).contiguous().permute(back)


def assert_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("over", OVER)
def test_values_and_gradients(cpu_target, over, log, dtype):
    # 3 * 23 features: whole vectors and a rest; 70 frames: more than one block of sums.
    for shape in [(3, 70, 1, 3, 23), (3, 9, 2, 2, 3)]:
        lengths = (shape[1], 5, 1)
        stored, frames = batch(shape, lengths, dtype)
        chosen = options(over, {None: 0, "log1p": 1, "log10": 2}[log])
        grad = torch.randn(shape, dtype=torch.float64).to(dtype)
        leaf = stored.double().requires_grad_()
        wanted = plain(leaf, frames, chosen)
        (wanted_dx,) = torch.autograd.grad(wanted, leaf, grad.double())
        valid = reference.valid_frames(frames, shape).expand(shape)
        for order in [(0, 1, 2, 3, 4), (1, 0, 2, 3, 4), (0, 2, 3, 4, 1), (1, 2, 3, 4, 0)]:
            x = relaid(stored, order).requires_grad_()
            y = fastctc.spectrogram_norm(x, frames, layout="NTBEF", over=over, log=log)
            assert y.dtype is dtype
            assert_near(y.detach(), wanted.detach(), dtype)
            assert (y[~valid] == 0).all()
            (dx,) = torch.autograd.grad(y, x, grad)
            assert dx.dtype is dtype
            assert_near(dx[valid], wanted_dx[valid], dtype)
            assert (dx[~valid] == 0).all()


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("per_channel", [False, True])
def test_masks_weight_and_bias(cpu_target, over, per_channel):
    x, frames = batch((3, 40, 2, 3, 5), (40, 13, 7))
    chosen = options(over)
    drawn = MASKS._replace(per_channel=per_channel)
    masks = reference.draw_masks(torch.tensor([5]), frames, tuple(x.shape), drawn)
    keep = reference.kept(frames, tuple(x.shape), masks, drawn.time_count)
    shape = (2, 3) if "F" in over else (2, 3, 5)
    weight = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    bias = torch.rand(shape, dtype=torch.float64).requires_grad_()
    parameters = (weight, bias)
    leaf = x.clone().requires_grad_()
    full = [p[..., None] if "F" in over else p for p in parameters]
    wanted = plain(leaf, frames, chosen, *full, keep)
    grad = torch.randn(x.shape, dtype=torch.float64)
    wanted_grads = torch.autograd.grad(wanted, (leaf, *parameters), grad)
    for order in [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1)]:
        ours = relaid(x, order).requires_grad_()
        y = fastctc.spectrogram_norm(
            ours, frames, layout="NTBEF", over=over, weight=weight, bias=bias,
            time_masks=(2, 4, 0.5), freq_masks=(2, 2), masks_per_channel=per_channel, seed=5,
        )  # fmt: skip
        torch.testing.assert_close(y, wanted, rtol=1e-11, atol=1e-11)
        assert (y[~keep.expand_as(y)] == 0).all()
        grads = torch.autograd.grad(y, (ours, *parameters), grad)
        valid = reference.valid_frames(frames, tuple(x.shape)).expand_as(x)
        torch.testing.assert_close(grads[0][valid], wanted_grads[0][valid], rtol=1e-9, atol=1e-10)
        for found, expected in zip(grads[1:], wanted_grads[1:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("frames_inside", [False, True])
def test_a_mean_far_above_the_deviation(cpu_target, over, frames_inside):
    generator = torch.Generator().manual_seed(1)
    exact = 1e4 + torch.randn((4, 1500, 1, 2, 40), generator=generator, dtype=torch.float64)
    exact[2] += 3
    x = exact.float()
    if frames_inside:
        x = relaid(x, (0, 2, 3, 4, 1))
    frames = torch.tensor([1500, 1000, 1499, 3])
    wanted = plain(x.double(), frames, options(over))
    y = fastctc.spectrogram_norm(x, frames, layout="NTBEF", over=over)
    # torch in float32 is off by 2e-3 here.
    assert float((y.double() - wanted).abs().max()) < 4e-6


@pytest.mark.parametrize("over", ["T", "NT"])
@pytest.mark.parametrize("at", [0, 1, 700, 1499])
def test_one_outlier_among_the_frames(cpu_target, over, at):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 1500, 40), generator=generator)
    x[:, at] = 1e4
    frames = torch.tensor([1500, 1500])
    wanted = plain(x[:, :, None, None].double(), frames, options(over))[:, :, 0, 0]
    y = fastctc.spectrogram_norm(x, frames, over=over)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
@pytest.mark.parametrize("over", OVER)
def test_the_smallest_and_the_largest_deviations(cpu_target, over, scale):
    x = scale * torch.randn((2, 500, 20), generator=torch.Generator().manual_seed(2))
    y = fastctc.spectrogram_norm(x, over=over, eps=0.0)
    wanted = fastctc.spectrogram_norm(x.double(), over=over, eps=0.0)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize("over", OVER)
def test_constant_features_are_zeros(cpu_target, over, eps):
    x = torch.full((2, 50, 37), 0.1).requires_grad_()
    y = fastctc.spectrogram_norm(x, [50, 20], over=over, eps=eps)
    assert (y == 0).all()
    y.backward(torch.randn(y.shape))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if eps == 0:
        assert (x.grad == 0).all()


@pytest.mark.parametrize("over", OVER)
def test_utterances_of_no_frame_and_of_one(cpu_target, over):
    x = torch.randn((3, 6, 20)).requires_grad_()
    y = fastctc.spectrogram_norm(x, [0, 1, 6], over=over)
    assert y.isfinite().all()
    assert (y[0] == 0).all()
    y.backward(torch.randn(y.shape))
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    if over == "T":  # its mean is itself, whatever it is
        assert (y[1] == 0).all()
        assert (x.grad[1] == 0).all()


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0)])
@pytest.mark.parametrize("over", OVER)
def test_empty_batches(over, shape):
    x = torch.randn(shape, requires_grad=True)
    y = fastctc.spectrogram_norm(x, [0] * shape[0], over=over)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


@pytest.mark.parametrize("over", OVER)
def test_padding_is_never_read_nor_given_a_gradient(cpu_target, over):
    x = torch.randn((2, 30, 20))
    poisoned = x.clone()
    poisoned[1, 11:] = torch.nan
    frames = torch.tensor([30, 11])
    grad = torch.randn(x.shape)
    grad[1, 11:] = torch.inf
    results = []
    for each in (x, poisoned):
        leaf = each.clone().requires_grad_()
        y = fastctc.spectrogram_norm(leaf, frames, over=over)
        y.backward(grad)
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert (results[1][0][1, 11:] == 0).all()
    assert (results[1][1][1, 11:] == 0).all()


def test_infinite_values_stay_with_their_feature(cpu_target):
    x = torch.randn((2, 30, 20))
    clean = fastctc.spectrogram_norm(x)
    x[0, 3, 7] = torch.inf
    x[1, 4, 19] = torch.nan
    y = fastctc.spectrogram_norm(x)
    assert y[0, :, 7].isnan().any()
    assert y[1, :, 19].isnan().all()
    y[0, :, 7] = clean[0, :, 7]
    y[1, :, 19] = clean[1, :, 19]
    torch.testing.assert_close(y, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log", ["log1p", "log10"])
def test_logarithms(cpu_target, log, dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.cat(
        [torch.logspace(-30, 30, 401, dtype=dtype), torch.tensor([0.0, tiny], dtype=dtype)]
    )
    mean, var = torch.zeros((1, 1, 1, 1), dtype=torch.float64), torch.ones((1, 1, 1, 1))
    frames = torch.tensor([len(x)])
    chosen = options("NTF", {"log1p": 1, "log10": 2}[log], eps=0.0)
    y = torch.ops.fastctc.spectrogram_normalise(
        x.view(1, -1, 1, 1, 1), frames, mean, var.double(), None, None, None, 0, *chosen
    ).flatten()
    exact = torch.log1p(x.double()) if log == "log1p" else torch.log10(x.double() + 1e-6)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=4 * ulp, atol=4 * ulp * (log == "log10"))


def test_results_do_not_depend_on_threads(cpu_target):
    x = torch.randn((5, 700, 161))
    grad = torch.randn(x.shape)
    frames = torch.tensor([700, 3, 650, 256, 257])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for over in OVER:
                leaf = x.clone().requires_grad_()
                y = fastctc.spectrogram_norm(leaf, frames, over=over, time_masks=(2, 9), seed=1)
                y.backward(grad)
                found.append((threads, over, y.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for _, over, y, dx in found:
        first = next(each for each in found if each[1] == over)
        assert torch.equal(y, first[2])
        assert torch.equal(dx, first[3])


def test_numbers_of_numpy_are_numbers():
    x = torch.randn((2, 30, 20))
    plain = {"time_masks": (2, 9, 0.5), "seed": 3, "eps": 0.5}
    of_numpy = {
        "time_masks": (np.int64(2), np.int32(9), np.float32(0.5)),
        "seed": np.int64(3),
        "eps": np.float32(0.5),
    }
    wanted = fastctc.spectrogram_norm(x, **plain)
    assert torch.equal(fastctc.spectrogram_norm(x, **of_numpy), wanted)


def test_masks_are_replayed_by_their_seed():
    x = torch.randn((4, 60, 20))
    masked = {"time_masks": (2, 20), "freq_masks": (2, 6)}
    first = fastctc.spectrogram_norm(x, seed=11, **masked)
    assert torch.equal(first, fastctc.spectrogram_norm(x, seed=torch.tensor([11]), **masked))
    assert not torch.equal(first, fastctc.spectrogram_norm(x, seed=12, **masked))
    torch.manual_seed(3)
    drawn = fastctc.spectrogram_norm(x, **masked)
    assert not torch.equal(drawn, fastctc.spectrogram_norm(x, **masked))
    torch.manual_seed(3)
    assert torch.equal(drawn, fastctc.spectrogram_norm(x, **masked))
    assert (first == 0).any()
    # Masks come after the statistics: what they leave is what would be there without them.
    plain_y = fastctc.spectrogram_norm(x)
    assert torch.equal(first[first != 0], plain_y[first != 0])


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("per_channel", [False, True])
def test_masks_are_drawn_as_the_reference_draws_them(seed, per_channel):
    if _C is None:
        pytest.skip("built without the compiled module: the reference draws them")
    from fastctc import _norm_cpu

    lengths = torch.tensor([50, 0, 1, 37])
    drawn = MASKS._replace(per_channel=per_channel)
    value = torch.tensor([(seed + 2**63) % 2**64 - 2**63])
    ours = _norm_cpu.draw_masks(value, lengths, (4, 50, 2, 3, 33), drawn)
    assert torch.equal(ours, reference.draw_masks(value, lengths, (4, 50, 2, 3, 33), drawn))


@pytest.mark.parametrize(
    ("layout", "order"), [("TNF", (1, 0, 4)), ("NFT", (0, 4, 1)), ("TNBEF", (1, 0, 2, 3, 4))]
)
def test_layouts_name_the_axes(layout, order):
    canonical, frames = batch((3, 12, 1, 1, 6), (12, 4, 7))
    others = [axis for axis in range(5) if axis not in order]
    axes = (*order, *others)

    def laid_out(values):
        return values.permute(axes).reshape([values.shape[axis] for axis in order])

    y = fastctc.spectrogram_norm(laid_out(canonical), frames, layout=layout)
    torch.testing.assert_close(y, laid_out(plain(canonical, frames, options())))


def test_one_utterance_without_a_batch_axis():
    x = torch.randn((30, 8))
    both = fastctc.spectrogram_norm(x[None], [20])
    assert torch.equal(fastctc.spectrogram_norm(x, 20, layout="TF"), both[0])


@pytest.mark.parametrize("over", OVER)
def test_gradcheck(over):
    x, frames = batch((2, 6, 1, 2, 3), (6, 3))
    x = x.nan_to_num(0.5).requires_grad_()
    weight = torch.rand((1, 2) if "F" in over else (1, 2, 3), dtype=torch.float64).requires_grad_()
    for log in LOGS:

        def norm(x, weight, log=log):
            return fastctc.spectrogram_norm(
                x, frames, layout="NTBEF", over=over, log=log, weight=weight, bias=weight,
                time_masks=(1, 3), freq_masks=(1, 2), seed=1,
            )  # fmt: skip

        assert torch.autograd.gradcheck(norm, (x, weight))


def test_the_gradient_has_no_second_derivative():
    x = torch.randn((2, 9, 4), requires_grad=True)
    y = fastctc.spectrogram_norm(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"lengths": [9, 12]}, ValueError, r"lengths\[1\] is 12: it must be from 0 to 9"),
        ({"lengths": [-1, 9]}, ValueError, r"lengths\[0\] is -1"),
        ({"lengths": [9]}, ValueError, "each of the 2 utterances"),
        ({"lengths": [9.0, 9.0]}, TypeError, "lengths must be integers, got torch.float32"),
        ({"lengths": "99"}, TypeError, "lengths must be a tensor or a list"),
        ({"lengths": object()}, TypeError, "lengths must be a tensor or a list"),
        ({"layout": "NTQ"}, ValueError, "'NTQ'"),
        ({"layout": "NTBF"}, ValueError, "must have the 4 axes"),
        ({"over": "F"}, ValueError, "got 'F'"),
        ({"over": "TB"}, ValueError, "got 'TB'"),
        ({"log": "ln"}, ValueError, "log must be None, 'log1p' or 'log10', got 'ln'"),
        ({"log": ["ln"]}, ValueError, "log must be None, 'log1p' or 'log10', got"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
        ({"log_eps": "1"}, TypeError, "log_eps must be a number, got str"),
        ({"time_masks": (1,)}, ValueError, r"time_masks must be \(count, width\)"),
        ({"time_masks": (1, -3)}, ValueError, "whole numbers from 0"),
        (
            {"time_masks": (2**31 - 1, 1)},
            ValueError,
            "time_masks asks for 2147483647 masks: there may be 64 at most",
        ),
        ({"freq_masks": (65, 1)}, ValueError, "freq_masks asks for 65 masks"),
        ({"masks_per_channel": 1}, TypeError, "masks_per_channel must be a bool, got int"),
        ({"seed": 1.5}, TypeError, "seed must be an int or a tensor, got float"),
        ({"seed": torch.ones(1)}, ValueError, "one int64 in a tensor, got torch.float32"),
        ({"time_masks": (1, 3, 1.5)}, ValueError, "share of time_masks must be at most 1"),
        ({"time_masks": (1, 3, "x")}, TypeError, "share of time_masks must be a number, got str"),
        (
            {"time_masks": (1, 3), "masks_per_channel": "yes"},
            TypeError,
            "masks_per_channel must be a bool, got str",
        ),
        ({"freq_masks": (1, 2, 0.5)}, ValueError, r"freq_masks must be \(count, width\)"),
        ({"weight": torch.ones(4)}, ValueError, "weight and bias must be given together"),
        ({"weight": [1.0], "bias": [1.0]}, TypeError, "weight must be a Tensor, got list"),
        (
            {"weight": torch.ones(4), "bias": torch.ones(5)},
            ValueError,
            r"weight must have .*\(5,\)",
        ),
        ({"time_masks": (1, 3), "seed": 1.5}, TypeError, "seed must be an int"),
        ({"time_masks": (1, 3), "seed": torch.ones(2)}, ValueError, "one int64 in a tensor"),
    ],
)
def test_mistakes_are_named(change, error, said):
    with pytest.raises(error, match=said):
        fastctc.spectrogram_norm(**{"x": torch.randn(2, 9, 5)} | change)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 4, 0)])
def test_lengths_of_empty_batches_are_checked(shape):
    with pytest.raises(ValueError, match=rf"lengths\[1\] is 9: it must be from 0 to {shape[1]}"):
        fastctc.spectrogram_norm(torch.zeros(shape), [0, 9])


def test_lengths_on_the_host_of_a_batch_on_a_device():
    x = torch.empty((2, 9, 1, 1, 5), device="meta")
    for lengths in ([9, 12], torch.tensor([9, 12])):
        with pytest.raises(ValueError, match=r"lengths\[1\] is 12: it must be from 0 to 9"):
            _norm_checks.lengths_of(x, lengths)
    assert _norm_checks.lengths_of(x, torch.tensor([9, 12], device="meta")).is_meta


def test_what_is_no_spectrogram():
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        fastctc.spectrogram_norm(torch.ones((2, 9, 5), dtype=torch.int64))
    with pytest.raises(TypeError, match="got list"):
        fastctc.spectrogram_norm([[1.0]])
    with pytest.raises(TypeError, match="dense tensor"):
        fastctc.spectrogram_norm(torch.ones((2, 9, 5)).to_sparse())
    with pytest.raises(TypeError, match="got a nested tensor"):
        fastctc.spectrogram_norm(torch.nested.nested_tensor([torch.ones(9, 5)]))


def test_without_triton_a_gpu_is_served_by_torch_with_one_word_about_it(monkeypatch):
    monkeypatch.setattr(_norm_ops, "why_missing", lambda: "triton is not installed")
    _norm_ops.kernels.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="without triton"):
            assert _norm_ops.kernels("cuda") is reference
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert _norm_ops.kernels("cuda") is reference
    finally:
        _norm_ops.kernels.cache_clear()


def test_without_the_compiled_module_the_reference_serves(monkeypatch):
    monkeypatch.setattr(_norm_ops, "_C", None)
    _norm_ops.kernels.cache_clear()
    x = torch.randn((2, 9, 4), requires_grad=True)
    try:
        with pytest.warns(RuntimeWarning, match="without a compiled module"):
            y = fastctc.spectrogram_norm(x, [9, 4], time_masks=(1, 3), seed=1)
        y.sum().backward()
    finally:
        _norm_ops.kernels.cache_clear()
    monkeypatch.undo()
    torch.testing.assert_close(y, fastctc.spectrogram_norm(x, [9, 4], time_masks=(1, 3), seed=1))


@pytest.mark.parametrize("log", [None, "log1p", "log10"])
@pytest.mark.parametrize("layout", ["NTF", "NFT"])
def test_padding_changes_no_bit(layout: str, log: str | None) -> None:
    """The mean of one frame is that frame, and its result exactly 0, in whichever lane it lies."""
    x = torch.rand(3, 70, 37, generator=torch.manual_seed(11)) * 5
    lengths = torch.tensor([1, 33, 1])
    results = []
    for frames in (33, 48, 70):
        padded = x[:, :frames] if layout == "NTF" else x[:, :frames].movedim(1, 2).contiguous()
        y = fastctc.spectrogram_norm(padded, lengths, layout=layout, log=log)
        results.append((y if layout == "NTF" else y.movedim(1, 2))[:, :33])
    assert all(torch.equal(y, results[0]) for y in results)
    assert (results[0][::2] == 0).all()
