"""The loss on a GPU: streams, graphs, waiting, determinism, memory, torch's loss beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import Case, assert_close, make_case, ours
from torch import Tensor

import fastctc
from fastctc._backends import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif("cuda" not in BACKENDS, reason="needs a build with the CUDA library"),
]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def on(device: str, case: Case) -> Case:
    tensors = (case.scores, case.targets, case.input_lengths, case.target_lengths)
    return Case(*(tensor.to(device) for tensor in tensors), case.blank)


def on_host(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return result[0].cpu(), result[1].cpu()


def equal_bits(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where torch would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((150, 32, 28, 40), {"from_logits": True}),
        ((300, 5, 5000, 30), {"from_logits": True, "reduction": "sum"}),
        ((200, 7, 29, 90), {"reduction": "none", "grad": "true"}),
        ((90, 130, 11, 8), {"from_logits": True, "zero_infinity": True}),
        ((1100, 2, 40, 500), {"from_logits": True, "reduction": "none"}),
    ],
)
def test_agrees_with_the_cpu(
    dtype: torch.dtype, shape: tuple[int, int, int, int], options: dict[str, Any]
) -> None:
    case = make_case(400, *shape, dtype=dtype)
    assert_close(case, on_host(ours(on("cuda", case), **options)), ours(case, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_run_gives_the_same_bits(deterministic: None, dtype: torch.dtype) -> None:
    case = on("cuda", make_case(401, 300, 40, 50, 120, dtype=dtype, fitting=False))
    first = ours(case, from_logits=True)
    for _ in range(5):
        equal_bits(ours(case, from_logits=True), first)


def test_nobody_waits_for_the_device() -> None:
    case = make_case(402)
    there = on("cuda", case)
    bounded = {"from_logits": True, "max_target_length": 8}
    lists = Case(
        there.scores, case.targets, case.input_lengths.tolist(), case.target_lengths.tolist()
    )
    grad_out = torch.full((), 0.3, device="cuda")
    with no_waiting():
        with pytest.raises(RuntimeError, match="synchronizing"):
            there.scores.sum().item()
        for given in (there, lists, Case(there.scores, *case.arguments()[1:4])):
            ours(given, grad_out, from_logits=True)
            ours(given, grad_out, **bounded)


def test_work_goes_to_the_current_stream() -> None:
    case = on("cuda", make_case(403, 120, 8, 40, 30))
    expected = ours(case, from_logits=True)
    late = torch.full_like(case.scores, torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms in which an early reader would find NaN
        late.copy_(case.scores)
        result = ours(case.with_scores(late), from_logits=True)
    stream.synchronize()
    equal_bits(result, expected)


def test_a_graph_replays_with_new_lengths() -> None:
    shape = (60, 6, 20, 15)
    held = on("cuda", make_case(404, *shape))
    scores = held.scores.requires_grad_()
    grad_out = torch.linspace(0.5, 2.0, 6, device="cuda")
    options: dict[str, Any] = {"from_logits": True, "reduction": "none"}

    def step() -> tuple[Tensor, Tensor]:
        loss = fastctc.ctc_loss(scores, *held.arguments()[1:], **options)
        return loss, torch.autograd.grad(loss, scores, grad_out)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    for seed in (405, 406, 407):
        new = on("cuda", make_case(seed, *shape, fitting=seed != 406))
        with torch.no_grad():
            scores.copy_(new.scores)
        held.targets.copy_(new.targets)
        held.input_lengths.copy_(new.input_lengths)
        held.target_lengths.copy_(new.target_lengths)
        graph.replay()
        equal_bits((loss.detach(), grad), ours(new, grad_out, **options))


def test_a_graph_takes_nothing_from_the_host() -> None:
    case = on("cuda", make_case(407))
    lengths = case.input_lengths.cpu()
    with (
        pytest.raises(RuntimeError, match=r"^input_lengths: on the host, and must be on cuda"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        fastctc.ctc_loss(case.scores * 2, case.targets, lengths, case.target_lengths)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    case = make_case(408)
    expected = ours(on("cuda:0", case), from_logits=True)
    result = ours(on("cuda:1", case), from_logits=True)
    assert result[0].device == result[1].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    equal_bits(on_host(result), on_host(expected))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend: str) -> None:
    case = on("cuda", make_case(409))
    scores = case.scores.requires_grad_()

    def step(values: Tensor) -> Tensor:
        loss = fastctc.ctc_loss(
            values * 2, *case.arguments()[1:4], from_logits=True, max_target_length=8
        )
        return loss * 3

    torch._dynamo.reset()
    result = torch.compile(step, fullgraph=True, backend=backend)(scores)
    expected = step(scores)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, scores), torch.autograd.grad(expected, scores)
    )


def test_operator_passes_torch_checks() -> None:
    case = on("cuda", make_case(410))
    options = (0, 1, False, True, False, False, 8)
    torch.library.opcheck(
        torch.ops.fastctc.ctc_loss.default,
        (case.scores.requires_grad_(), *case.arguments()[1:4], *options),
    )


def test_patched_torch_is_ours_on_the_gpu() -> None:
    case = on("cuda", make_case(411))
    log_probs = case.scores.log_softmax(-1)
    expected = F.ctc_loss(log_probs, *case.arguments()[1:4])
    with fastctc.patch_torch():
        assert torch.equal(
            F.ctc_loss(log_probs, *case.arguments()[1:4]),
            fastctc.ctc_loss(log_probs, *case.arguments()[1:4]),
        )
        half = torch.nn.CTCLoss()(log_probs.bfloat16(), *case.arguments()[1:4])
    assert half.dtype is torch.float32  # torch's own loss takes no bfloat16
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)


def test_autocast_keeps_the_loss_in_float32() -> None:
    case = on("cuda", make_case(412))
    weight = torch.eye(9, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = fastctc.ctc_loss(case.scores @ weight, *case.arguments()[1:4], from_logits=True)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, ours(case, from_logits=True)[0], rtol=0.01, atol=0.01)


REFUSED: dict[str, dict[str, Any]] = {
    "input_lengths above frames": {"input_lengths": torch.tensor([30, 31, 30, 30])},
    "input_lengths negative": {"input_lengths": torch.tensor([-1, 30, 30, 30])},
    "target_lengths negative": {"target_lengths": torch.tensor([1, 2, -1, 3])},
    "target_lengths above width": {"target_lengths": torch.tensor([1, 2, 9, 3])},
    "input_lengths too few": {"input_lengths": torch.tensor([30, 30])},
    "blank": {"blank": 9},
    "no frames": {"log_probs": torch.zeros(0, 4, 9)},
    "int64": {"log_probs": torch.zeros(30, 4, 9, dtype=torch.int64)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_torch_words(name: str) -> None:
    case = make_case(413)
    arguments = {
        "log_probs": case.scores,
        "targets": case.targets.cuda(),
        "input_lengths": case.input_lengths,
        "target_lengths": case.target_lengths,
    } | REFUSED[name]
    arguments["log_probs"] = arguments["log_probs"].cuda()
    messages = []
    for loss in (F.ctc_loss, fastctc.ctc_loss):
        with pytest.raises((RuntimeError, NotImplementedError)) as raised:
            loss(**arguments)
        messages.append((raised.type, str(raised.value)))
    assert messages[1] == messages[0]


def test_labels_on_the_host_are_checked_there() -> None:
    case = make_case(414, ragged=False)
    case.targets[3, 2] = 9
    with pytest.raises(IndexError, match="label 9 at position 2 of row 3"):
        fastctc.ctc_loss(case.scores.cuda(), *case.arguments()[1:4])


@pytest.mark.parametrize(("frames", "labels"), [(100_000, 5_000), (41_000, 20_000)])
def test_very_long_rows(frames: int, labels: int) -> None:
    case = make_case(415, frames, 1, 12, labels, ragged=False, scale=0.5)
    expected = ours(case, from_logits=True)
    there = on("cuda", case)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = ours(there, from_logits=True)
    peak = torch.cuda.max_memory_allocated() - before
    assert_close(case, on_host(result), expected, 1e-4)
    # The states of all frames, at 8 bytes a label, would be 4 or 6 GB.
    assert peak < 1.5e9
