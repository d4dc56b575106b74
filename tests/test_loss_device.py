"""Lengths and labels that only a device sees: nobody waits for them, and nothing is checked twice.

Run on a GPU, or by the emulator (see `cuda_backends`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_backends import EMULATED
from loss_cases import LAYOUTS, Case, assert_close, make_case, oracle, ours

import fastctc
from benchmarks.shapes import WORKLOADS
from fastctc import config
from fastctc._backends import BACKENDS
from fastctc._checks import Options
from fastctc._cuda import Cuda

pytestmark = pytest.mark.gpu

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "mean", "sum")
HUGE = (-1, 2**31, 2**62, 2**63 - 1, -(2**63))


@pytest.fixture
def validation() -> Iterator[None]:
    before = config.validate_device_inputs
    config.validate_device_inputs = True
    yield
    config.validate_device_inputs = before


@contextlib.contextmanager
def workspace_of(megabytes: int) -> Iterator[None]:
    before = config.max_workspace_mb
    config.max_workspace_mb = megabytes
    yield
    config.max_workspace_mb = before


def on(device: torch.device, case: Case) -> Case:
    tensors = (case.scores, case.targets, case.input_lengths, case.target_lengths)
    return Case(*(tensor.to(device) for tensor in tensors), case.blank)


def computed(
    device: torch.device, case: Case, grad_out: torch.Tensor | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient, made on the device, on the host."""
    if grad_out is not None:
        grad_out = grad_out.to(device)
    loss, grad = ours(on(device, case), grad_out, **options)
    assert loss.device.type == grad.device.type == device.type
    return loss.cpu(), grad.cpu()


def loss_of(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return fastctc.ctc_loss(scores, *case.arguments()[1:], from_logits=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("from_logits", [True, False])
def test_agrees_with_the_oracle(
    device: torch.device, dtype: torch.dtype, reduction: str, layout: str, from_logits: bool
) -> None:
    case = make_case(300, dtype=dtype, layout=layout, fitting=False, garbage=2**62)
    if not from_logits:
        case = case.with_scores(case.scores.float().log_softmax(-1).to(dtype))
    options = {"reduction": reduction, "from_logits": from_logits}
    assert_close(case, computed(device, case, **options), oracle(case, **options))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.float32])
