"""The normalisation modules against torch's own: running statistics, compiled, in processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from norm_cases import batch, operator_calls, options, plain
from torch import nn

import fastctc

FRAMES = torch.tensor([30, 12, 1, 0])


def padded(*shape: int) -> torch.Tensor:
    """(4, 30, ...) whose padding is NaN."""
    x = torch.randn((4, 30, *shape))
    for n, frames in enumerate(FRAMES.tolist()):
        x[n, frames:] = torch.nan
    return x


def same_state(ours: nn.Module, torchs: nn.Module) -> None:
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_sequence_batch_norm_is_batch_norm_of_the_gathered_frames(momentum):
    ours = fastctc.SequenceBatchNorm(20, momentum=momentum)
    theirs = nn.BatchNorm1d(20, momentum=momentum)
    theirs.load_state_dict(ours.state_dict())
    valid = torch.arange(30) < FRAMES[:, None]
    for step in range(4):
        if step == 3:
            ours.eval()
            theirs.eval()
        x = padded(20).requires_grad_()
        rows = x.detach()[valid].requires_grad_()
        y, wanted = ours(x, FRAMES), theirs(rows)
        torch.testing.assert_close(y[valid], wanted, rtol=1e-5, atol=1e-5)
        assert (y[~valid] == 0).all()
        grad = torch.randn(x.shape)
        y.backward(grad)
        wanted.backward(grad[valid])
        assert x.grad is not None
        torch.testing.assert_close(x.grad[valid], rows.grad, rtol=1e-4, atol=1e-5)
        assert (x.grad[~valid] == 0).all()
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)
        same_state(ours, theirs)


def test_sequence_batch_norm_of_a_convolution_is_batch_norm_2d():
    ours, theirs = fastctc.SequenceBatchNorm(6, layout="NEFT"), nn.BatchNorm2d(6)
    x = torch.randn((3, 6, 5, 40))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    same_state(ours, theirs)
    cut = x.clone()
    cut[1, :, :, 17:] = 1e9
    y = ours(cut, [40, 17, 40])
    assert y[1, :, :, :17].abs().max() < 10
    assert (y[1, :, :, 17:] == 0).all()


def test_spectrogram_norm_unmasked_is_the_original():
    ours = fastctc.SpectrogramNorm(6, log="log10", masked=False)
    theirs = nn.BatchNorm2d(6)
    for _ in range(2):
        x = torch.rand((40, 3, 2, 3, 7))  # T, N, bands, electrodes, bins
        seen = torch.log10(x + 1e-6).movedim(0, -1).reshape(3, 6, 7, 40)
        wanted = theirs(seen).reshape(3, 2, 3, 7, 40).movedim(-1, 0)
        torch.testing.assert_close(ours(x, [40, 3, 2]), wanted, rtol=1e-4, atol=1e-5)
        same_state(ours, theirs)
        ours.eval()
        theirs.eval()


def test_spectrogram_norm_leaves_padding_out():
    x, frames = batch((3, 40, 2, 3, 7), (40, 13, 5), torch.float32)
    ours = fastctc.SpectrogramNorm(6, layout="NTBEF", affine=False)
    wanted = plain(x, frames, options("NTF"))
    torch.testing.assert_close(ours(x, frames).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_and_statistics_may_lie_apart_in_memory(dtype, training):
    """As the columns of what several modules share do, and rows that vmap runs over."""
    module = fastctc.SequenceBatchNorm(20).to(dtype).train(training)
    x = torch.randn((4, 30, 20), dtype=dtype)
    shared = torch.rand((20, 4), dtype=dtype) + 0.5
    names = ["weight", "bias", "running_mean", "running_var"]

    def call(x, *columns):
        return torch.func.functional_call(module, dict(zip(names, columns, strict=True)), (x,))

    wanted = call(x, *(column.clone() for column in shared.unbind(1)))
    torch.testing.assert_close(call(x, *shared.unbind(1)), wanted)
    if not training:
        columns = [torch.stack([column, column + 1], 1) for column in shared.unbind(1)]
        found = torch.func.vmap(call, in_dims=(None, 1, 1, 1, 1))(x, *columns)
        torch.testing.assert_close(found[0], wanted)


def test_running_statistics_of_an_empty_batch_stay():
    ours = fastctc.SequenceBatchNorm(20)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    assert (ours(padded(20), [0, 0, 0, 0]) == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_an_empty_batch_has_no_share_in_the_mean_over_all_batches():
    ours, theirs = (fastctc.SequenceBatchNorm(20, momentum=None) for _ in range(2))
    ours(padded(20), [0, 0, 0, 0])
    for _ in range(2):
        x = padded(20)
        for norm in (ours, theirs):
            norm(x, FRAMES)
    same_state(ours, theirs)


def test_cepstral_norm_masks_in_training_only():
    norm = fastctc.CepstralNorm(time_masks=(2, 9), freq_masks=(1, 5))
    x = torch.randn((2, 30, 20))
    assert (norm(x, seed=3) == 0).any()
    norm.eval()
    y = norm(x, seed=3)
    wanted = plain(x[:, :, None, None], torch.tensor([30, 30]), options())
    torch.testing.assert_close(y.double(), wanted[:, :, 0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_keep_the_dtype_of_their_input(dtype):
    x = padded(20).to(dtype).requires_grad_()
    norm = fastctc.SequenceBatchNorm(20)
    y = norm(x, FRAMES)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype is x.grad.dtype is dtype
    assert norm.weight.grad.dtype is norm.running_mean.dtype is torch.float32


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fastctc.SequenceBatchNorm(0), "channels must be a whole number"),
        (lambda: fastctc.SpectrogramNorm(4, layout="NTF"), "axis B or E"),
        (lambda: fastctc.SequenceBatchNorm(4, momentum=-1.0), "momentum must be at least 0"),
        (lambda: fastctc.SequenceBatchNorm(4, momentum=1.5), "momentum must be at most 1, got 1.5"),
        (lambda: fastctc.CepstralNorm(log="x"), "log must be None"),
        (lambda: fastctc.SequenceBatchNorm(4)(torch.ones(2, 3, 5)), "has 5 channels"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", ["affine", "sync", "masked"])
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=f"{name} must be a bool, got str"):
        fastctc.SpectrogramNorm(4, **{name: "no"})


# ---- compiled


@pytest.mark.parametrize("over", ["T", "NTF"])
def test_operators_pass_opcheck(over):
    for name, arguments in operator_calls(over).items():
        torch.library.opcheck(getattr(torch.ops.fastctc, name).default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_modules_compile_into_one_graph(dynamic):
    x, frames = batch((3, 12, 2, 3, 5), (12, 4, 7), torch.float32)
    torch._dynamo.reset()
    for module in (
        fastctc.SpectrogramNorm(6, layout="NTBEF", log="log1p"),
        fastctc.CepstralNorm(layout="NTBEF", time_masks=(2, 5)),
    ):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        found = []
        for call in (module, compiled):
            torch.manual_seed(5)
            leaf = x.clone().requires_grad_()
            y = call(leaf, frames)
            y.square().sum().backward()
            found.append((y.detach(), leaf.grad))
        torch.testing.assert_close(found[0], found[1])


# ---- several processes


def one_of_two(rank: int, rendezvous: str, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    norm = fastctc.SequenceBatchNorm(20)
    x = (1e3 + padded(20)) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    grad = torch.randn(x.shape)
    mine = slice(0, 1) if rank == 0 else slice(1, 4)
    leaf = x[mine].clone().requires_grad_()
    y = norm(leaf, FRAMES[mine])
    y.backward(grad[mine])
    torch.save(
        (y.detach(), leaf.grad, norm.state_dict(), norm.weight.grad, norm.bias.grad),
        os.path.join(folder, f"{rank}.pt"),
    )
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo, by which the two processes talk",
)
def test_two_processes_share_their_statistics(tmp_path: Path):
    torch.multiprocessing.spawn(
        one_of_two, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2, join=True
    )
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.manual_seed(0)
    norm = fastctc.SequenceBatchNorm(20)
    x = (1e3 + padded(20)) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    grad = torch.randn(x.shape)
    leaf = x.clone().requires_grad_()
    y = norm(leaf, FRAMES)
    y.backward(grad)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), leaf.grad)
    for part in parts:
        torch.testing.assert_close(part[2], dict(norm.state_dict()))
    torch.testing.assert_close(sum(part[3] for part in parts), norm.weight.grad)
    torch.testing.assert_close(sum(part[4] for part in parts), norm.bias.grad)
