"""Forced alignment on a GPU, or by the emulator (see `cuda_backends`): the CPU's paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from align_cases import align, assert_same
from cuda_backends import EMULATED
from loss_cases import LAYOUTS, Case, make_case

from fastctc import config, forced_align, reference
from fastctc._backends import BACKENDS

pytestmark = pytest.mark.gpu

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HUGE = (-1, 2**31, 2**62, 2**63 - 1, -(2**63))
# Frames, rows, classes, labels. From 512 labels on a block takes the pairs in strips.
SHAPES = [
    (1, 1, 2, 1),
    (7, 5, 5, 3),
    (40, 3, 5, 0),
    (33, 4, 29, 31),
    (90, 2, 131, 33),
    (70, 2, 29, 70),  # as many frames as the labels need
    (230, 2, 700, 100),
    (900, 1, 9, 511),
    (700, 1, 9, 700),
    (1300, 1, 9, 515),
]
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in BACKENDS,
    reason="needs a CUDA device and a build with the CUDA library",
)


def to(device: torch.device, case: Case) -> Case:
    tensors = (case.scores, case.targets, case.input_lengths, case.target_lengths)
    return Case(*(tensor.to(device) for tensor in tensors), case.blank)


def on_host(result: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return result[0].cpu(), result[1].cpu()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("from_logits", [False, True])
def test_equals_the_reference(
    device: torch.device, shape: tuple[int, int, int, int], from_logits: bool
) -> None:
    for dtype in DTYPES if shape[0] < 500 else DTYPES[1:2]:
        for layout in LAYOUTS:
            for blank in (0, shape[2] - 1):
                case = make_case(700, *shape, dtype=dtype, layout=layout, blank=blank, scale=3.0)
                result = on_host(align(to(device, case), from_logits=from_logits))
                assert_same(case, result, from_logits)


@pytest.mark.parametrize("shape", SHAPES[1:5])
def test_rows_without_a_path_are_marked(
    device: torch.device, shape: tuple[int, int, int, int]
) -> None:
    """Too few frames, -inf, NaN; ties everywhere."""
    found = set()
    for seed in range(6):
        case = make_case(710 + seed, *shape, fitting=False, repeats=seed % 2 == 0)
        case.scores.round_()
        generator = torch.Generator().manual_seed(seed)
        for value in (-torch.inf, torch.nan, torch.inf):
            if seed > 1:
                hit = torch.rand(case.scores.shape, generator=generator) < 0.3 / case.scores.numel()
                case.scores[hit] = value
        found |= set(assert_same(case, on_host(align(to(device, case)))).tolist())
    assert found >= {0, 1}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["input_lengths", "target_lengths", "targets"])
def test_values_out_of_range_are_marked(device: torch.device, layout: str, which: str) -> None:
    for value in (*HUGE, 0):
        case = make_case(720, batch=5, layout=layout, ragged=False)
        expected = align_on_cpu(case)
        if value == 0 and which != "targets":
            continue
        # row 2, or the first of its eight labels
        getattr(case, which).view(-1)[16 if which == "targets" else 2] = value
        paths, scores = on_host(align(to(device, case)))
        hit = paths[:, 0] == -1
        assert hit.any()
        # concatenated targets have no place once a length is wrong
        assert hit.all() == (layout == "concatenated" and which == "target_lengths")
        assert torch.all(paths[hit] == -1)
        assert torch.all(scores[hit] == -torch.inf)
        assert torch.equal(paths[~hit], expected[0][~hit])
        assert torch.equal(scores[~hit], expected[1][~hit])
        with pytest.raises(ValueError, match=r"row \d has a length or a label"):
            align(to(device, case), on_impossible="raise")


def align_on_cpu(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference says, in the types of the kernel's results."""
    paths, scores = (
        reference.forced_align(
            case.scores.numpy(), case.targets.numpy(), case.input_lengths, case.target_lengths
        )
    )[:2]
    return torch.from_numpy(paths), torch.from_numpy(scores).float()


def test_validation_raises_for_values_out_of_range_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "validate_device_inputs", True)
    case = make_case(730, ragged=False)
    case.scores[:, 1] = -torch.inf
    assert torch.all(align(to(device, case))[0][1].cpu() == -1)
    case.targets[3, 0] = 99
    with pytest.raises(ValueError, match="row 3 has a length or a label that is out of range"):
        align(to(device, case))


def test_lengths_may_stay_on_the_host() -> None:
    if not EMULATED and not (torch.cuda.is_available() and "cuda" in BACKENDS):
        pytest.skip("needs a CUDA device and a build for it, or the emulator")
    device = "cpu" if EMULATED else "cuda"
    case = make_case(740)
    lengths = case.input_lengths.tolist(), case.target_lengths.tolist()
    result = forced_align(case.scores.to(device), case.targets, *lengths, batch_first=False)
    assert_same(case, on_host(result))
    with pytest.raises(ValueError, match=r"input_lengths\[1\] is 31, above the 30 frames"):
        forced_align(
            case.scores.to(device), case.targets, [30, 31, 30, 30], lengths[1], batch_first=False
        )


def gpu_step(case: Case) -> Any:
    return align(case, from_logits=True)


@needs_gpu
def test_nobody_waits_for_the_gpu() -> None:
    case = to(torch.device("cuda"), make_case(750))
    gpu_step(case)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu_step(case)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@needs_gpu
def test_a_graph_serves_new_scores_and_lengths() -> None:
    first, second = make_case(751), make_case(752)
    case = to(torch.device("cuda"), first)
    gpu_step(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = gpu_step(case)
    for fresh in (first, second):
        there = to(torch.device("cuda"), fresh)
        for name in ("scores", "targets", "input_lengths", "target_lengths"):
            getattr(case, name).copy_(getattr(there, name))
        graph.replay()
        torch.cuda.synchronize()
        assert_same(fresh, on_host(result), from_logits=True)


@needs_gpu
def test_the_current_stream_is_used() -> None:
    host = make_case(753, 400, 8, 40, 60)
    case = to(torch.device("cuda"), host)
    late = torch.zeros_like(case.scores)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(case.scores)
        result = gpu_step(case.with_scores(late))
    stream.synchronize()
    assert_same(host, on_host(result), from_logits=True)
