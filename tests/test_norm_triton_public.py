"""The public calls of spectrogram normalisation on the Triton kernels.

CUDA tensors where there is a GPU. Elsewhere CPU tensors take the same way, through checks,
operators, autograd and modules, to the kernels that triton's interpreter runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from norm_cases import MASKS, OVER, batch, operator_calls, options, plain
from torch import Tensor, nn
from triton_kernels import DEVICE, ON_GPU, every, kernels

import fastctc
from fastctc import _norm_ops
from fastctc.reference import spectrogram_norm as reference

pytestmark = [pytest.mark.gpu] if ON_GPU else []
LOGS = [None, "log1p", "log10"]
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 5e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
SHAPE, LENGTHS = (4, 9, 2, 2, 3), (9, 4, 1, 0)
MASKED: dict[str, Any] = {"time_masks": (2, 4, 0.5), "freq_masks": (2, 2)}
FRAMES = torch.tensor([20, 12, 1, 0])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(_norm_ops, "kernels", lambda device: kernels)


def on_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.to(DEVICE) for each in tensors)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        found.detach().double().cpu(), wanted.detach().double().cpu(),
        rtol=tolerance, atol=tolerance * scale,
    )  # fmt: skip


def relaid(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values with their axes in another order in memory, and gaps in the last."""
    back = tuple(order.index(axis) for axis in range(x.dim()))
    return x.permute(order).repeat_interleave(2, -1)[..., ::2].permute(back)


def padded(*shape: int) -> Tensor:
    """(4, 20, ...) whose padding is NaN."""
    x = torch.randn((4, 20, *shape))
    for n, frames in enumerate(FRAMES.tolist()):
        x[n, frames:] = torch.nan
    return x


@pytest.mark.parametrize(("over", "dtype"), every(5, OVER, TOLERANCE))
def test_values_and_gradients(over: str, dtype: torch.dtype) -> None:
    stored, frames = batch(SHAPE, LENGTHS, dtype)
    code = list(TOLERANCE).index(dtype) % 3
    chosen = options(over, code)
    leaf = stored.double().requires_grad_()
    wanted = plain(leaf, frames, chosen)
    grad = torch.randn(SHAPE, dtype=torch.float64).to(dtype)
    (wanted_dx,) = torch.autograd.grad(wanted, leaf, grad.double())
    valid = reference.valid_frames(frames, SHAPE).expand(SHAPE)
    for order in [(1, 0, 2, 3, 4), (0, 2, 3, 4, 1)]:
        x = relaid(stored.to(DEVICE), order).requires_grad_()
        y = fastctc.spectrogram_norm(x, frames, layout="NTBEF", over=over, log=LOGS[code])
        assert y.dtype is dtype
        near(y, wanted, dtype)
        (dx,) = torch.autograd.grad(y, x, grad.to(DEVICE))
        assert dx.dtype is dtype
        near(dx.cpu()[valid], wanted_dx[valid], dtype)
        for each in (y, dx):
            assert (each.cpu()[~valid] == 0).all()


@pytest.mark.parametrize(("over", "per_channel"), every(3, OVER, [False, True]))
def test_masks_weight_and_bias(over: str, per_channel: bool) -> None:
    x, frames = batch(SHAPE, LENGTHS)
    drawn = MASKS._replace(per_channel=per_channel)
    masks = reference.draw_masks(torch.tensor([5]), frames, SHAPE, drawn)
    keep = reference.kept(frames, SHAPE, masks, drawn.time_count)
    shape = SHAPE[2:4] if "F" in over else SHAPE[2:]
    weight = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    bias = torch.rand(shape, dtype=torch.float64).requires_grad_()
    full = [p[..., None] if "F" in over else p for p in (weight, bias)]
    leaf = x.clone().requires_grad_()
    wanted = plain(leaf, frames, options(over), *full, keep)
    grad = torch.randn(SHAPE, dtype=torch.float64)
    wanted_grads = torch.autograd.grad(wanted, (leaf, weight, bias), grad)
    ours = [v.detach().to(DEVICE).requires_grad_() for v in (x, weight, bias)]
    y = fastctc.spectrogram_norm(
        ours[0], frames, layout="NTBEF", over=over, weight=ours[1], bias=ours[2],
        masks_per_channel=per_channel, seed=5, **MASKED,
    )  # fmt: skip
    near(y, wanted, torch.float64)
    assert (y.cpu()[~keep.expand_as(y)] == 0).all()
    grads = torch.autograd.grad(y, ours, grad.to(DEVICE))
    valid = reference.valid_frames(frames, SHAPE).expand_as(x)
    assert (grads[0].cpu()[~valid] == 0).all()
    near(grads[0].cpu()[valid], wanted_grads[0][valid], torch.float64)
    for found, expected in zip(grads[1:], wanted_grads[1:], strict=True):
        near(found, expected, torch.float64)