def test_targets_and_lengths_of_other_dtypes(device: torch.device, dtype: torch.dtype) -> None:
    case = make_case(301, garbage=0)
    expected = computed(device, case)
    lengths = torch.int32 if dtype.is_floating_point else dtype
    other = Case(
        case.scores,
        case.targets.to(dtype).t().contiguous().t(),
        case.input_lengths.to(lengths).repeat_interleave(2)[::2],
        case.target_lengths.to(lengths),
    )
    torch.testing.assert_close(computed(device, other), expected, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bound_on_the_target_lengths(device: torch.device, layout: str) -> None:
    case = make_case(302, layout=layout)
    expected = computed(device, case, reduction="none")
    for bound in (8, 9, 2**40):
        result = computed(device, case, reduction="none", max_target_length=bound)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    above = case.target_lengths > 5
    assert 0 < above.sum() < 4
    loss, grad = computed(device, case, reduction="none", max_target_length=5)
    assert torch.equal(loss[above], torch.full_like(loss[above], math.inf))
    assert torch.equal(loss[~above], expected[0][~above])
    assert torch.equal(grad[:, ~above], expected[1][:, ~above])
    with pytest.raises(ValueError, match="max_target_length must be at least 0, got -1"):
        computed(device, case, max_target_length=-1)


# What is put where, and the words for it.
FAULTS = {
    "input_lengths above the number of frames": ("input_lengths", (31, 2**31, 2**62, 2**63 - 1)),
    "input_lengths below 0": ("input_lengths", (-1, -(2**63))),
    "target_lengths below 0": ("target_lengths", (-1, -(2**63))),
    "target_lengths above the width of targets": ("target_lengths", (9, 2**31, 2**62, 2**63 - 1)),
    "a label outside of the classes": ("targets", (9, *HUGE)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_out_of_range_spoils_its_row_alone(
    device: torch.device, fault: str, zero_infinity: bool, dtype: torch.dtype
) -> None:
    name, values = FAULTS[fault]
    row = 2
    options: dict[str, Any] = {"reduction": "none", "zero_infinity": zero_infinity}
    clean = make_case(303, ragged=False, dtype=dtype)
    expected_loss, expected_grad = computed(device, clean, from_logits=True, **options)
    others = [0, 1, 3]
    for value in values:
        case = make_case(303, ragged=False, dtype=dtype)
        getattr(case, name)[(row, 7) if name == "targets" else row] = value
        loss, grad = computed(device, case, from_logits=True, **options)
        assert torch.equal(loss[others], expected_loss[others])
        assert torch.equal(grad[:, others], expected_grad[:, others])
        assert loss[row] == (0 if zero_infinity else math.inf)
        spoilt = grad[:, row]
        assert bool((spoilt == 0).all() if zero_infinity else spoilt.isnan().all())


@pytest.mark.parametrize("fault", FAULTS)
def test_validation_names_the_row(device: torch.device, validation: None, fault: str) -> None:
    name, values = FAULTS[fault]
    for value in values:
        case = make_case(304, ragged=False)
        getattr(case, name)[(2, 0) if name == "targets" else 2] = value
        kind = IndexError if name == "targets" else RuntimeError
        with pytest.raises(kind, match=rf"{fault} \(row 2\)"):
            fastctc.ctc_loss(*on(device, case).arguments())
    computed(device, make_case(304))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validation_holds_lengths_against_the_bound(
    device: torch.device, validation: None, layout: str
) -> None:
    case = make_case(302, layout=layout)
    above = ", ".join(str(row) for row, count in enumerate(case.target_lengths) if count > 5)
    sentence = rf"target_lengths above max_target_length or the size of targets \(row {above}\)"
    with pytest.raises(RuntimeError, match=sentence):
        fastctc.ctc_loss(*on(device, case).arguments(), max_target_length=5)


def test_validation_names_all_rows(device: torch.device, validation: None) -> None:
    case = make_case(305, batch=20, ragged=False)
    case.input_lengths[3] = 31
    case.targets[4:, 1] = -5
    sentence = (
        r"ctc_loss found on .*: input_lengths above the number of frames \(row 3\); "
        r"a label outside of the classes \(row 4, 5, 6, 7, 8, 9, 10, 11 and 8 more\)"
    )
    with pytest.raises(RuntimeError, match=sentence):
        fastctc.ctc_loss(*on(device, case).arguments())


@pytest.mark.parametrize("value", [9, *HUGE])
def test_concatenated_lengths_that_do_not_add_up(device: torch.device, value: int) -> None:
    case = make_case(306, layout="concatenated", ragged=False)
    case.target_lengths[1] = value
    loss, grad = computed(device, case, reduction="none")
    assert loss[1] == math.inf
    assert grad[:, 1].isnan().all()
    loss, grad = computed(device, case, reduction="none", zero_infinity=True)
    assert loss[1] == 0
    assert not grad.isnan().any()


def test_lengths_on_either_side(device: torch.device) -> None:
    case = make_case(307)
    expected = computed(device, case)
    if EMULATED:
        pytest.skip("the emulator has one memory: everything is in sight of the host, or nothing")
    there = on(device, case)
    for mixed in (
        Case(there.scores, case.targets, there.input_lengths, case.target_lengths),
        Case(there.scores, there.targets, case.input_lengths, there.target_lengths),
        Case(there.scores, case.targets, case.input_lengths, case.target_lengths),
    ):
        loss, grad = ours(mixed)
        torch.testing.assert_close((loss.cpu(), grad.cpu()), expected, rtol=0, atol=0)


class Capturing(Cuda):
    """Sees int64 alone, while a CUDA graph is captured."""

    def sees(self, values: torch.Tensor) -> bool:
        return values.dtype == torch.int64

    def capturing(self) -> bool:
        return True


def test_what_a_graph_cannot_take_from_the_host() -> None:
    case = make_case(307)
    case.input_lengths = case.input_lengths.int()
    options = Options(0, 1, False, False, False, False)
    sentence = "^targets, target_lengths: on the host, and must be on cpu while a CUDA graph is "
    with pytest.raises(RuntimeError, match=sentence):
        Capturing(None).prepare(*case.arguments()[:4], options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_twice_and_scaled(device: torch.device, reduction: str) -> None:
    case = on(device, make_case(308, dtype=torch.bfloat16))
    scores = case.scores.requires_grad_()
    loss = fastctc.ctc_loss(scores, *case.arguments()[1:], reduction, from_logits=True)
    grad_out = torch.linspace(0.1, 70.0, loss.numel(), device=device).view(loss.shape)
    first, second = (
        torch.autograd.grad(loss, scores, grad_out, retain_graph=True)[0].cpu() for _ in range(2)
    )
    assert torch.equal(first, second)
    host = make_case(308, dtype=torch.bfloat16)
    options = {"reduction": reduction, "from_logits": True}
    expected = oracle(host, grad_out.cpu(), **options)
    assert_close(host, (loss.detach().cpu(), first), expected, 1e-3)


def test_targets_changed_in_place_are_noticed(device: torch.device) -> None:
    case = on(device, make_case(309))
    loss = fastctc.ctc_loss(case.scores.requires_grad_(), *case.arguments()[1:])
    case.targets += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [30, 300, 700])
def test_states_kept_in_checkpoints(device: torch.device, dtype: torch.dtype, labels: int) -> None:
    frames = 2 * labels + 20
    case = make_case(310, frames, 2, 7, labels, dtype=dtype, ragged=False)
    options = {"reduction": "none", "from_logits": True}
    with workspace_of(1):
        result = computed(device, case, **options)
    assert_close(case, result, oracle(case, **options))
    stored = computed(device, case, **options)
    torch.testing.assert_close(stored, result, rtol=1e-5, atol=1e-5)


def test_the_limit_may_change_before_the_backward_pass(device: torch.device) -> None:
    case = on(device, make_case(311, 300, 3, 30, 120))
    scores = case.scores.requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(case, scores), scores)
    with workspace_of(1):
        loss = loss_of(case, scores)
    (grad,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


def test_many_short_targets_end_to_end(device: torch.device) -> None:
    # Any of them might be longer than one warp's part, for all that the host can see.
    case = make_case(312, 40, 110, 7, 15, layout="concatenated", ragged=False)
    options = {"reduction": "none", "from_logits": True}
    assert case.targets.numel() > 1000
    assert_close(case, computed(device, case, **options), oracle(case, **options))


def test_long_targets_beside_short_ones(device: torch.device) -> None:
    case = make_case(313, 820, 3, 30, 770)
    options = {"reduction": "none", "from_logits": True}
    assert int(case.target_lengths.max()) > 764 > int(case.target_lengths.min())
    assert_close(case, computed(device, case, **options), oracle(case, **options), 1e-4)


def memory_of(*shape: int, dtype: int = 2, total: int = 0, megabytes: int = 256) -> tuple[int, int]:
    """Bytes saved and of scratch for frames, rows, classes, labels."""
    frames, batch, classes, labels = shape
    library = next(b.library for b in BACKENDS.values() if hasattr(b, "library"))
    saved, scratch = library.ctc_loss_cuda_memory(
        dtype, frames, batch, classes, labels, total or batch * labels, True, megabytes << 20
    )
    return saved, scratch


def test_memory_beside_torch(device: torch.device) -> None:
    # What torch's own loss has at its peak: log-probabilities, their gradient and alpha and beta,
    # or those two and the gradient by the logits.
    most = {"A": 0.40, "B": 0.30, "C": 0.345, "D": 0.29, "E": 0.40, "F": 0.34, "G": 0.355}
    for name, shape in WORKLOADS.items():
        scores = 4 * shape.frames * shape.batch * shape.classes
        lattices = 2 * 4 * shape.frames * shape.batch * (2 * shape.labels + 1)
        for dtype, gradient in ((2, scores), (1, scores // 2)):
            torchs = max(2 * scores + lattices, 2 * scores + gradient)
            saved, scratch = memory_of(
                shape.frames, shape.batch, shape.classes, shape.labels, dtype=dtype
            )
            ratio = (saved + max(scratch, gradient)) / torchs
            assert ratio < (most[name] if dtype == 2 or name == "A" else 1 / 3), (name, dtype)


def test_memory_of_large_shapes(device: torch.device) -> None:
    saved, scratch = memory_of(100_000, 1, 29, 5_000)
    assert saved < 16e6
    assert scratch < 64e6
    saved, scratch = memory_of(100_000, 1, 5_001, 5_000)
    assert saved < 1.01 * 4 * 100_000 * 5_001  # no more than the gradient
    assert scratch < 64e6
    # 16 short targets end to end are not 16 long ones
    assert memory_of(700, 16, 29, 3_200, total=3_200)[1] < 20e6
    # no more than the limit where rows can take turns, and hardly more where one cannot
    assert memory_of(1_000, 500, 29, 100, megabytes=32)[1] < 34 << 20
    assert memory_of(10_000, 4, 29, 700, megabytes=1)[1] < 8 << 20
    # past 32 bits
    frames = 2**31 - 2**17
    saved, scratch = memory_of(frames, 3, 40, 700)
    assert saved > 4 * frames * 3 * 41
    assert 4 * frames < scratch < 10 * frames
    assert memory_of(2**31, 3, 40, 700) == (0, 0)


def test_nearly_uniform_scores_of_a_long_target() -> None:
    """Every path counts, so states rise the most from frame to frame, over all warps."""
    generator = torch.Generator().manual_seed(29)
    frames, labels, classes = 1284, 764, 64
    scores = 2e-3 * torch.rand(frames, 1, classes, generator=generator)
    steps = torch.randint(1, classes - 1, (labels,), generator=generator)
    target = (1 + steps.cumsum(0) % (classes - 1))[None]  # no label twice in a row
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = scores.to(dtype, copy=True).requires_grad_()
        fastctc.ctc_loss(
            leaf, target, [frames], [labels], reduction="sum", from_logits=True
        ).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0, atol=2e-5)