def test_only_a_weight_to_learn() -> None:
    x, frames = batch(SHAPE, LENGTHS, torch.float32)
    norm = fastctc.SpectrogramNorm(4, layout="NTBEF").to(DEVICE)
    grads = []
    for leaf in (x.to(DEVICE), x.to(DEVICE).requires_grad_()):
        norm.zero_grad()
        norm(leaf, frames).square().sum().backward()
        grads.append(norm.weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.parametrize("over", ["T", "NTF"])
def test_gradcheck(over: str) -> None:
    x, frames = batch((2, 5, 1, 1, 2), (5, 2))
    x, weight = on_device(x.nan_to_num(0.5), torch.rand((1, 1), dtype=torch.float64))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        full = weight if over == "NTF" else weight[..., None].expand(1, 1, 2)
        return fastctc.spectrogram_norm(
            x, frames, layout="NTBEF", over=over, log="log10", weight=full, bias=full,
            time_masks=(1, 2), seed=1,
        )  # fmt: skip

    assert torch.autograd.gradcheck(
        norm, (x.requires_grad_(), weight.requires_grad_()), fast_mode=True
    )


@pytest.mark.parametrize("over", OVER)
def test_utterances_of_no_frame_and_of_one(over: str) -> None:
    x = torch.randn((3, 6, 5), device=DEVICE).requires_grad_()
    y = fastctc.spectrogram_norm(x, [0, 1, 6], over=over)
    assert y.isfinite().all()
    assert (y[0] == 0).all()
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    if over == "T":  # its mean is itself, whatever it is
        assert (y[1] == 0).all()
        assert (x.grad[1] == 0).all()
    for shape in [(0, 5, 4), (3, 0, 4), (3, 5, 0)]:
        empty = torch.empty(shape, device=DEVICE, requires_grad=True)
        fastctc.spectrogram_norm(empty, [0] * shape[0], over=over).sum().backward()
        assert empty.grad is not None


@pytest.mark.parametrize("over", OVER)
def test_constant_features_are_zeros(over: str) -> None:
    x = torch.full((2, 9, 7), 0.1, device=DEVICE).requires_grad_()
    y = fastctc.spectrogram_norm(x, [9, 5], over=over, eps=0.0)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    assert (y == 0).all()
    assert (x.grad == 0).all()


def test_masks_are_those_of_the_cpu_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn((3, 30, 8))
    there = x.to(DEVICE)
    lengths = [30, 17, 5]
    first = fastctc.spectrogram_norm(there, lengths, seed=11, **MASKED)
    seed = torch.tensor([11])
    assert torch.equal(first, fastctc.spectrogram_norm(there, lengths, seed=seed, **MASKED))
    assert not torch.equal(first, fastctc.spectrogram_norm(there, lengths, seed=12, **MASKED))
    torch.manual_seed(3)
    drawn = fastctc.spectrogram_norm(there, lengths, **MASKED)
    assert not torch.equal(drawn, fastctc.spectrogram_norm(there, lengths, **MASKED))
    torch.manual_seed(3)
    assert torch.equal(drawn, fastctc.spectrogram_norm(there, lengths, **MASKED))
    monkeypatch.undo()
    on_cpu = fastctc.spectrogram_norm(x, lengths, seed=11, **MASKED)
    assert torch.equal(on_cpu == 0, first.cpu() == 0)
    near(first, on_cpu, torch.float32)


def test_lengths_of_a_device_are_brought_into_range() -> None:
    x = torch.randn((3, 6, 5), device=DEVICE)
    wild = torch.tensor([99, -1, 3], device=DEVICE, dtype=torch.int32)
    found = [fastctc.spectrogram_norm(x, each, over="NT") for each in (wild, [6, 0, 3])]
    assert torch.equal(*found)


def same_state(ours: nn.Module, theirs: nn.Module) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].cpu(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_sequence_batch_norm_is_batch_norm_of_the_gathered_frames(momentum: float | None) -> None:
    ours = fastctc.SequenceBatchNorm(10, momentum=momentum).to(DEVICE)
    theirs = nn.BatchNorm1d(10, momentum=momentum)
    valid = torch.arange(20) < FRAMES[:, None]
    for step in range(3):
        if step == 2:
            ours.eval()
            theirs.eval()
        x = padded(10)
        leaf = x.to(DEVICE).requires_grad_()
        rows = x.detach()[valid].requires_grad_()
        y, wanted = ours(leaf, FRAMES), theirs(rows)
        near(y.cpu()[valid], wanted, torch.float32)
        assert (y.cpu()[~valid] == 0).all()
        grad = torch.randn(x.shape)
        y.backward(grad.to(DEVICE))
        wanted.backward(grad[valid])
        assert leaf.grad is not None
        near(leaf.grad.cpu()[valid], rows.grad, torch.float32)
        near(ours.weight.grad, theirs.weight.grad, torch.float32)
        near(ours.bias.grad, theirs.bias.grad, torch.float32)
        same_state(ours, theirs)


def test_spectrogram_norm_unmasked_is_the_original() -> None:
    ours = fastctc.SpectrogramNorm(6, log="log10", masked=False).to(DEVICE)
    theirs = nn.BatchNorm2d(6)
    for _ in range(2):
        x = torch.rand((12, 3, 2, 3, 7))  # T, N, bands, electrodes, bins
        seen = torch.log10(x + 1e-6).movedim(0, -1).reshape(3, 6, 7, 12)
        wanted = theirs(seen).reshape(3, 2, 3, 7, 12).movedim(-1, 0)
        near(ours(x.to(DEVICE), [12, 3, 2]), wanted, torch.float32)
        same_state(ours, theirs)
        ours.eval()
        theirs.eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_mask_in_training_only_and_keep_the_dtype(dtype: torch.dtype) -> None:
    x, frames = batch((2, 9, 1, 2, 5), (9, 4), dtype)
    for norm in (
        fastctc.SpectrogramNorm(2, layout="NTBEF", log="log1p", **MASKED),
        fastctc.CepstralNorm(layout="NTBEF", log="log1p", **MASKED),
    ):
        norm.to(DEVICE)
        y = norm(x.to(DEVICE), frames, seed=3)
        valid = reference.valid_frames(frames, tuple(x.shape)).expand(x.shape)
        assert y.dtype is dtype
        assert (y.cpu()[valid] == 0).any()
        norm.eval()
        # A bfloat16 result may round to 0 by itself, here it does not.
        assert (norm(x.to(DEVICE), frames, seed=3).cpu()[valid] == 0).sum() < 3


def test_operators_pass_opcheck() -> None:
    for name, arguments in operator_calls("NTF", (2, 3, 1, 2, 2), DEVICE).items():
        torch.library.opcheck(getattr(torch.ops.fastctc, name).default, arguments)


def test_modules_compile_into_one_graph() -> None:
    x, frames = on_device(*batch((2, 6, 1, 2, 3), (6, 4), torch.float32))
    torch._dynamo.reset()
    for module in (
        fastctc.SpectrogramNorm(2, layout="NTBEF", log="log1p"),
        fastctc.CepstralNorm(layout="NTBEF", time_masks=(1, 3)),
    ):
        module.to(DEVICE)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
        found = []
        for call in (module, compiled):
            torch.manual_seed(5)
            leaf = x.clone().requires_grad_()
            y = call(leaf, frames)
            y.square().sum().backward()
            found.append((y.detach(), leaf.grad))
        torch.testing.assert_close(found[0], found[1])
